"""Specification of what a cube keeps: layers, and positions of a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...schema import CONTENT_KINDS, VISION, TokenKind

MEAN_POSITION = -1
_IS_CONTENT = np.isin(range(len(TokenKind)), CONTENT_KINDS)


@dataclass(frozen=True)
class Rules:
    """Selection of the outputs of a model that a cube keeps.

    Parameters
    ----------
    layers
        Blocks at which each component is kept, sorted.
    axis
        Blocks on the layer axis of the cube, sorted.
    keep_tokens, storage, on_nonfinite
        Options of :class:`~actkit.config.Config`.
    first_is_content
        Whether position 0 counts as content.
    sparse
        Number of entries kept of each vector; None for all.
    """

    layers: Mapping[str, tuple[int, ...]]
    axis: tuple[int, ...]
    keep_tokens: str
    storage: str
    on_nonfinite: str
    first_is_content: bool
    sparse: int | None = None


def layer_axis(layers: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the blocks on the layer axis: all at which a component of the decoder is kept."""
    return tuple(sorted({layer for name in layers if name != VISION for layer in layers[name]}))


def content_positions(kinds: np.ndarray, *, first_is_content: bool) -> np.ndarray:
    """Return a mask of the content positions of a prompt.

    Parameters
    ----------
    kinds
        :class:`~actkit.schema.TokenKind`, dims ``(token,)``.
    first_is_content
        Whether position 0 can be content.

    Returns
    -------
    numpy.ndarray
        Boolean, dims ``(token,)``.
    """
    mask: np.ndarray = _IS_CONTENT[kinds]
    if not first_is_content:
        mask[:1] = False
    return mask


def kept_positions(kinds: np.ndarray, tokens: str, *, first_is_content: bool) -> np.ndarray:
    """Return the positions of a prompt that a cube keeps, in order.

    Parameters
    ----------
    kinds
        :class:`~actkit.schema.TokenKind`, dims ``(token,)``, without padding.
    tokens
        ``all``; ``last``: the last position of any kind; ``content``: content and generated tokens;
        ``mean``: ``MEAN_POSITION``, which stands for the mean over content tokens.
    first_is_content
        Whether position 0 can be content.

    Examples
    --------
    >>> kept_positions(np.array([TokenKind.SPECIAL, TokenKind.TEXT]), "content", first_is_content=True)
    array([1])
    """
    if tokens == "all":
        return np.arange(len(kinds))
    if tokens == "last":
        return np.array([len(kinds) - 1])
    content = content_positions(kinds, first_is_content=first_is_content)
    if tokens == "mean":
        return np.array([MEAN_POSITION] if content.any() else [], dtype=np.int64)
    return np.flatnonzero(content | (kinds == TokenKind.GENERATED))


def most_kept(kinds: np.ndarray, tokens: str, *, new_tokens: int) -> int:
    """Return the maximum number of positions kept of a prompt that is still to be continued."""
    if tokens in ("last", "mean"):
        return 1
    # counts position 0, since only after all prompts is it known whether that is content
    return len(kept_positions(kinds, tokens, first_is_content=True)) + new_tokens
