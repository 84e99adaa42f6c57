"""Packing of a batch: its positions one after the other, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ...schema import TokenKind
from ..prompts.encoder import Prompt
from .spec import Rules, content_positions, kept_positions


@dataclass(frozen=True)
class Packing:
    """Indices of the positions of a batch.

    Parameters
    ----------
    real
        Indices of real positions among all positions of the padded batch, sample by sample, dims
        ``(position,)``; None without padding.
    lengths
        Number of real positions of each sample, dims ``(sample,)``.
    content
        Indices of content tokens among the real positions, sample by sample, dims ``(position,)``.
    content_lengths
        Number of content tokens of each sample, dims ``(sample,)``.
    kept
        Positions kept of each prompt.
    keeps_means
        Whether means over content tokens are kept instead of tokens.
    generated_lengths
        Number of generated positions of each sample, which are its last ones, dims ``(sample,)``.
    """

    real: np.ndarray | None
    lengths: np.ndarray
    content: np.ndarray
    content_lengths: np.ndarray
    kept: list[np.ndarray]
    keeps_means: bool = False
    generated_lengths: np.ndarray | int = 0
    _moved: dict[tuple[str, torch.device], torch.Tensor] = field(default_factory=dict, repr=False)

    @cached_property
    def starts(self) -> np.ndarray:
        """Index of the first real position of each sample, dims ``(sample,)``."""
        return np.asarray(np.cumsum(self.lengths) - self.lengths)

    @cached_property
    def kept_lengths(self) -> np.ndarray:
        """Number of positions kept of each sample, dims ``(sample,)``."""
        return np.array([len(kept) for kept in self.kept], dtype=np.int64)

    @cached_property
    def keeps_all(self) -> bool:
        """Whether every real position is kept."""
        return bool((self.kept_lengths == self.lengths).all()) and not self.keeps_means

    @cached_property
    def chosen(self) -> np.ndarray:
        """Indices of kept positions among the real ones, or of samples if means are kept."""
        if self.keeps_means:
            return np.flatnonzero(self.kept_lengths)
        return np.concatenate([start + kept for start, kept in zip(self.starts, self.kept, strict=True)])

    @cached_property
    def last(self) -> np.ndarray:
        """Index of the last content token of each sample that has one, dims ``(sample,)``."""
        ends = np.cumsum(self.content_lengths)[self.content_lengths > 0]
        return np.asarray(self.content[ends - 1])

    @cached_property
    def prompt_ends(self) -> np.ndarray:
        """Index of the last position of the prompt of each sample, dims ``(sample,)``."""
        return np.asarray(self.starts + self.lengths - self.generated_lengths - 1)

    @cached_property
    def with_content(self) -> np.ndarray:
        """Indices of the samples that have content tokens."""
        return np.flatnonzero(self.content_lengths)

    @cached_property
    def owners(self) -> np.ndarray:
        """Index of the sample of each real position, dims ``(position,)``."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def runs(self) -> list[list[slice]]:
        """Content tokens of each sample, as contiguous slices of real positions."""
        slices = []
        for content in np.split(self.content, np.cumsum(self.content_lengths)[:-1]):
            runs = np.split(content, np.flatnonzero(np.diff(content) > 1) + 1)
            slices.append([slice(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)])
        return slices

    @cached_property
    def cuts(self) -> np.ndarray:
        """Lengths of the runs of content tokens and of the gaps before, between and after them."""
        edges = [edge for runs in self.runs for run in runs for edge in (run.start, run.stop)]
        return np.diff([0, *edges, int(self.lengths.sum())])

    @cached_property
    def run_counts(self) -> np.ndarray:
        """Number of runs of content tokens of each sample, dims ``(sample,)``."""
        return np.array([len(runs) for runs in self.runs])

    def on(self, name: str, device: torch.device) -> torch.Tensor:
        """Return one of the arrays as a tensor on a device, to which it is copied once."""
        key = (name, device)
        if key not in self._moved:
            tensor = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
            if device.type == "cuda":
                tensor = tensor.pin_memory()
            self._moved[key] = tensor.to(device, non_blocking=True)
        return self._moved[key]


def pack(prompts: Sequence[Prompt], rules: Rules) -> Packing:
    """Return the packing of prompts that are padded on the right."""
    lengths = np.array([len(prompt.ids) for prompt in prompts], dtype=np.int64)
    longest = int(lengths.max())
    real = np.flatnonzero(np.arange(longest)[None] < lengths[:, None])
    masks = [content_positions(prompt.kinds, first_is_content=rules.first_is_content) for prompt in prompts]
    kept = [
        kept_positions(prompt.kinds, rules.keep_tokens, first_is_content=rules.first_is_content)
        for prompt in prompts
    ]
    return Packing(
        None if len(real) == longest * len(prompts) else real,
        lengths,
        np.flatnonzero(np.concatenate(masks)),
        np.array([mask.sum() for mask in masks], dtype=np.int64),
        kept,
        rules.keep_tokens == "mean",
        np.array([(prompt.kinds == TokenKind.GENERATED).sum() for prompt in prompts], dtype=np.int64),
    )


def pack_whole(lengths: Sequence[int]) -> Packing:
    """Return the packing of contiguous sequences, all of whose positions are kept and are content."""
    counts = np.array(lengths, dtype=np.int64)
    return Packing(None, counts, np.arange(counts.sum()), counts, [np.arange(length) for length in lengths])
