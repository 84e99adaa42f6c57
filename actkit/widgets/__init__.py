"""Widgets for runs and cubes: ipywidgets in notebooks, Panel in notebooks and the app."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .explorer import Explorer
    from .extraction_form import ExtractionForm
    from .progress_widget import Watch

__all__ = ["Explorer", "ExtractionForm", "Watch"]

# imported on first use: the app lacks ipywidgets, and notebooks that only extract need no Panel
_HOMES = {"Explorer": ".explorer", "ExtractionForm": ".extraction_form", "Watch": ".progress_widget"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
