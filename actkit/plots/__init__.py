"""HoloViews plots of the statistics, for Bokeh and, after `load_matplotlib`, Matplotlib."""

from .kmeans import kmeans
from .lines import (
    adjacent_cka,
    anisotropy,
    auroc_difference,
    group_differential,
    intrinsic_dimension,
    layer_norms,
    layer_updates,
    transfer,
)
from .maps import cka, direction_cosines, language_cka, similarity, token_correlation, tokens
from .points import projection
from .style import figure, load_matplotlib

__all__ = [
    "adjacent_cka",
    "anisotropy",
    "auroc_difference",
    "cka",
    "direction_cosines",
    "figure",
    "group_differential",
    "intrinsic_dimension",
    "kmeans",
    "language_cka",
    "layer_norms",
    "layer_updates",
    "load_matplotlib",
    "projection",
    "similarity",
    "token_correlation",
    "tokens",
    "transfer",
]
