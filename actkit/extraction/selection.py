"""What a cube keeps: of which blocks, and which positions of a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..schema import CONTENT_KINDS, VISION, TokenKind

MEAN_POSITION = -1
_IS_CONTENT = np.isin(range(len(TokenKind)), CONTENT_KINDS)


@dataclass(frozen=True)
class Rules:
    """What a cube keeps of what the blocks give.

    Parameters
    ----------
    layers
        Component to the blocks at which it is kept, sorted.
    axis
        The blocks on the cube's layer axis, sorted.
    tokens, storage, on_nonfinite
        The options of :class:`~actkit.config.Config`.
    first_is_content
        Whether position 0 counts as content.
    """

    layers: Mapping[str, tuple[int, ...]]
    axis: tuple[int, ...]
    tokens: str
    storage: str
    on_nonfinite: str
    first_is_content: bool


def layer_axis(layers: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Return the blocks on the layer axis: all that any component of the decoder is kept at."""
    return tuple(sorted({layer for name in layers if name != VISION for layer in layers[name]}))


def content_positions(kinds: np.ndarray, *, first_is_content: bool) -> np.ndarray:
    """Tell which positions of a prompt hold content.

    Parameters
    ----------
    kinds
        :class:`~actkit.schema.TokenKind`, dims ``(token,)``.
    first_is_content
        Whether position 0 counts, where it holds text.

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
    """Return the positions that a cube keeps of a prompt, in order.

    Parameters
    ----------
    kinds
        :class:`~actkit.schema.TokenKind`, dims ``(token,)``, pads left out.
    tokens
        ``all``; ``last``: the last one, whatever it holds; ``content``: content tokens and what was
        generated; ``mean``: ``MEAN_POSITION``, which stands for the mean over content tokens.
    first_is_content
        Whether position 0 counts as content.

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
    """Return the most positions that can be kept of a prompt which is yet to be continued."""
    if tokens in ("last", "mean"):
        return 1
    # position 0 is counted: whether it is content is known only once every prompt was seen
    return len(kept_positions(kinds, tokens, first_is_content=True)) + new_tokens
