"""Which tokens of a prompt hold its text, and which the words around it."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from .templates import Framed


@dataclass(frozen=True)
class Tokens:
    """What a tokenizer says of a prompt.

    Parameters
    ----------
    ids
        Vocabulary indices, dims ``(token,)``.
    added
        Which of them the tokenizer added, dims ``(token,)``.
    offsets
        First character that each stands for, and the one after its last, dims ``(token, 2)``; zeros
        where the tokenizer does not tell.
    """

    ids: np.ndarray
    added: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, ids: Any, added: Any, offsets: Any) -> "Tokens":
        """Take them from what a tokenizer gives; ``offsets`` may be None."""
        ids = np.asarray(ids, dtype=np.int64)
        offsets = np.zeros((len(ids), 2)) if offsets is None else offsets
        return cls(ids, np.asarray(added, dtype=bool), np.asarray(offsets, dtype=np.int64).reshape(-1, 2))


def is_text(tokens: Tokens, prompt: Framed) -> np.ndarray:
    """Tell which tokens hold text alone, dims ``(token,)``."""
    if not prompt.is_framed:
        return ~tokens.added
    starts, stops = tokens.offsets.T
    within = (starts >= prompt.start) & (starts < prompt.stop) & (stops <= prompt.stop)
    inside: np.ndarray = within & ~tokens.added
    return inside


def holds_text(tokens: Tokens, prompt: Framed) -> np.ndarray:
    """Tell which tokens hold some of the text, dims ``(token,)``."""
    starts, stops = tokens.offsets.T
    overlaps = (starts < prompt.stop) & (stops > prompt.start)
    touched: np.ndarray = overlaps | is_text(tokens, prompt)
    return touched
