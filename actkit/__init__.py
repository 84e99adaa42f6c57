"""Run prompts through Hugging Face transformers, store the outputs of every layer, and analyse them."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .exporters.run_export import export
    from .extraction.extend import extend
    from .extraction.preflight.preparation import RunPlan
    from .extraction.run import extract, plan
    from .extraction.seal import seal
    from .features.cube_checks import check_saes
    from .features.feature_matches import match_features
    from .features.quality import sae_quality
    from .features.quality_result import best_layers
    from .features.sae_loader import load_saes
    from .features.sae_set import SaeSet
    from .features.training import train_saes
    from .features.training_log import training_log
    from .importers.run_import import import_files
    from .interventions.ablation import ablate
    from .interventions.logit_lens import logit_lens
    from .interventions.metrics import LogitDifference, Refusal
    from .interventions.patching import patch
    from .interventions.steering import steer
    from .interventions.text_metrics import CrossEntropy, RefusalRate
    from .reports import report
    from .stats.cka import adjacent_cka, cka, language_cka
    from .stats.classification_probe import classification_probe
    from .stats.cross_language import transfer
    from .stats.differential import group_differential
    from .stats.directions import direction_cosines
    from .stats.erasure import Eraser
    from .stats.erasure_probe import erasure_probe
    from .stats.feature_differential import feature_differential
    from .stats.feature_map import feature_map
    from .stats.feature_rates import feature_rates
    from .stats.geometry import anisotropy, intrinsic_dimension
    from .stats.group_directions import group_directions
    from .stats.kmeans import cluster_samples, cluster_tokens
    from .stats.layer_subset import layer_subset
    from .stats.multiple_results import holm
    from .stats.norms import layer_norms, layer_updates, massive_activations
    from .stats.regression_probe import regression_probe
    from .stats.similarity import similarity
    from .stats.token_correlation import token_correlation
    from .stats.token_filter import TokenFilter
    from .stats.token_selection import select_tokens
    from .stats.top_activations import top_activating
    from .stats.transitions import transitions
    from .stats.whitening import Whitener
    from .store.joins import join
    from .store.push_pull import pull, push
    from .store.reader import open_cube, token_strings
    from .store.verification import verify

__all__ = [
    "Config",
    "CrossEntropy",
    "Eraser",
    "LogitDifference",
    "Refusal",
    "RefusalRate",
    "RunPlan",
    "SaeSet",
    "TokenFilter",
    "Whitener",
    "ablate",
    "adjacent_cka",
    "anisotropy",
    "best_layers",
    "check_saes",
    "cka",
    "classification_probe",
    "cluster_samples",
    "cluster_tokens",
    "cut_share",
    "dense_vectors",
    "direction_cosines",
    "encode",
    "erasure_probe",
    "export",
    "extend",
    "extract",
    "feature_differential",
    "feature_map",
    "feature_rates",
    "group_differential",
    "group_directions",
    "holm",
    "import_files",
    "intrinsic_dimension",
    "join",
    "language_cka",
    "layer_norms",
    "layer_subset",
    "layer_updates",
    "load_saes",
    "logit_lens",
    "massive_activations",
    "match_features",
    "open_cube",
    "patch",
    "plan",
    "pull",
    "push",
    "regression_probe",
    "report",
    "sae_quality",
    "seal",
    "select_tokens",
    "similarity",
    "steer",
    "token_correlation",
    "token_strings",
    "top_activating",
    "train_saes",
    "training_log",
    "transfer",
    "transitions",
    "verify",
]

__version__ = version("actkit")

# imported on first use, so that opening a cube needs no torch and the command line starts quickly
_MODULES = {
    "Config": ".config",
    "CrossEntropy": ".interventions.text_metrics",
    "Eraser": ".stats.erasure",
    "LogitDifference": ".interventions.metrics",
    "Refusal": ".interventions.metrics",
    "RefusalRate": ".interventions.text_metrics",
    "RunPlan": ".extraction.preflight.preparation",
    "SaeSet": ".features.sae_set",
    "TokenFilter": ".stats.token_filter",
    "Whitener": ".stats.whitening",
    "adjacent_cka": ".stats.cka",
    "anisotropy": ".stats.geometry",
    "best_layers": ".features.quality_result",
    "check_saes": ".features.cube_checks",
    "cka": ".stats.cka",
    "classification_probe": ".stats.classification_probe",
    "cluster_samples": ".stats.kmeans",
    "cluster_tokens": ".stats.kmeans",
    "cut_share": ".features.sparse_values",
    "dense_vectors": ".features.sparse_values",
    "direction_cosines": ".stats.directions",
    "encode": ".features.feature_encoder",
    "erasure_probe": ".stats.erasure_probe",
    "export": ".exporters.run_export",
    "extend": ".extraction.extend",
    "extract": ".extraction.run",
    "feature_differential": ".stats.feature_differential",
    "feature_map": ".stats.feature_map",
    "feature_rates": ".stats.feature_rates",
    "group_differential": ".stats.differential",
    "group_directions": ".stats.group_directions",
    "holm": ".stats.multiple_results",
    "import_files": ".importers.run_import",
    "intrinsic_dimension": ".stats.geometry",
    "join": ".store.joins",
    "language_cka": ".stats.cka",
    "layer_norms": ".stats.norms",
    "layer_subset": ".stats.layer_subset",
    "layer_updates": ".stats.norms",
    "load_saes": ".features.sae_loader",
    "massive_activations": ".stats.norms",
    "match_features": ".features.feature_matches",
    "open_cube": ".store.reader",
    "plan": ".extraction.run",
    "pull": ".store.push_pull",
    "push": ".store.push_pull",
    "regression_probe": ".stats.regression_probe",
    "report": ".reports",
    "sae_quality": ".features.quality",
    "seal": ".extraction.seal",
    "select_tokens": ".stats.token_selection",
    "similarity": ".stats.similarity",
    "logit_lens": ".interventions.logit_lens",
    "ablate": ".interventions.ablation",
    "patch": ".interventions.patching",
    "steer": ".interventions.steering",
    "token_correlation": ".stats.token_correlation",
    "token_strings": ".store.reader",
    "top_activating": ".stats.top_activations",
    "train_saes": ".features.training",
    "training_log": ".features.training_log",
    "transfer": ".stats.cross_language",
    "transitions": ".stats.transitions",
    "verify": ".store.verification",
}


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module(".plots", __name__)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "plots"]
