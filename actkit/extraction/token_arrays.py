"""What each kept position of a window holds: known from the prompts, whatever the model gives."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from ..schema import VARIABLES, TokenKind
from .prompts.encoding import Encoder, Prompt
from .selection import MEAN_POSITION


def token_arrays(
    prompts: Sequence[Prompt],
    kept: Sequence[np.ndarray],
    n_tokens: int,
    names: Collection[str],
    encoder: Encoder,
) -> dict[str, np.ndarray]:
    """Return the variables that describe tokens, by their names in ``schema.VARIABLES``.

    Parameters
    ----------
    prompts
        Those of the window.
    kept
        The places that are kept of each.
    n_tokens
        Length of the cube's token dimension.
    names
        Of the variables that are asked for.
    encoder
        Knows the characters of each token.
    """
    arrays = {"n_tokens": np.array([len(places) for places in kept], dtype=np.int32)}
    for name in ("token_id", "token_kind", "token_text", "position"):
        if name in names:
            variable = VARIABLES[name]
            fill = MEAN_POSITION if name == "position" else variable.fill_value
            dtype = object if variable.dtype == "str" else variable.dtype
            arrays[name] = np.full((len(prompts), n_tokens), fill, dtype=dtype)
    for row, (prompt, places) in enumerate(zip(prompts, kept, strict=True)):
        for name, entries in _describe(prompt, places, encoder).items():
            if name in arrays:
                arrays[name][row, : len(places)] = entries
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
