"""Run prompts through any Hugging Face transformer, keep what every layer computed, look at it."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .exporting.export import export
    from .extraction.engine import extract, plan
    from .importing.importing import import_files
    from .reporting import report
    from .stats.activating import top_activating
    from .stats.cka import adjacent_cka, cka, language_cka
    from .stats.differential import group_differential
    from .stats.directions import direction_cosines
    from .stats.norms import layer_norms, layer_updates, massive_activations
    from .stats.resolution import multi_resolution
    from .stats.transfer import transfer
    from .stats.transitions import transitions
    from .stats.whitening import Whitener
    from .store.checking import verify
    from .store.reading import open_cube, tokens

__all__ = [
    "Config",
    "Whitener",
    "adjacent_cka",
    "cka",
    "direction_cosines",
    "export",
    "extract",
    "group_differential",
    "import_files",
    "language_cka",
    "layer_norms",
    "layer_updates",
    "massive_activations",
    "multi_resolution",
    "open_cube",
    "plan",
    "report",
    "tokens",
    "top_activating",
    "transfer",
    "transitions",
    "verify",
]

__version__ = version("actkit")

# imported on first use: opening a cube needs no torch, and the command line starts at once
_HOMES = {
    "Config": ".config",
    "Whitener": ".stats.whitening",
    "adjacent_cka": ".stats.cka",
    "cka": ".stats.cka",
    "direction_cosines": ".stats.directions",
    "export": ".exporting.export",
    "extract": ".extraction.engine",
    "group_differential": ".stats.differential",
    "import_files": ".importing.importing",
    "language_cka": ".stats.cka",
    "layer_norms": ".stats.norms",
    "layer_updates": ".stats.norms",
    "massive_activations": ".stats.norms",
    "multi_resolution": ".stats.resolution",
    "open_cube": ".store.reading",
    "plan": ".extraction.engine",
    "report": ".reporting",
    "tokens": ".store.reading",
    "top_activating": ".stats.activating",
    "transfer": ".stats.transfer",
    "transitions": ".stats.transitions",
    "verify": ".store.checking",
}


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module(".plots", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
