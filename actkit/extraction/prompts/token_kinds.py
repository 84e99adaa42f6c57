"""Classification of the tokens of a prompt as text or template."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .chat_template import RenderedPrompt


@dataclass(frozen=True)
class Tokens:
    """Output of a tokenizer for one prompt.

    Parameters
    ----------
    ids
        Vocabulary indices, dims ``(token,)``.
    added
        Mask of the tokens that the tokenizer added, dims ``(token,)``.
    offsets
        Start and end of each token in the string, dims ``(token, 2)``; zeros if the tokenizer returns no
        offsets.
    """

    ids: np.ndarray
    added: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, ids: Any, added: Any, offsets: Any) -> "Tokens":
        """Convert the output of a tokenizer; ``offsets`` may be None."""
        ids = np.asarray(ids, dtype=np.int64)
        offsets = np.zeros((len(ids), 2)) if offsets is None else offsets
        return cls(ids, np.asarray(added, dtype=bool), np.asarray(offsets, dtype=np.int64).reshape(-1, 2))


def is_text(tokens: Tokens, prompt: RenderedPrompt) -> np.ndarray:
    """Return the mask of tokens that lie entirely in text, dims ``(token,)``."""
    if not prompt.has_template:
        return ~tokens.added
    starts, stops = tokens.offsets.T
    within = np.zeros(len(tokens.ids), dtype=bool)
    for start, stop in prompt.spans:
        within |= (starts >= start) & (starts < stop) & (stops <= stop)
    inside: np.ndarray = within & ~tokens.added
    return inside


def overlaps_text(tokens: Tokens, prompt: RenderedPrompt) -> np.ndarray:
    """Return the mask of tokens that overlap text, dims ``(token,)``."""
    starts, stops = tokens.offsets.T
    overlaps: np.ndarray = is_text(tokens, prompt)
    for start, stop in prompt.spans:
        overlaps |= (starts < stop) & (stops > start)
    return overlaps
