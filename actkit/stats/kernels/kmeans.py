"""k-means of vectors, the stability of its result, and its agreement with labels."""

from threading import Lock

import numpy as np
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, silhouette_score
from sklearn.metrics.cluster import expected_mutual_information

from .label_permutations import permuted_sources

AGREEMENTS = ("adjusted_rand", "adjusted_mutual_information")
_STARTS = 5
_MOST = 2000  # vectors of which the silhouette is computed, because its cost grows with their square
_LOCK = Lock()  # scikit-learn limits the threads of BLAS during a fit, and such limits must not overlap


def fit(x: np.ndarray, k: int, seed: int) -> KMeans | None:
    """Return k-means from the best of 5 starts; None if there are not more distinct vectors than clusters.

    Parameters
    ----------
    x
        Dims ``(sample, component)``.
    k
        Number of clusters.
    seed
        Random seed of the starts.
    """
    if len(np.unique(x, axis=0)) <= k:
        return None
    with _LOCK:
        return KMeans(k, n_init=_STARTS, random_state=seed).fit(x)


def nearest(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return the index of the centre nearest to each vector, dims ``(sample,)``."""
    return np.asarray(((centres**2).sum(axis=1) - 2 * x @ centres.T).argmin(axis=1))


def by_size(assignment: np.ndarray) -> np.ndarray:
    """Return an assignment with its clusters numbered by size, from the largest, then by their first vector.

    Examples
    --------
    >>> by_size(np.array([2, 0, 0, 1])).tolist()
    [1, 0, 0, 2]
    """
    _, firsts, codes, counts = np.unique(
        assignment, return_index=True, return_inverse=True, return_counts=True
    )
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[np.lexsort((firsts, -counts))] = np.arange(len(firsts))
    return rank[codes]


def silhouette(x: np.ndarray, assignment: np.ndarray, seed: int) -> float:
    """Return the mean silhouette of at most 2,000 vectors drawn at random; NaN if they are of one cluster."""
    if len(x) > _MOST:
        chosen = np.random.default_rng(seed).choice(len(x), _MOST, replace=False)
        x, assignment = x[chosen], assignment[chosen]
    return float(silhouette_score(x, assignment)) if len(np.unique(assignment)) > 1 else np.nan


def stability(x: np.ndarray, k: int, groups: np.ndarray, resamples: int, seed: int) -> float:
    """Return the mean adjusted Rand index of k-means fitted to two disjoint halves of the data.

    Parameters
    ----------
    x
        Dims ``(sample, component)``.
    k
        Number of clusters of k-means.
    groups
        What dependent vectors share, integers from 0, dims ``(sample,)``; halves consist of whole groups.
    resamples
        Number of random divisions into halves.
    seed
        Random seed of the divisions.

    Notes
    -----
    Both fits assign all vectors to their centres, and the two assignments are compared. NaN if a half has too
    few distinct vectors.
    """
    rng, scores = np.random.default_rng(seed), []
    n_groups = int(groups.max()) + 1
    for _ in range(resamples):
        in_first = (rng.permutation(n_groups) < n_groups // 2)[groups]
        halves = [fit(x[chosen], k, seed) for chosen in (in_first, ~in_first)]
        assignments = [nearest(x, half.cluster_centers_) for half in halves if half is not None]
        if len(assignments) < 2:
            return np.nan
        scores.append(adjusted_rand_score(*assignments))
    return float(np.mean(scores))


def agreement(
    assignment: np.ndarray, labels: np.ndarray, groups: np.ndarray, permutations: int, seed: int
) -> np.ndarray:
    """Return the agreement of an assignment with labels, its mean under permuted labels, and p.

    Parameters
    ----------
    assignment
        Cluster of each vector, dims ``(sample,)``.
    labels
        Integers, -1 where the label is missing, dims ``(sample,)``; these are left out.
    groups
        What dependent vectors share, as for :func:`stability`.
    permutations
        Number of permutations, as by :func:`~actkit.stats.kernels.label_permutations.permuted_sources`.
    seed
        Random seed of the permutations.

    Returns
    -------
    numpy.ndarray
        Dims ``(2, 3)``: for each of `AGREEMENTS`, the value, the mean of the null distribution, and p. NaN if
        there is one label only.
    """
    is_known = labels >= 0
    assignment, labels = assignment[is_known], labels[is_known]
    if len(np.unique(labels)) < 2:
        return np.full((len(AGREEMENTS), 3), np.nan)
    groups = np.unique(groups[is_known], return_inverse=True)[1]
    rows = labels[permuted_sources(labels, groups, permutations, seed=seed)]
    tables = np.stack([contingency(row, assignment) for row in (labels, *rows)])
    scores = np.stack([adjusted_rand(tables), adjusted_mutual_information(tables)])
    observed, null = scores[:, 0], scores[:, 1:]
    # permutations that equal the labels reach the same value up to rounding
    p = (1 + (null >= observed[:, None] - 1e-12).sum(axis=1)) / (1 + permutations)
    return np.stack([observed, null.mean(axis=1), p], axis=1)


def contingency(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how often each two values occur together, dims ``(first, second)``, from integers from 0."""
    shape = int(first.max()) + 1, int(second.max()) + 1
    return np.bincount(first * shape[1] + second, minlength=shape[0] * shape[1]).reshape(shape)


def adjusted_rand(tables: np.ndarray) -> np.ndarray:
    """Return the adjusted Rand index of contingency tables, dims ``(..., first, second)``.

    Examples
    --------
    >>> adjusted_rand(np.array([[[2, 0], [0, 3]], [[1, 1], [1, 2]]])).round(3).tolist()
    [1.0, -0.25]
    """
    n = tables.sum(axis=(-2, -1))
    pairs, first, second = (
        (counts * (counts - 1) / 2).sum(axis=axes)
        for counts, axes in (
            (tables, (-2, -1)),
            (tables.sum(axis=-1), -1),
            (tables.sum(axis=-2), -1),
        )
    )
    expected, largest = first * second / (n * (n - 1) / 2), (first + second) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(largest == expected, 1.0, (pairs - expected) / (largest - expected))


def adjusted_mutual_information(tables: np.ndarray) -> np.ndarray:
    """Return the adjusted mutual information of tables as for :func:`adjusted_rand`, arithmetic mean."""
    expected: dict[bytes, float] = {}  # depends on the margins alone, which few permutations change
    scores = []
    for table in tables:
        n, margins = int(table.sum()), (table.sum(axis=1), table.sum(axis=0))
        key = np.sort(margins[0]).tobytes()
        if key not in expected:
            present = table[margins[0] > 0][:, margins[1] > 0].astype(np.int64)
            expected[key] = float(expected_mutual_information(present, n))
        first, second, joint = (_entropy(counts) for counts in (*margins, table.ravel()))
        denominator = (first + second) / 2 - expected[key]
        scores.append((first + second - joint - expected[key]) / denominator if denominator else 1.0)
    return np.array(scores)


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
