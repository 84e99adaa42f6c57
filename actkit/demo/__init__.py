"""The bundled demo: a small trained model, captions to run it on, and their pictures, without a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from actkit.demo.captions import captions

if TYPE_CHECKING:
    from actkit.demo.drawing import draw_scenes

__all__ = ["CAPTIONS", "MODEL", "captions", "draw_scenes"]

CAPTIONS: Path = Path(__file__).with_name("captions.csv")
"""The captions of 500 scenes, 2,000 rows, as `captions()` gives them."""

MODEL: Path = Path(__file__).with_name("model")
"""The folder of the trained model, as transformers loads it."""


def __getattr__(name: str) -> Any:
    # Only who draws needs Pillow.
    if name == "draw_scenes":
        from actkit.demo.drawing import draw_scenes

        return draw_scenes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
