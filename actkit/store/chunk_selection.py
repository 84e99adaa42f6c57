"""Selections of an array, divided among its chunks."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Index = slice | np.ndarray


class AxisPart(NamedTuple):
    """The part of a selection along one axis that lies in one chunk.

    Attributes
    ----------
    chunk
        Index of the chunk in the grid of chunks.
    inside
        Indices in the chunk.
    outside
        Indices in the selection.
    """

    chunk: int
    inside: Index
    outside: Index


def full_key(key: Any, ndim: int) -> tuple[Any, ...]:
    """Return a key with one index, slice or array of indices per axis.

    Examples
    --------
    >>> full_key((0, ...), 3)
    (0, slice(None, None, None), slice(None, None, None))
    """
    keys = list(key) if isinstance(key, tuple) else [key]
    at = next((number for number, item in enumerate(keys) if item is Ellipsis), len(keys))
    keys[at : at + 1] = [slice(None)] * (ndim - len(keys) + (at < len(keys)))
    return tuple(keys)


def axis_parts(key: Any, length: int, chunk: int) -> tuple[list[AxisPart], int]:
    """Divide the selection along one axis among chunks.

    Parameters
    ----------
    key
        An index, a slice, or an array of indices or of flags.
    length, chunk
        Lengths of the axis and of a chunk.

    Returns
    -------
    parts : list of AxisPart
        In the order of the chunks.
    selected : int
        Number of indices that are selected; 1 for a single index.

    Raises
    ------
    IndexError
        If an index is out of range.

    Examples
    --------
    >>> axis_parts(slice(3, 9), 10, 4)[0][1]
    AxisPart(chunk=1, inside=slice(0, 4, None), outside=slice(1, 5, None))
    """
    if isinstance(key, slice):
        start, stop, step = key.indices(length)
        if step == 1:
            return list(_runs(start, stop, chunk)), max(stop - start, 0)
        indices = np.arange(start, stop, step)
    else:
        indices = _checked(np.atleast_1d(key), length)
    chunks = indices // chunk
    parts = []
    for number in np.unique(chunks).tolist():
        outside = np.flatnonzero(chunks == number)
        parts.append(AxisPart(number, _slice(indices[outside] - number * chunk), _slice(outside)))
    return parts, len(indices)


def _runs(start: int, stop: int, chunk: int) -> Iterator[AxisPart]:
    """Divide a range."""
    for number in range(start // chunk, -(-stop // chunk)) if start < stop else ():
        first, last = max(start, number * chunk), min(stop, (number + 1) * chunk)
        inside = slice(first - number * chunk, last - number * chunk)
        yield AxisPart(number, inside, slice(first - start, last - start))


def _checked(indices: np.ndarray, length: int) -> np.ndarray:
    """Return indices that count from the beginning."""
    if indices.dtype == bool:
        if len(indices) != length:
            raise IndexError(f"{len(indices)} flags for an axis of length {length}")
        return np.flatnonzero(indices)
    indices = indices.astype(np.int64, casting="same_kind") if indices.size else np.empty(0, np.int64)
    if indices.size and not -length <= indices.min() <= indices.max() < length:
        raise IndexError(f"an index is out of range for an axis of length {length}")
    return np.where(indices < 0, indices + length, indices)


def _slice(indices: np.ndarray) -> Index:
    """Return consecutive indices as a slice, which NumPy applies without a copy."""
    if indices[-1] - indices[0] == len(indices) - 1 and (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return indices


def region(indices: tuple[Index, ...]) -> tuple[Any, ...]:
    """Return an index of an array that applies the indices of each axis independently."""
    if sum(isinstance(index, np.ndarray) for index in indices) < 2:
        return indices
    # the slices come from `_slice` or `_runs`, and have a beginning, an end and no step
    whole = [np.arange(index.start, index.stop) if isinstance(index, slice) else index for index in indices]
    return np.ix_(*whole)
