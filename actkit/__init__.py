"""Run prompts through any Hugging Face transformer, keep what every layer computed, look at it."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config
    from .extraction.engine import extract, plan
    from .stats.norms import layer_norms
    from .store.checking import verify
    from .store.reading import open_cube, tokens

__all__ = ["Config", "extract", "layer_norms", "open_cube", "plan", "tokens", "verify"]

__version__ = version("actkit")

# imported on first use: opening a cube needs no torch, and the command line starts at once
_HOMES = {
    "Config": ".config",
    "extract": ".extraction.engine",
    "layer_norms": ".stats.norms",
    "open_cube": ".store.reading",
    "plan": ".extraction.engine",
    "tokens": ".store.reading",
    "verify": ".store.checking",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
