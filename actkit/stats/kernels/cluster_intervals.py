"""95% intervals of ratios of sums over clusters: shares and means of dependent values."""

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import t

_LEVEL = 0.05


def ratio(sums: csr_array, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ratios of totals over clusters, and their squared standard errors.

    Parameters
    ----------
    sums
        Numerator of each cluster, dims ``(cluster, feature)``.
    counts
        Denominator of each cluster, dims ``(cluster,)``; positive.

    Returns
    -------
    tuple of numpy.ndarray
        Dims ``(feature,)``; the squared error is NaN with one cluster.

    Notes
    -----
    Linearisation of a ratio estimator: Cochran, Sampling techniques, 3rd edition, Wiley 1977, section 6.3.
    """
    n_clusters, total = len(counts), counts.sum()
    estimate = sums.sum(axis=0) / total
    # sum over clusters of (sum - estimate * count) squared, without a dense matrix
    squares = sums.power(2).sum(axis=0) - 2 * estimate * (counts @ sums) + estimate**2 * (counts @ counts)
    if n_clusters < 2:
        return estimate, np.full(len(estimate), np.nan)
    return estimate, n_clusters / (n_clusters - 1) * np.maximum(squares, 0) / total**2


def share_interval(share: np.ndarray, variance: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a 95% interval of a share.

    Parameters
    ----------
    share, variance
        From :func:`ratio`.
    n_clusters
        Number of clusters.

    Notes
    -----
    Wilson's interval with the number of independent observations that would have the same variance, and a t
    quantile: Franco, Little, Louis, Slud, Comparative study of confidence intervals for proportions in
    complex sample surveys, Journal of Survey Statistics and Methodology 2019. At a share of 0 or 1, which has
    no variance, it is the number of clusters.
    """
    if n_clusters < 2:
        return np.full(len(share), np.nan), np.full(len(share), np.nan)
    spread = share * (1 - share)
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.where((variance > 0) & (spread > 0), spread / variance, n_clusters)
    z2 = t.ppf(1 - _LEVEL / 2, n_clusters - 1) ** 2
    centre = (share + z2 / (2 * size)) / (1 + z2 / size)
    half = np.sqrt(z2 * (spread / size + z2 / (4 * size**2))) / (1 + z2 / size)
    return np.maximum(centre - half, 0), np.minimum(centre + half, 1)


def mean_interval(mean: np.ndarray, variance: np.ndarray, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a 95% t interval of a mean; arguments as for :func:`share_interval`."""
    half = t.ppf(1 - _LEVEL / 2, max(n_clusters - 1, 1)) * np.sqrt(variance)
    return mean - half, mean + half
