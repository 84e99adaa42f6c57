"""Metadata of the kept positions of a window, which follow from the prompts alone."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ...schema import VARIABLES, TokenKind
from ..prompts.encoder import Encoder, Prompt
from .spec import MEAN_POSITION


def token_arrays(
    prompts: Sequence[Prompt],
    kept: Sequence[np.ndarray],
    n_tokens: int,
    names: Collection[str],
    encoder: Encoder,
) -> dict[str, np.ndarray]:
    """Return the variables that describe tokens, named as in ``schema.VARIABLES``.

    Parameters
    ----------
    prompts
        Prompts of the window.
    kept
        Positions kept of each prompt.
    n_tokens
        Length of the token dimension of the cube.
    names
        Names of the variables to return.
    encoder
        Encoder of the prompts, which decodes their tokens.
    """
    arrays = {"n_tokens": np.array([len(positions) for positions in kept], dtype=np.int32)}
    for name in ("token_id", "token_kind", "token_text", "position"):
        if name in names:
            variable = VARIABLES[name]
            fill = MEAN_POSITION if name == "position" else variable.fill_value
            dtype = object if variable.dtype == "str" else variable.dtype
            arrays[name] = np.full((len(prompts), n_tokens), fill, dtype=dtype)
    for row, (prompt, positions) in enumerate(zip(prompts, kept, strict=True)):
        for name, entries in _describe(prompt, positions, encoder).items():
            if name in arrays:
                arrays[name][row, : len(positions)] = entries
    if "generated" in names:
        arrays["generated"] = np.array([_generated(prompt, encoder) for prompt in prompts], dtype=object)
    return arrays


def _generated(prompt: Prompt, encoder: Encoder) -> str:
    new = prompt.ids[prompt.kinds == TokenKind.GENERATED]
    return str(encoder.tokenizer.decode(new, skip_special_tokens=True))


def _describe(prompt: Prompt, kept: np.ndarray, encoder: Encoder) -> dict[str, Any]:
    if MEAN_POSITION in kept:
        described: tuple[Any, ...] = (kept, MEAN_POSITION, TokenKind.MEAN, "")
    else:
        texts = np.array(encoder.pieces(prompt.ids), dtype=object)
        described = (kept, prompt.ids[kept], prompt.kinds[kept], texts[kept])
    return dict(zip(("position", "token_id", "token_kind", "token_text"), described, strict=True))
