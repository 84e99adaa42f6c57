"""Intrinsic dimension of a set of vectors, and the mean cosines within and between clusters."""

from typing import NamedTuple

import numpy as np

from .magnitude import unit_scale

FEWEST = 20  # distinct points; fewer say nothing about a dimension
FEWEST_FOR_ERROR = 40  # distinct points, 10 in each quarter
_REPEATED = (
    1e-6  # distance, relative to the root mean square about the mean, within which points are the same
)
_QUARTERS = 4


class Dimension(NamedTuple):
    """TwoNN estimate of an intrinsic dimension.

    Parameters
    ----------
    dimension
        The estimate; NaN for fewer than 20 distinct points.
    se
        Standard error; NaN for fewer than 40 distinct points.
    n
        Number of distinct points.
    n_repeated
        Number of points that repeat another.
    """

    dimension: float
    se: float
    n: int
    n_repeated: int


class Cosine(NamedTuple):
    """A mean cosine, with its jackknife standard error over clusters."""

    mean: float
    se: float


def two_nn(vectors: np.ndarray, *, fraction: float = 0.9, splits: int = 15, seed: int = 0) -> Dimension:
    """Estimate the intrinsic dimension from the ratio of the distances to the two nearest neighbours.

    Parameters
    ----------
    vectors
        Independent points, dims ``(sample, hidden)``. Of points that repeat each other, one is kept.
    fraction
        Share of the points that is fitted; those with the largest ratios are left out.
    splits
        Number of random splits into quarters, from which the standard error is estimated.
    seed
        Random seed of the splits.

    Notes
    -----
    Facco, d'Errico, Rodriguez, Laio, Estimating the intrinsic dimension of datasets by a minimal neighborhood
    information, Scientific Reports 2017. The density has to be constant only up to the second neighbour.

    The standard error is that of the random group method (Wolter, Introduction to variance estimation,
    Springer 2007): the variance of estimates from disjoint quarters, divided by 4. A jackknife would double
    it, because neighbours change abruptly when points are left out. Memory grows with ``sample**2``.
    """
    points = vectors * unit_scale(vectors)
    points -= points.mean(axis=0)
    squares = np.square(points).sum(axis=1)
    squared = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    is_close = squared <= _REPEATED**2 * squares.mean()
    kept = np.flatnonzero(~np.tril(is_close, -1).any(axis=1))
    n, n_repeated = len(kept), len(points) - len(kept)
    if n < FEWEST:
        return Dimension(np.nan, np.nan, n, n_repeated)
    np.fill_diagonal(squared, np.inf)
    estimate = _slope(squared[np.ix_(kept, kept)], fraction)
    if n < FEWEST_FOR_ERROR:
        return Dimension(estimate, np.nan, n, n_repeated)
    rng = np.random.default_rng(seed)
    variances = []
    for _ in range(splits):
        quarters = np.array_split(rng.permutation(kept), _QUARTERS)
        estimates = [_slope(squared[np.ix_(quarter, quarter)], fraction) for quarter in quarters]
        variances.append(np.var(estimates, ddof=1) / _QUARTERS)
    return Dimension(estimate, float(np.sqrt(np.mean(variances))), n, n_repeated)


def cosine_means(vectors: np.ndarray, groups: np.ndarray) -> tuple[Cosine, Cosine, Cosine]:
    """Return the mean cosine between clusters, within clusters, and their difference.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    groups
        Cluster of each sample, dims ``(sample,)``. Every pair of clusters weighs equally, and so does every
        cluster of several samples.

    Notes
    -----
    Ethayarajh, How contextual are contextualized word representations?, EMNLP 2019. With the mean m of the
    unit vectors of each of G clusters, the mean over all pairs of different clusters is
    (‖Σ m‖² − Σ ‖m‖²) / (G (G − 1)), and so are the means without one cluster.
    """
    exact = vectors * unit_scale(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    members = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(members)
    count = len(sizes)
    means = np.zeros((count, exact.shape[1]))
    np.add.at(means, members, exact)
    means /= sizes[:, None]
    squares, total = np.square(means).sum(axis=1), means.sum(axis=0)
    whole = total @ total
    rest = whole - 2 * means @ total + squares - (squares.sum() - squares)
    # NaN where fewer than two clusters are left
    n_pairs = count * (count - 1) if count > 1 else np.nan
    n_pairs_without = (count - 1) * (count - 2) if count > 2 else np.nan
    between, between_without = (whole - squares.sum()) / n_pairs, rest / n_pairs_without
    with np.errstate(invalid="ignore", divide="ignore"):
        has_pairs = sizes > 1
        of_cluster = np.where(has_pairs, (sizes * squares - 1) / (sizes - 1), 0)
        within = of_cluster.sum() / has_pairs.sum()
        within_without = (of_cluster.sum() - of_cluster) / (has_pairs.sum() - has_pairs)
    return (
        Cosine(float(between), _standard_error(between_without)),
        Cosine(float(within), _standard_error(within_without)),
        Cosine(float(within - between), _standard_error(within_without - between_without)),
    )


def _slope(squared: np.ndarray, fraction: float) -> float:
    """Return the slope of −log(1 − F) on the log ratio of the two distances, through the origin."""
    first, second = np.partition(squared, 1, axis=1)[:, :2].T
    ratios = np.sort(np.log(second / first) / 2)
    kept = int(len(ratios) * fraction)
    x, y = ratios[:kept], -np.log1p(-np.arange(1, kept + 1) / len(ratios))
    return float(x @ y / (x @ x)) if x @ x > 0 else np.nan


def _standard_error(estimates: np.ndarray) -> float:
    """Return the jackknife standard error from leave-one-out estimates."""
    count = len(estimates)
    return float(np.sqrt((count - 1) / count * np.square(estimates - estimates.mean()).sum()))
