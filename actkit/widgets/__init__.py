"""What shows runs and cubes: in a notebook with ipywidgets, in a notebook and in the app alike with Panel."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .choosing import ExtractionForm
    from .explorer import Explorer
    from .watching import Watch

__all__ = ["Explorer", "ExtractionForm", "Watch"]

# imported on first use: the app has no ipywidgets, and a notebook that only runs needs no Panel
_HOMES = {"Explorer": ".explorer", "ExtractionForm": ".choosing", "Watch": ".watching"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
