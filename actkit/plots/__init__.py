"""HoloViews plots of the statistics, for Bokeh and, after `load_matplotlib`, Matplotlib."""

from .ablation import ablation
from .feature_differential import feature_auroc, feature_counts, feature_differential, feature_volcano
from .features import feature_frequency, feature_map, feature_rates
from .kmeans import kmeans
from .label_probes import classification_probe, regression_probe
from .lines import (
    adjacent_cka,
    anisotropy,
    auroc_difference,
    erasure_probe,
    group_differential,
    intrinsic_dimension,
    layer_norms,
    layer_updates,
    selectivity,
    transfer,
)
from .logit_lens import logit_lens
from .maps import (
    cka,
    direction_cosines,
    language_cka,
    layer_difference,
    similarity,
    token_correlation,
    tokens,
)
from .measures import similarity_measures
from .patching import patching
from .points import projection
from .saes import sae_frequencies, sae_quality, training_curves
from .steering import steering
from .style import figure, load_matplotlib

__all__ = [
    "ablation",
    "adjacent_cka",
    "anisotropy",
    "auroc_difference",
    "cka",
    "classification_probe",
    "direction_cosines",
    "erasure_probe",
    "feature_auroc",
    "feature_counts",
    "feature_differential",
    "feature_frequency",
    "feature_map",
    "feature_rates",
    "feature_volcano",
    "figure",
    "group_differential",
    "intrinsic_dimension",
    "kmeans",
    "language_cka",
    "layer_difference",
    "layer_norms",
    "layer_updates",
    "load_matplotlib",
    "logit_lens",
    "patching",
    "projection",
    "regression_probe",
    "sae_frequencies",
    "sae_quality",
    "selectivity",
    "similarity",
    "similarity_measures",
    "steering",
    "token_correlation",
    "tokens",
    "training_curves",
    "transfer",
]
