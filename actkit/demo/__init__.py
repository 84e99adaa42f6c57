"""The bundled demo: a small trained model and captions to run it on, without a network."""

from pathlib import Path

from actkit.demo.captions import captions

__all__ = ["CAPTIONS", "MODEL", "captions"]

CAPTIONS: Path = Path(__file__).with_name("captions.csv")
"""The captions of 500 scenes, 2,000 rows, as `captions()` gives them."""

MODEL: Path = Path(__file__).with_name("model")
"""The folder of the trained model, as transformers loads it."""
