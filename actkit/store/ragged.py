"""Samples of different lengths, stored consecutively without padding."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """One window of a variable, without padding.

    Parameters
    ----------
    values
        Dims ``(layer, position)`` or ``(layer, position, hidden)``, with a single layer for variables without
        layers. float32, float16, uint16 with the bits of bfloat16, or the dtype of the array.
    starts, lengths
        First position and number of positions of each sample, dims ``(sample,)``.
    layers
        Indices along the layer axis of the cube of the layers in ``values``; other layers are NaN.

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
        """View a padded array, dims ``([layer,] sample, token, hidden)``, without its padding."""
        stacked = dense if dense.ndim == 4 else dense[None]
        layers = tuple(range(len(stacked)) if layers is None else layers)
        _, samples, tokens, hidden = stacked.shape
        values = stacked[list(layers)].reshape(len(layers), samples * tokens, hidden)
        return cls(values, np.arange(samples) * tokens, np.asarray(lengths), layers)

    def take(self, row: int, positions: np.ndarray, out: np.ndarray) -> None:
        """Copy positions into an array, dims ``(position, hidden)``; clip those out of range.

        The array has the dtype of the values, or float32.
        """
        values = self.values[row]
        if values.dtype == out.dtype:
            np.take(values, positions, axis=0, out=out, mode="clip")
            return
        vectors = values.take(positions, axis=0, mode="clip")
        if values.dtype == np.uint16:
            bits = out.view(np.uint32)
            bits[...] = vectors
            bits <<= 16
        else:
            out[...] = vectors

    def take_bits(self, row: int, positions: np.ndarray, out: np.ndarray) -> None:
        """Copy the bits of bfloat16 values at positions, as :meth:`take` copies their values."""
        np.take(self.values[row], positions, axis=0, out=out, mode="clip")

    def dense(self, n_layers: int, n_tokens: int) -> np.ndarray:
        """Return padded float32 values, dims ``(layer, sample, token, …)``, unless they are bfloat16 bits."""
        shape = (n_layers, len(self.starts), n_tokens, *self.values.shape[2:])
        dense = np.full(shape, np.nan, dtype=np.float32)
        is_token = np.arange(n_tokens) < self.lengths[:, None]
        positions = (self.starts[:, None] + np.arange(n_tokens))[is_token]
        for row, layer in enumerate(self.layers):
            dense[layer][is_token] = self.values[row, positions]
        return dense
