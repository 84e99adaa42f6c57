"""Corrections for several tests: Holm's over families of tests, and max-T over all pairs of layers."""

import numpy as np
from scipy.stats import false_discovery_control

_LEVEL = 0.05
_DRAWS = 10_000
_NO_ERROR = 1e-12


def family_holm(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected over families, if those of each family are already corrected within it.

    Parameters
    ----------
    p
        Dims ``(family, hypothesis)``; NaN where there is no test. Families may have different numbers of
        tests.

    Returns
    -------
    numpy.ndarray
        Dims ``(family, hypothesis)``, at most 1: the probability of any false rejection in any family.

    Notes
    -----
    A step-down procedure: with m families left, hypotheses with p of at most 0.05 / m are rejected, and a
    family leaves once all of its hypotheses are rejected. Families with a true hypothesis leave only through
    an error, so m is at least their number. With one test in each family, it is Holm's (1979).

    Examples
    --------
    >>> family_holm(np.array([[0.01, 0.02], [0.03, 0.5]])).tolist()
    [[0.02, 0.04], [0.04, 0.5]]
    """
    families = np.flatnonzero(~np.isnan(p).all(axis=1))
    largest = np.sort(np.nanmax(p[families], axis=1, initial=0))
    n_left = np.arange(len(families), 0, -1)
    left = np.append(0, np.maximum.accumulate(n_left * largest))  # level at which so many families have left
    corrected = np.full(p.shape, np.nan)
    if len(families):
        steps = np.maximum(n_left * p[families][..., None], left[:-1])
        corrected[families] = np.minimum(steps.min(axis=-1), 1)
    return corrected


def pairwise_differences(
    aurocs: np.ndarray, influence: np.ndarray, fewest: int, *, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the differences between the AUROCs of all pairs of layers, corrected over all pairs.

    Parameters
    ----------
    aurocs
        Dims ``(layer,)``.
    influence
        Influence of each cluster on each AUROC, dims ``(layer, role, cluster)``.
    fewest
        Number of clusters in which the rarer label occurs.
    seed
        Random seed of the draws that approximate the distribution of the largest difference.

    Returns
    -------
    tuple of numpy.ndarray
        The differences (first minus second layer), the ends of their simultaneous 95% intervals, and
        two-sided p-values, each with dims ``(layer, layer_2)``; NaN if an AUROC is not defined. Without a
        standard error, as between two AUROCs of 1, there is no interval, and p is that of
        :func:`~actkit.stats.kernels.auroc.paired_difference`, times the number of pairs.

    Notes
    -----
    Single-step max-T for all pairwise comparisons (Hothorn, Bretz, Westfall, Simultaneous inference in
    general parametric models, Biometrical Journal 2008): the quantile is that of the largest absolute
    difference, in standard errors, under a multivariate t distribution with the covariance of the AUROCs. For
    independent AUROCs of equal variance, it is Tukey's.
    """
    n_layers = len(aurocs)
    results = np.full((4, n_layers, n_layers), np.nan)
    known = np.flatnonzero(np.isfinite(aurocs) & np.isfinite(influence).all(axis=(1, 2)))
    if not len(known):
        return results[0], results[1], results[2], results[3]
    flat = influence[known].reshape(len(known), -1)
    covariance = flat @ flat.T
    variances = np.diag(covariance)
    totals = variances[:, None] + variances
    squares = totals - 2 * covariance
    at_limit = np.isin(aurocs[known], (0, 1))  # their influences in training are tiny, but need not be 0
    has_error = (squares > _NO_ERROR * totals) & ~np.logical_and.outer(at_limit, at_limit)
    errors = np.sqrt(np.where(has_error, squares, np.nan))
    differences = aurocs[known, None] - aurocs[known]
    largest = _largest_differences(flat, errors, influence.shape[-1] - 1, seed)
    half = np.quantile(largest, 1 - _LEVEL) * errors
    exceeding = len(largest) - np.searchsorted(np.sort(largest), np.abs(differences / errors))
    n_pairs = len(known) * (len(known) - 1) / 2
    by_sign = np.where(np.abs(differences) < _NO_ERROR, 1, min(2 * 0.5**fewest * n_pairs, 1))
    p = np.where(np.isnan(errors), by_sign, (1 + exceeding) / (1 + len(largest)))
    for result, values in zip(results, (differences, differences - half, differences + half, p), strict=True):
        result[np.ix_(known, known)] = values
    return results[0], results[1], results[2], results[3]


def _largest_differences(flat: np.ndarray, errors: np.ndarray, freedom: int, seed: int) -> np.ndarray:
    """Draw the largest absolute difference between two layers in standard errors, dims ``(draw,)``."""
    rng = np.random.default_rng(seed)
    # a square root of the covariance: drawing a number per cluster would cost more for many clusters
    left, scales, _ = np.linalg.svd(flat, full_matrices=False)
    drawn = rng.standard_normal((_DRAWS, len(scales))) @ (left * scales).T
    drawn /= np.sqrt(rng.chisquare(max(freedom, 1), (_DRAWS, 1)) / max(freedom, 1))
    largest = np.zeros(_DRAWS)
    for layer in range(1, len(errors)):
        ratio = np.abs(drawn[:, layer, None] - drawn[:, :layer]) / errors[layer, :layer]
        largest = np.fmax(largest, np.fmax.reduce(ratio, axis=1))
    return largest


def false_discovery_q(p: np.ndarray) -> np.ndarray:
    """Return p-values corrected such that the expected share of false discoveries is controlled.

    Parameters
    ----------
    p
        Any dims; NaN where there is no test, which does not count.

    Returns
    -------
    numpy.ndarray
        Dims as ``p``, at most 1.

    Notes
    -----
    Benjamini, Hochberg, Controlling the false discovery rate, Journal of the Royal Statistical Society B
    1995.

    Examples
    --------
    >>> false_discovery_q(np.array([[0.01, np.nan], [0.02, 0.03]])).round(3).tolist()
    [[0.03, nan], [0.03, 0.03]]
    """
    corrected = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        corrected[known] = false_discovery_control(p[known])
    return corrected
