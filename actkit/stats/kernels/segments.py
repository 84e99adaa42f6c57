"""Abrupt changes along layers: steps that stand out, and where a similarity matrix falls into blocks."""

import numpy as np

STANDS_OUT = 3.5
_MAD = 1.4826  # makes it the standard deviation of normal numbers


def robust_z(values: np.ndarray) -> np.ndarray:
    """Return how far values are above their median, in robust standard deviations, along the last axis.

    NaN where they do not vary: nothing then says what much would be.
    """
    median = np.nanmedian(values, axis=-1, keepdims=True)
    spread = _MAD * np.nanmedian(np.abs(values - median), axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (values - median) / spread, np.nan))


def transitions(distance: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Tell which steps are abrupt: those that stand out, and surely exceed what is usual.

    Parameters
    ----------
    distance
        Of neighbouring layers, dims ``(layer,)``.
    low
        Lower bounds of them.
    """
    z = robust_z(distance)
    others = np.array([np.nanmedian(np.delete(distance, at)) for at in range(len(distance))])
    return np.asarray((z >= STANDS_OUT) & (low > others))


def segment(similarity: np.ndarray, count: int) -> np.ndarray:
    """Cut layers into segments within which they are most alike.

    Parameters
    ----------
    similarity
        Dims ``(layer, layer_2)``.
    count
        How many segments.

    Returns
    -------
    numpy.ndarray
        The last layer of each segment but the last one.

    Notes
    -----
    Kernel change-point detection (Harchaoui, Cappé 2007), solved exactly by dynamic programming.
    """
    n = len(similarity)
    count = min(count, n)
    summed = np.zeros((n + 1, n + 1))
    summed[1:, 1:] = similarity.cumsum(axis=0).cumsum(axis=1)
    trace = np.concatenate([[0], np.diagonal(similarity).cumsum()])
    begin, end = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
    block = summed[end, end] - summed[begin, end] - summed[end, begin] + summed[begin, begin]
    with np.errstate(invalid="ignore", divide="ignore"):
        cost = np.where(end > begin, trace[end] - trace[begin] - block / (end - begin), np.inf)
    best, came = cost[0].copy(), []
    for _ in range(count - 1):
        through = best[:, None] + cost
        came.append(through.argmin(axis=0))
        best = through.min(axis=0)
    at, edges = n, []
    for step in reversed(came):
        at = int(step[at])
        edges.append(at - 1)
    return np.array(edges[::-1], dtype=np.int64)
