"""Texts, and encoders of them, as a run makes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actkit.config import Config
from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.checkpoint import Checkpoint
from actkit.extraction.prompts.encoder import Encoder, Prompt, load_encoder
from actkit.schema import TokenKind

TEXTS = ["The doctor waits.", "الطبيبُ يقرأ كتابًا.", "a\nb {text} {{ x }}", "word"]


def load(folder: Path, **options: Any) -> tuple[Encoder | None, list[str]]:
    checkpoint = Checkpoint("m", folder, "")
    architecture, faults = read_architecture(checkpoint)
    assert architecture is not None, faults
    config = Config(model="m", data="d", out="o", **options)
    encoder, faults = load_encoder(checkpoint, architecture, config)
    return encoder, [str(fault) for fault in faults]


def loaded(folder: Path, **options: Any) -> Encoder:
    encoder, faults = load(folder, **options)
    assert faults == []
    assert encoder is not None
    return encoder


def sound(encoder: Encoder, texts: Sequence[str], images: Any = None) -> list[Prompt]:
    prompts = encoder.encode(texts, images)
    assert not [prompt for prompt in prompts if isinstance(prompt, str)]
    return prompts  # type: ignore[return-value]


def text_of(encoder: Encoder, prompt: Prompt, *kinds: TokenKind) -> str:
    pieces = np.array(encoder.pieces(prompt.ids), dtype=object)
    return "".join(pieces[np.isin(prompt.kinds, kinds)])
