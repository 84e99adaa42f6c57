"""Normal densities of the differences between two sets of scores, by block of rows."""

from collections.abc import Iterator

import numpy as np

_FARTHEST = 20  # standard deviations beyond which a density is 0
_PAIRS = 2**20  # pairs whose densities are held at once


def normal_densities(
    rows: np.ndarray, columns: np.ndarray, width: float
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Yield the normal densities of all differences, block by block, so that memory is bounded.

    Parameters
    ----------
    rows, columns
        Scores, dims ``(row,)`` and ``(column,)``.
    width
        Standard deviation.

    Yields
    ------
    tuple
        The rows of the block; their differences to the columns in standard deviations, and the densities,
        both with dims ``(row, column)``.
    """
    step = max(_PAIRS // max(len(columns), 1), 1)
    for start in range(0, len(rows), step):
        block = slice(start, min(start + step, len(rows)))
        distance = (rows[block, None] - columns) / width
        density = np.where(np.abs(distance) < _FARTHEST, np.exp(-np.square(distance) / 2), 0)
        yield block, distance, density / (width * np.sqrt(2 * np.pi))
