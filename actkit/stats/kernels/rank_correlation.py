"""Spearman's correlation of held-out predictions: value, influence of each sample, gradient."""

import numpy as np
from scipy.stats import rankdata

from .normal_densities import normal_densities


def column_spearman(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of each column.

    Parameters
    ----------
    scores, labels
        Dims ``(sample, target)``.

    Returns
    -------
    numpy.ndarray
        Dims ``(target,)``: 0 if all scores are equal; NaN if all labels are.
    """
    ranks = [rankdata(values, axis=0) - (len(values) + 1) / 2 for values in (scores, labels)]
    squares = [np.einsum("st,st->t", rank, rank) for rank in ranks]
    product = np.einsum("st,st->t", *ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = product / np.sqrt(squares[0] * squares[1])
    return np.where(squares[1] == 0, np.nan, np.where(squares[0] == 0, 0.0, correlation))


def spearman_influence(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the influence of each sample on Spearman's correlation of these samples.

    Parameters
    ----------
    scores, labels
        Dims ``(sample,)``; neither is constant.

    Returns
    -------
    numpy.ndarray
        Dims ``(sample,)``, with sum 0: to first order, the change if a sample is added, in units of the
        correlation.

    Notes
    -----
    Croux, Dehon, Influence functions of the Spearman and Kendall correlation measures, Statistical Methods
    and Applications 2010, for mid-ranks.
    """
    u, v = (_shares(values) for values in (scores, labels))
    product = u * v + _above(scores, v) + _above(labels, u)
    squares = [side**2 + 2 * _above(values, side) for side, values in ((u, scores), (v, labels))]
    variances = [float(np.mean(side**2) - 0.25) for side in (u, v)]
    root = np.sqrt(variances[0] * variances[1])
    correlation = float(np.mean(u * v) - 0.25) / root
    deviation = (product - product.mean()) / root
    for square, variance in zip(squares, variances, strict=True):
        deviation = deviation - correlation / 2 * (square - square.mean()) / variance
    return np.asarray(deviation / len(scores))


def spearman_gradient(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the derivative of a smoothed Spearman correlation with respect to each score.

    Parameters
    ----------
    scores, labels
        Dims ``(sample,)``.

    Returns
    -------
    numpy.ndarray
        Dims ``(sample,)``. A rank counts the samples below; each is smoothed by a normal distribution whose
        width is proportional to the spread of the scores, so that their scale has no effect, and decreases
        with the number of samples. 0 if scores or labels are constant.
    """
    n, width = len(scores), scores.std() * len(scores) ** -0.2
    u, v = (_shares(values) - 0.5 for values in (scores, labels))
    variances = float(u @ u) / n, float(v @ v) / n
    if width == 0 or min(variances) == 0:
        return np.zeros(n)
    root = np.sqrt(variances[0] * variances[1])
    slope = (v / root - (u @ v / n / root) * u / variances[0]) / n
    gradient = np.empty(n)
    for block, _, density in normal_densities(scores, scores, width):
        gradient[block] = (density.sum(axis=1) * slope[block] - density @ slope) / n
    centred = scores - scores.mean()  # the width depends on the scores too: their scale changes nothing
    return np.asarray(gradient - centred * (gradient @ centred) / (centred @ centred))


def _shares(values: np.ndarray) -> np.ndarray:
    """Return the share of samples below each one, ties and the sample itself counted as one half."""
    return np.asarray((rankdata(values) - 0.5) / len(values))


def _above(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the mean over samples of the weights of those above each one, ties counted as one half."""
    place = np.unique(values, return_inverse=True)[1]
    totals = np.bincount(place, weights=weights)
    above = np.cumsum(totals[::-1])[::-1] - totals
    return np.asarray((above + totals / 2)[place] / len(values))
