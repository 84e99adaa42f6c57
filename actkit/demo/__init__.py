"""Demo: a small trained model, captions and drawings of them; a real language model on request."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from actkit.demo.captions import captions

if TYPE_CHECKING:
    from actkit.demo.drawing import draw_scenes
    from actkit.demo.llm import llm_folder, make_llm

__all__ = ["CAPTIONS", "MODEL", "captions", "draw_scenes", "llm_folder", "make_llm"]

CAPTIONS: Path = Path(__file__).with_name("captions.csv")
"""CSV file with the captions of 500 scenes, the 2,000 rows of `captions()`."""

MODEL: Path = Path(__file__).with_name("model")
"""Folder of the trained model, to load with transformers."""


def __getattr__(name: str) -> Any:
    # only drawing needs Pillow
    if name == "draw_scenes":
        from actkit.demo.drawing import draw_scenes

        return draw_scenes
    if name in ("llm_folder", "make_llm"):
        from actkit.demo import llm

        return getattr(llm, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
