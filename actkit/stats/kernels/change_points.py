"""Change points along layers: outlying steps, and segmentation of a layer × layer similarity matrix."""

import numpy as np

Z_THRESHOLD = 3.5  # of the modified z-score (Iglewicz and Hoaglin 1993)
_MAD = 1.4826  # scales the MAD to the standard deviation of a normal distribution


def robust_z(values: np.ndarray) -> np.ndarray:
    """Return the modified z-score along the last axis: the distance above the median over 1.4826 MAD.

    NaN if the values do not vary or are all NaN, because they then give no scale to compare with.

    Notes
    -----
    Iglewicz, Hoaglin, How to detect and handle outliers, ASQC Quality Press 1993; they multiply by
    0.6745 = 1/1.4826.
    """
    median = _median(values)
    spread = _MAD * _median(np.abs(values - median))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(spread > 0, (values - median) / spread, np.nan))


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median along the last axis, which is kept, ignoring NaN; NaN if all values are NaN."""
    values = np.asarray(values)
    unknown = np.isnan(values).all(axis=-1, keepdims=True)
    return np.where(unknown, np.nan, np.nanmedian(np.where(unknown, 0, values), axis=-1, keepdims=True))


def transitions(distance: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return which steps are change points: outliers whose lower bound exceeds the median of the other steps.

    Parameters
    ----------
    distance
        Distances between adjacent layers, dims ``(layer,)``.
    low
        Lower confidence bounds of the distances, dims ``(layer,)``.
    """
    z = robust_z(distance)
    medians_of_others = np.array([_median(np.delete(distance, step)).item() for step in range(len(distance))])
    return np.asarray((z >= Z_THRESHOLD) & (low > medians_of_others))


def segment(similarity: np.ndarray, count: int) -> np.ndarray:
    """Divide layers into contiguous segments of greatest within-segment similarity.

    Parameters
    ----------
    similarity
        Dims ``(layer, layer_2)``.
    count
        Number of segments.

    Returns
    -------
    numpy.ndarray
        The last layer of each segment except the final one.

    Notes
    -----
    Kernel change-point detection (Harchaoui, Cappé, Retrospective multiple change-point estimation with
    kernels, IEEE SSP 2007), solved exactly by dynamic programming.
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
    lowest, previous = cost[0].copy(), []
    for _ in range(count - 1):
        candidates = lowest[:, None] + cost
        previous.append(candidates.argmin(axis=0))
        lowest = candidates.min(axis=0)
    position, edges = n, []
    for origins in reversed(previous):
        position = int(origins[position])
        edges.append(position - 1)
    return np.array(edges[::-1], dtype=np.int64)
