"""Kernels: for each row of a matrix the most similar row of another, in blocks, and the reverse."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse

MATCHED = 0.7  # cosine of two decoder directions (Paulo and Belrose 2025, arXiv 2501.16615)
_BLOCK_VALUES = 2**22  # similarities held at once


@dataclass(frozen=True)
class NearestRows:
    """Most similar rows of two matrices.

    Attributes
    ----------
    best, similarity
        For each row of the first, the index of the most similar row of the second, and their similarity; -1
        and NaN if it has none. Dims ``(row,)``.
    other_best, other_similarity
        The reverse, dims ``(other_row,)``.
    """

    best: np.ndarray
    similarity: np.ndarray
    other_best: np.ndarray
    other_similarity: np.ndarray

    @property
    def mutual(self) -> np.ndarray:
        """Whether a row and its best match are each the best match of the other, dims ``(row,)``."""
        has = self.best >= 0
        returned = self.other_best[np.where(has, self.best, 0)]
        return np.asarray(has & (returned == np.arange(len(self.best))))


def nearest_rows(
    blocks: Callable[[slice], np.ndarray],
    n_rows: int,
    n_others: int,
    is_row: np.ndarray,
    is_other: np.ndarray,
) -> NearestRows:
    """Return the most similar rows; of equal ones the first.

    Parameters
    ----------
    blocks
        Returns the similarities of a slice of rows with all others, dims ``(row, other_row)``.
    n_rows, n_others
        Number of rows of both matrices.
    is_row, is_other
        Rows that take part, dims ``(row,)`` and ``(other_row,)``.
    """
    best, similarity = np.full(n_rows, -1), np.full(n_rows, np.nan, np.float32)
    other_best = np.full(n_others, -1)
    largest = np.full(n_others, -np.inf, np.float32)
    if is_row.any() and is_other.any():
        for rows in _slices(n_rows, n_others):
            block = np.where(is_other, blocks(rows), -np.inf)
            columns = block.argmax(axis=1)
            taken = is_row[rows]
            best[rows] = np.where(taken, columns, -1)
            similarity[rows] = np.where(taken, block[np.arange(len(block)), columns], np.nan)
            block[~taken] = -np.inf
            places = block.argmax(axis=0)
            values = block[places, np.arange(n_others)]
            is_better = values > largest
            other_best[is_better], largest[is_better] = places[is_better] + rows.start, values[is_better]
    other_best = np.where(is_other, other_best, -1)
    return NearestRows(best, similarity, other_best, np.where(other_best >= 0, largest, np.nan))


def cosine_matches(ours: torch.Tensor, theirs: torch.Tensor) -> NearestRows:
    """Return the most similar rows by cosine; rows of length 0 have no match.

    Parameters
    ----------
    ours, theirs
        Directions, dims ``(row, hidden)`` and ``(other_row, hidden)``.
    """
    rows, others = _unit(ours), _unit(theirs)

    def block(part: slice) -> np.ndarray:
        products: np.ndarray = (rows[part] @ others.T).clamp(-1, 1).cpu().numpy()
        return products

    is_row, is_other = (unit.any(dim=1).cpu().numpy() for unit in (rows, others))
    return nearest_rows(block, len(rows), len(others), is_row, is_other)


def correlation_matches(ours: sparse.csr_array, theirs: sparse.csr_array) -> NearestRows:
    """Return the features of largest Pearson correlation over tokens; constant ones have no match.

    Parameters
    ----------
    ours, theirs
        Values of features at the same tokens, dims ``(token, feature)`` and ``(token, other_feature)``.
    """
    n_tokens = ours.shape[0]
    means, deviations = zip(*(_moments(values) for values in (ours, theirs)), strict=True)
    rows = ours.tocsc()

    def block(part: slice) -> np.ndarray:
        products = (rows[:, part].T @ theirs).toarray() / n_tokens
        covariance = products - np.outer(means[0][part], means[1])
        scale = np.outer(deviations[0][part], deviations[1])
        correlations = np.divide(covariance, scale, out=np.full_like(covariance, -np.inf), where=scale > 0)
        return np.asarray(correlations.clip(max=1), np.float32)

    is_row, is_other = (spread > 0 for spread in deviations)
    return nearest_rows(block, ours.shape[1], theirs.shape[1], is_row, is_other)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    unit: torch.Tensor = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return unit


def _moments(values: sparse.csr_array) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of each column."""
    values = values.astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0)).ravel()
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0))


def _slices(n_rows: int, n_others: int) -> Iterator[slice]:
    step = max(1, _BLOCK_VALUES // max(1, n_others))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))
