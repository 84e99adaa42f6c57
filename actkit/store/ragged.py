"""Samples of different lengths, one after the other, without pads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """The part of a variable that a window holds: what is kept of its samples, and no pads.

    Parameters
    ----------
    values
        Dims ``(layer, position)`` or ``(layer, position, hidden)``; a variable without layers has one.
        float32, float16, or uint16: the bits of bfloat16.
    starts, lengths
        Where each sample's positions begin, and how many it has, dims ``(sample,)``.
    layers
        The layers of the cube, by their places on its axis, that ``values`` holds; others are NaN.

    Examples
    --------
    >>> two = Ragged(np.arange(3, dtype="float32")[None], np.array([2, 0]), np.array([1, 2]), (1,))
    >>> two.dense(2, 2).tolist()
    [[[nan, nan], [nan, nan]], [[2.0, nan], [0.0, 1.0]]]
    """

    values: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    layers: tuple[int, ...] = (0,)

    @classmethod
    def of(cls, dense: np.ndarray, lengths: np.ndarray, layers: Sequence[int] | None = None) -> "Ragged":
        """View an array with pads, dims ``([layer,] sample, token, hidden)``, as one without."""
        stacked = dense if dense.ndim == 4 else dense[None]
        layers = tuple(range(len(stacked)) if layers is None else layers)
        _, samples, tokens, hidden = stacked.shape
        values = stacked[list(layers)].reshape(len(layers), samples * tokens, hidden)
        return cls(values, np.arange(samples) * tokens, np.asarray(lengths), layers)

    def take(self, row: int, positions: np.ndarray, out: np.ndarray) -> None:
        """Put positions into a float32 array, dims ``(position, hidden)``; any value where there is none."""
        values = self.values[row]
        if values.dtype == np.float32:
            np.take(values, positions, axis=0, out=out, mode="clip")
            return
        found = values.take(positions, axis=0, mode="clip")
        if values.dtype == np.uint16:
            bits = out.view(np.uint32)
            bits[...] = found
            bits <<= 16
        else:
            out[...] = found

    def dense(self, n_layers: int, n_tokens: int) -> np.ndarray:
        """Return float32 values with their pads, dims ``(layer, sample, token, …)``; not of bfloat16 bits."""
        shape = (n_layers, len(self.starts), n_tokens, *self.values.shape[2:])
        dense = np.full(shape, np.nan, dtype=np.float32)
        held = np.arange(n_tokens) < self.lengths[:, None]
        places = (self.starts[:, None] + np.arange(n_tokens))[held]
        for row, layer in enumerate(self.layers):
            dense[layer][held] = self.values[row, places]
        return dense
