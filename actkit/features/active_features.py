"""Features of a batch that are active, and their products with the weights of an autoencoder.

Of the features of a token, some percent are active. On the CPU, only these are kept, as a compressed sparse
matrix: of the five matrix products of a training step, the encoder's alone is dense (docs/decisions/0062).
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import scipy.sparse
import torch

_CHUNK_VALUES = 2**23  # pre-activations computed at once, 32 MB
_MARGIN = 0.8  # of the previous smallest active value: far fewer values than all exceed it


class Gradients(NamedTuple):
    """Gradients of the weights through the active features; dims as in :class:`Features`."""

    w_dec: torch.Tensor
    w_enc: torch.Tensor
    b_enc: torch.Tensor


class Features(Protocol):
    """Active features of a batch.

    The weights of the encoder and of the decoder have the dims ``(feature, hidden)``.
    """

    @property
    def n_active(self) -> int:
        """Number of active features of all tokens."""

    @property
    def smallest(self) -> float:
        """Smallest value of an active feature; 0 if none is active."""

    def decode(self, w_dec: torch.Tensor) -> torch.Tensor:
        """Return the product with the decoder, dims ``(token, hidden)``."""

    def gradients(self, gradient: torch.Tensor, x: torch.Tensor, w_dec: torch.Tensor) -> Gradients:
        """Return the gradients of the weights.

        Parameters
        ----------
        gradient
            Gradient of the reconstruction, dims ``(token, hidden)``.
        x
            Input of the encoder, dims ``(token, hidden)``.
        w_dec
            Weights of the decoder.
        """

    def fired(self) -> torch.Tensor:
        """Return which features are active at any token, dims ``(feature)``."""


def encode_largest(
    x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor, count: int, last: float = 0.0
) -> Features:
    """Return the largest positive features of a whole batch (BatchTopK).

    Parameters
    ----------
    x
        Input of the encoder, dims ``(token, hidden)``.
    w_enc, b_enc
        Weights of the encoder, dims ``(feature, hidden)`` and ``(feature)``.
    count
        Number of features to keep; ties with the smallest are kept too.
    last
        Smallest active feature of the previous batch; it speeds up the selection, and does not change it.
    """
    if not _is_sparse_fast(x.device.type):
        dense = torch.addmm(b_enc, x, w_enc.t()).relu_()
        bound = _MARGIN * last
        candidates = dense[dense > bound]
        if len(candidates) < count:
            bound, candidates = 0.0, dense[dense > 0]
        if len(candidates) >= count:
            smallest = candidates.topk(count, sorted=False).values.min()
            dense.mul_(dense >= smallest)
        return DenseFeatures.of(dense)
    bound = _MARGIN * last if last > 0 else _first_bound(x, w_enc, b_enc, count)
    while True:
        indices, values = _above(x, w_enc, b_enc, bound)
        if len(values) >= count or bound == 0:
            break
        bound = bound / 2 if bound > 1e-6 else 0.0
    if len(values) > count:
        kept = values >= np.partition(values, len(values) - count)[len(values) - count]
        indices, values = indices[kept], values[kept]
    return SparseFeatures.of(indices, values, len(x), len(w_enc))


def encode_top(x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor, k: int) -> Features:
    """Return the `k` largest positive features of each token (TopK); parameters as for ``encode_largest``."""
    indices, values = [], []
    for start, pre in _chunks(x, w_enc, b_enc):
        top = pre.topk(k, dim=1, sorted=False)
        if not _is_sparse_fast(x.device.type):
            dense = torch.zeros_like(pre).scatter_(1, top.indices, top.values.relu_())
            indices.append(dense)
            continue
        rows = torch.arange(start, start + len(pre))[:, None]
        flat, found = (rows * len(w_enc) + top.indices).flatten().numpy(), top.values.flatten().numpy()
        order = np.argsort(flat)  # rows keep their place, columns become sorted
        order = order[found[order] > 0]
        indices.append(torch.from_numpy(flat[order]))
        values.append(found[order])
    if not values:
        return DenseFeatures.of(torch.cat(indices))
    return SparseFeatures.of(torch.cat(indices).numpy(), np.concatenate(values), len(x), len(w_enc))


def encode_above(x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor, threshold: float) -> Features:
    """Return the features above a threshold (JumpReLU); parameters as for ``encode_largest``."""
    threshold = max(threshold, 0.0)
    if not _is_sparse_fast(x.device.type):
        pre = torch.addmm(b_enc, x, w_enc.t())
        return DenseFeatures.of(pre.mul_(pre > threshold))
    return SparseFeatures.of(*_above(x, w_enc, b_enc, threshold), len(x), len(w_enc))


@dataclass(frozen=True, eq=False)
class DenseFeatures:
    """Features with their zeros, dims ``(token, feature)``: for accelerators."""

    values: torch.Tensor
    n_active: int
    smallest: float

    @classmethod
    def of(cls, values: torch.Tensor) -> "DenseFeatures":
        """Return features from their values, which are 0 or positive."""
        active = values[values > 0]
        return cls(values, len(active), float(active.min()) if len(active) else 0.0)

    def decode(self, w_dec: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self.values @ w_dec

    def gradients(self, gradient: torch.Tensor, x: torch.Tensor, w_dec: torch.Tensor) -> Gradients:  # noqa: D102
        of_features = (gradient @ w_dec.t()).mul_(self.values > 0)
        return Gradients(self.values.t() @ gradient, of_features.t() @ x, of_features.sum(0))

    def fired(self) -> torch.Tensor:  # noqa: D102
        return (self.values > 0).any(0)


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """Active features as a compressed sparse matrix, by token and by feature.

    Parameters
    ----------
    starts, columns, values
        Matrix by token: where each token begins, and the feature and value of each entry.
    by_feature
        The same matrix transposed; its values are positions of entries.
    """

    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor
    by_feature: scipy.sparse.csr_matrix
    smallest: float

    @classmethod
    def of(cls, indices: np.ndarray, values: np.ndarray, n_tokens: int, n_features: int) -> "SparseFeatures":
        """Return features from their sorted indices in the dense matrix, row after row."""
        starts = np.searchsorted(indices, np.arange(n_tokens + 1, dtype=np.int64) * n_features)
        columns = (indices % n_features).astype(np.int32)
        shape, starts = (n_tokens, n_features), starts.astype(np.int32)
        positions = np.arange(len(values), dtype=np.int32)
        by_feature = scipy.sparse.csr_matrix((positions, columns, starts), shape=shape).T.tocsr()
        smallest = float(values.min()) if len(values) else 0.0
        by_token = (torch.from_numpy(starts), torch.from_numpy(columns), torch.from_numpy(values))
        return cls(*by_token, by_feature, smallest)

    @property
    def n_active(self) -> int:
        """Number of active features of all tokens."""
        return len(self.values)

    def decode(self, w_dec: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return self._matrix(self.values, len(w_dec)) @ w_dec

    def gradients(self, gradient: torch.Tensor, x: torch.Tensor, w_dec: torch.Tensor) -> Gradients:  # noqa: D102
        pattern = self._matrix(torch.zeros_like(self.values), len(w_dec))
        of_features = torch.sparse.sampled_addmm(pattern, gradient, w_dec.t(), beta=0.0).values()
        b_enc = np.bincount(self.columns.numpy(), of_features.numpy(), minlength=len(w_dec))
        return Gradients(
            self._transposed(self.values) @ gradient,
            self._transposed(of_features) @ x,
            torch.from_numpy(b_enc.astype(np.float32)),
        )

    def fired(self) -> torch.Tensor:  # noqa: D102
        return torch.from_numpy(np.diff(self.by_feature.indptr) > 0)

    def _matrix(self, values: torch.Tensor, n_features: int) -> torch.Tensor:
        size = (len(self.starts) - 1, n_features)
        return _csr(self.starts, self.columns, values, size)

    def _transposed(self, values: torch.Tensor) -> torch.Tensor:
        starts, tokens = (
            torch.from_numpy(part) for part in (self.by_feature.indptr, self.by_feature.indices)
        )
        ordered = values[torch.from_numpy(self.by_feature.data).long()]
        return _csr(starts, tokens, ordered, self.by_feature.shape)


@cache
def _is_sparse_fast(device: str) -> bool:
    return device == "cpu" and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def _csr(
    starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, size=size, check_invariants=False)


def _chunks(x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the pre-activations of some tokens at a time, so that those of a batch need no memory."""
    size = max(1, _CHUNK_VALUES // len(w_enc))
    for start in range(0, len(x), size):
        yield start, torch.addmm(b_enc, x[start : start + size], w_enc.t())


def _above(
    x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor, bound: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices and values of the features above a bound, row after row."""
    indices, values = [], []
    for start, pre in _chunks(x, w_enc, b_enc):
        flat = pre.view(-1).numpy()
        above = np.flatnonzero(flat > bound)
        indices.append(above + start * len(w_enc))
        values.append(flat[above])
    return np.concatenate(indices), np.concatenate(values)


def _first_bound(x: torch.Tensor, w_enc: torch.Tensor, b_enc: torch.Tensor, count: int) -> float:
    """Return a bound that about as many features exceed as are wanted, from the first tokens."""
    _, pre = next(_chunks(x, w_enc, b_enc))
    flat = pre.view(-1).numpy()
    wanted = min(max(1, count * len(pre) // len(x)), flat.size)
    return max(0.0, _MARGIN * float(np.partition(flat, flat.size - wanted)[flat.size - wanted]))
