"""Correlations of tokens between layers, with standard errors by cluster."""

import numpy as np
from scipy.stats import rankdata

_Z95 = 1.959963984540054
_NEAR_ONE = 1 - 1e-12


def vector_sums(x: np.ndarray) -> np.ndarray:
    """Return sums over tokens of the cosine, and of Pearson's correlation, of vectors in two layers.

    Parameters
    ----------
    x
        Dims ``(layer, token, hidden)``.

    Returns
    -------
    numpy.ndarray
        Dims ``(2, layer, layer_2)``: the cosine, and the correlation over ``hidden``. NaN if a vector has no
        direction.
    """
    x = x.astype(np.float64)
    sums = []
    for vectors in (x, x - x.mean(axis=-1, keepdims=True)):
        with np.errstate(invalid="ignore", divide="ignore"):
            unit = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
        flat = unit.reshape(len(x), -1)
        sums.append(flat @ flat.T)
    return np.stack(sums)


def mean_with_error(
    sums: np.ndarray, counts: np.ndarray, clusters: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return a mean over tokens, and its standard error by cluster.

    Parameters
    ----------
    sums
        Sums over the tokens of each sample, dims ``(sample, ...)``.
    counts
        Number of these tokens, dims ``(sample,)``.
    clusters
        Cluster of each sample, integers from 0, dims ``(sample,)``.

    Returns
    -------
    tuple of numpy.ndarray
        The mean, in which tokens weigh equally, and its standard error, NaN with fewer than 2 clusters.

    Notes
    -----
    The mean is a ratio of two sums over clusters; the error is that of the linearised ratio (Cochran,
    Sampling techniques, 1977, section 6.13).
    """
    mean = sums.sum(axis=0) / counts.sum()
    n_clusters = int(clusters.max(initial=-1)) + 1
    if n_clusters < 2:
        return mean, np.full(mean.shape, np.nan)
    residuals = np.zeros((n_clusters, *mean.shape))
    np.add.at(residuals, clusters, sums - mean * counts.reshape(-1, *[1] * mean.ndim))
    squares = n_clusters / (n_clusters - 1) * (residuals**2).sum(axis=0)
    return mean, np.sqrt(squares) / counts.sum()


def pearson_correlations(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation over tokens of a quantity between layers, with 95% intervals.

    Parameters
    ----------
    values
        The quantity, dims ``(layer, token)``.
    clusters
        Cluster of each token, integers from 0, dims ``(token,)``.

    Returns
    -------
    numpy.ndarray
        Dims ``(3, layer, layer_2)``: the correlation, and the ends of its interval, that of a jackknife over
        clusters of Fisher's z. NaN if the quantity does not vary; the interval also with fewer than 3
        clusters.
    """
    centred, counts, starts = _by_cluster(values.astype(np.float64), clusters)
    n_tokens, left = values.shape[1], values.shape[1] - counts
    sums, squares = (np.add.reduceat(array, starts, axis=1) for array in (centred, centred**2))
    tables = np.empty((3, len(values), len(values)))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = -sums / left
        variances = ((centred**2).sum(axis=1, keepdims=True) - squares) / left - means**2
        sd = np.sqrt(np.maximum((centred**2).mean(axis=1), 0))
        for row in range(len(values)):
            products = centred[row] * centred
            covariances = products.sum(axis=1, keepdims=True) - np.add.reduceat(products, starts, axis=1)
            covariances = covariances / left - means[row] * means
            left_out = covariances / np.sqrt(variances[row] * variances)
            correlation = products.mean(axis=1) / np.where(sd[row] * sd > 0, sd[row] * sd, np.nan)
            z = _fisher_z(left_out)
            error = np.sqrt((len(counts) - 1) * z.var(axis=1))
            tables[:, row] = _interval(correlation, error if len(counts) > 2 else np.full(len(error), np.nan))
    return tables if n_tokens > 2 else np.full(tables.shape, np.nan)


def spearman_correlations(values: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation over tokens of a quantity between layers, with 95% intervals.

    Parameters
    ----------
    values, clusters
        As for :func:`pearson_correlations`.

    Returns
    -------
    numpy.ndarray
        As for :func:`pearson_correlations`.

    Notes
    -----
    The standard error is that of the influences of clusters, summed over their tokens. The influence of a
    token includes that on the ranks of all others (Croux, Dehon, Statistical Methods and Applications 2010),
    so that nothing has to be ranked again.
    """
    n_layers, n_tokens = values.shape
    ranks = (rankdata(values, axis=1) - 0.5) / max(n_tokens, 1)
    centred, counts, starts = _by_cluster(ranks, clusters)
    order = np.argsort(clusters, kind="stable")
    codes = [np.unique(row, return_inverse=True)[1] for row in values[:, order]]
    covariance = centred @ centred.T / max(n_tokens, 1)
    sd = np.sqrt(np.diag(covariance))
    tables = np.empty((3, n_layers, n_layers))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = covariance / np.where(np.outer(sd, sd) > 0, np.outer(sd, sd), np.nan)
        own = np.stack([_influence(centred, at, [at], starts, codes)[0] for at in range(n_layers)])
        own /= (sd**2)[:, None]
        for row in range(n_layers):
            sums = _influence(centred, row, list(range(n_layers)), starts, codes)
            sums = sums / (sd[row] * sd)[:, None] - correlation[row][:, None] / 2 * (own[row] + own)
            correction = len(counts) / (len(counts) - 1) if len(counts) > 2 else np.nan
            error = np.sqrt(correction * (sums**2).sum(axis=1)) / n_tokens
            tables[:, row] = _interval(correlation[row], error / (1 - correlation[row] ** 2))
    return tables if n_tokens > 2 else np.full(tables.shape, np.nan)


def _by_cluster(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centred values sorted by cluster, the size of each cluster, and its first token."""
    order = np.argsort(clusters, kind="stable")
    _, starts, counts = np.unique(clusters[order], return_index=True, return_counts=True)
    return (values - values.mean(axis=1, keepdims=True))[:, order], counts, starts


def _influence(
    centred: np.ndarray, row: int, columns: list[int], starts: np.ndarray, codes: list[np.ndarray]
) -> np.ndarray:
    """Return the influence of clusters on the covariances of a layer's ranks, dims ``(column, cluster)``."""
    influence = centred[row] * centred[columns]
    for at, column in enumerate(columns):
        influence[at] += _above(codes[row], centred[column]) + _above(codes[column], centred[row])
    influence -= influence.mean(axis=1, keepdims=True)
    return np.asarray(np.add.reduceat(influence, starts, axis=1))


def _above(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean over tokens of weights at larger ranks, plus half of those at the same rank."""
    sums = np.bincount(codes, weights=weights)
    return np.asarray((sums.sum() - np.cumsum(sums) + sums / 2)[codes] / len(codes))


def _fisher_z(correlation: np.ndarray) -> np.ndarray:
    return np.asarray(np.arctanh(np.clip(correlation, -_NEAR_ONE, _NEAR_ONE)))


def _interval(correlation: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Return a correlation and the ends of its interval, from the standard error of Fisher's z."""
    z = _fisher_z(correlation)
    is_exact = abs(correlation) > _NEAR_ONE  # a layer with itself
    margin = np.where(is_exact & np.isfinite(z), 0, _Z95 * error)
    low, high = np.tanh(z - margin), np.tanh(z + margin)
    return np.stack(
        [correlation, np.where(is_exact, correlation, low), np.where(is_exact, correlation, high)]
    )
