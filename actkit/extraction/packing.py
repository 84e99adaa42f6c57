"""The positions of a batch, put one after the other without pads."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from .prompts.encoding import Prompt
from .selection import Rules, content_positions, kept_positions


@dataclass(frozen=True)
class Packing:
    """Where the positions of a batch lie.

    Parameters
    ----------
    real
        Of each position that holds a token, its place among all, pads included, sample by sample; or
        None where there are no pads. Dims ``(position,)``.
    lengths
        How many each sample has, dims ``(sample,)``.
    content
        Places of content tokens among the real positions, sample by sample, dims ``(position,)``.
    content_lengths
        How many each sample has, dims ``(sample,)``.
    kept
        Of each sample, the places that are kept, in its prompt.
    keeps_means
        Whether means over content tokens are kept in place of tokens.
    """

    real: np.ndarray | None
    lengths: np.ndarray
    content: np.ndarray
    content_lengths: np.ndarray
    kept: list[np.ndarray]
    keeps_means: bool = False
    _moved: dict[tuple[str, torch.device], torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each sample begins among the real positions, dims ``(sample,)``."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def kept_lengths(self) -> np.ndarray:
        """How many positions are kept of each sample, dims ``(sample,)``."""
        return np.array([len(kept) for kept in self.kept], dtype=np.int64)

    @cached_property
    def keeps_all(self) -> bool:
        """Whether every real position is kept."""
        return bool((self.kept_lengths == self.lengths).all()) and not self.keeps_means

    @cached_property
    def chosen(self) -> np.ndarray:
        """Places of kept positions among the real ones; of samples where means are kept."""
        if self.keeps_means:
            return np.flatnonzero(self.kept_lengths)
        return np.concatenate([start + kept for start, kept in zip(self.starts, self.kept, strict=True)])

    @cached_property
    def last(self) -> np.ndarray:
        """Place of the last content token of each sample that has one, dims ``(sample,)``."""
        ends = np.cumsum(self.content_lengths)[self.content_lengths > 0]
        return np.asarray(self.content[ends - 1])

    @cached_property
    def with_content(self) -> np.ndarray:
        """Samples that have content tokens."""
        return np.flatnonzero(self.content_lengths)

    @cached_property
    def owners(self) -> np.ndarray:
        """The sample of each real position, dims ``(position,)``."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def runs(self) -> list[list[slice]]:
        """The content tokens of each sample, as runs of real positions."""
        found = []
        for places in np.split(self.content, np.cumsum(self.content_lengths)[:-1]):
            cuts = np.flatnonzero(np.diff(places) > 1) + 1
            found.append([slice(int(run[0]), int(run[-1]) + 1) for run in np.split(places, cuts) if len(run)])
        return found

    @cached_property
    def cuts(self) -> np.ndarray:
        """Lengths of the runs of content tokens, and of what lies before, between and behind them."""
        edges = [edge for runs in self.runs for run in runs for edge in (run.start, run.stop)]
        return np.diff([0, *edges, int(self.lengths.sum())])

    @cached_property
    def run_counts(self) -> np.ndarray:
        """How many runs of content tokens each sample has, dims ``(sample,)``."""
        return np.array([len(runs) for runs in self.runs])

    def on(self, name: str, device: torch.device) -> torch.Tensor:
        """Return one of the arrays as a tensor, which is moved to a device once."""
        key = (name, device)
        if key not in self._moved:
            tensor = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
            if device.type == "cuda":
                tensor = tensor.pin_memory()
            self._moved[key] = tensor.to(device, non_blocking=True)
        return self._moved[key]


def pack(prompts: Sequence[Prompt], rules: Rules) -> Packing:
    """Find the positions of prompts that are padded on the right."""
    lengths = np.array([len(prompt.ids) for prompt in prompts], dtype=np.int64)
    longest = int(lengths.max())
    real = np.flatnonzero(np.arange(longest)[None] < lengths[:, None])
    masks = [content_positions(prompt.kinds, first_is_content=rules.first_is_content) for prompt in prompts]
    kept = [
        kept_positions(prompt.kinds, rules.tokens, first_is_content=rules.first_is_content)
        for prompt in prompts
    ]
    return Packing(
        None if len(real) == longest * len(prompts) else real,
        lengths,
        np.flatnonzero(np.concatenate(masks)),
        np.array([mask.sum() for mask in masks], dtype=np.int64),
        kept,
        rules.tokens == "mean",
    )


def pack_whole(lengths: Sequence[int]) -> Packing:
    """Take every position of sequences that lie one after the other: all are kept, and are content."""
    own = np.array(lengths, dtype=np.int64)
    return Packing(None, own, np.arange(own.sum()), own, [np.arange(length) for length in lengths])
