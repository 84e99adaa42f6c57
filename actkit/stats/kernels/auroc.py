"""AUROC of held-out scores: its sampling error by cluster, intervals, and paired differences."""

import numpy as np
from scipy.special import expit, logit
from scipy.stats import rankdata, t

from .normal_densities import normal_densities

_LEVEL = 0.05


def column_aurocs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUROC of each column: the Mann-Whitney U statistic over the number of pairs.

    Parameters
    ----------
    scores, labels
        Dims ``(sample, labelling)``; labels are boolean.

    Returns
    -------
    numpy.ndarray
        Dims ``(labelling,)``; NaN if a label is missing.
    """
    each = np.ascontiguousarray(scores.T)  # numpy sorts contiguous numbers several times as fast
    order = each.argsort(axis=1)
    ordered = np.take_along_axis(each, order, axis=1)
    sums = np.take_along_axis(labels.T, order, axis=1) @ np.arange(1.0, len(labels) + 1)
    has_ties = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1) | np.isnan(ordered[:, -1:]).any(axis=1)
    sums[has_ties] = (rankdata(each[has_ties], axis=1) * labels.T[has_ties]).sum(axis=1)
    positive = labels.sum(axis=0)
    negative = len(labels) - positive
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((sums - positive * (positive + 1) / 2) / (positive * negative))


def fold_aurocs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUROC of the held-out scores of each fold.

    Parameters
    ----------
    scores
        Dims ``(fold, sample)``; NaN for samples that the fold does not test.
    labels
        Boolean, dims ``(sample,)``.

    Returns
    -------
    numpy.ndarray
        Dims ``(fold,)``; NaN if no scores are defined, or if a fold lacks a label.
    """
    aurocs = np.full(len(scores), np.nan)
    for fold, row in enumerate(scores):
        tested = np.flatnonzero(~np.isnan(row))
        if len(tested):
            (aurocs[fold],) = column_aurocs(row[tested, None], labels[tested, None])
    return aurocs


def auroc_gradient(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the derivative of a smoothed AUROC with respect to each score.

    Parameters
    ----------
    scores
        Dims ``(sample,)``.
    labels
        Boolean, dims ``(sample,)``; both values occur.

    Returns
    -------
    numpy.ndarray
        Dims ``(sample,)``. The AUROC counts pairs in the right order; each pair is smoothed by a normal
        distribution whose width is proportional to the spread of the scores, so that their scale has no
        effect, and decreases with the number of samples. 0 if all scores of a label are equal.
    """
    gradient = np.zeros(len(scores))
    second, first = scores[labels], scores[~labels]
    ratio = min(len(second), len(first)) ** -0.2
    width = np.sqrt(second.var() + first.var()) * ratio
    if width > 0:
        raised, lowered, spread = np.zeros(len(second)), np.zeros(len(first)), 0.0
        for block, distance, density in normal_densities(second, first, width):
            raised[block] = density.sum(axis=1)
            lowered += density.sum(axis=0)
            spread -= (density * distance).sum() * ratio**2 / width  # the width depends on the scores too
        raised += spread * (second - second.mean()) / len(second)
        lowered -= spread * (first - first.mean()) / len(first)
        pairs = len(second) * len(first)
        gradient[labels], gradient[~labels] = raised / pairs, -lowered / pairs
    return gradient


def cluster_influence(
    scores: np.ndarray, effects: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> np.ndarray:
    """Return how much each cluster moves the mean AUROC over folds, in testing and in training.

    Parameters
    ----------
    scores, effects
        As in :class:`~actkit.stats.kernels.probes.HeldOutScores`, dims ``(fold, sample)``.
    labels
        Boolean, dims ``(sample,)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``. No fold splits a cluster.

    Returns
    -------
    numpy.ndarray
        Dims ``(role, cluster)``, where the roles are testing and training. The sum of squares estimates the
        variance of the mean AUROC. NaN if no fold has scores of both labels, and for clusters of a fold in
        which only one cluster has their label.

    Notes
    -----
    In testing: the influence function of a cross-validated AUROC (LeDell, Petersen, van der Laan,
    Computationally efficient confidence intervals for cross-validated area under the ROC curve estimates,
    Electronic Journal of Statistics 2015), summed over the samples of a cluster (Obuchowski, Nonparametric
    analysis of clustered ROC curve data, Biometrics 1997). In one fold with one sample per cluster it is that
    of DeLong et al. (1988). It holds the trained probes fixed, although the folds train on each other's test
    samples, and misses about half of the variance where the groups do not differ. The influence in training
    adds the other half: there, two clusters enter the AUROC through the product of their deviations, once
    with each of them in training, and the two roles contribute equally. Where the groups differ clearly, it
    vanishes, because the AUROC no longer depends on small changes of the weights.
    """
    n_clusters = int(groups.max()) + 1
    total, n_folds = np.zeros(n_clusters), 0
    for row in scores:
        tested = np.flatnonzero(~np.isnan(row))
        is_second = labels[tested]
        n_second = int(is_second.sum())
        n_first = len(tested) - n_second
        if not n_second or not n_first:
            continue
        n_folds += 1
        overall = rankdata(row[tested])
        for chosen, n_others in ((is_second, n_first), (~is_second, n_second)):
            # share of the other label ranked below each sample, ties counted as one half
            below = (overall[chosen] - rankdata(row[tested][chosen])) / n_others
            deviation = below - below.mean()
            if chosen is not is_second:
                deviation = -deviation
            clusters = groups[tested][chosen]
            present = len(np.unique(clusters))
            # the mean of each fold and label is estimated from its clusters: one degree of freedom each
            correction = np.sqrt(present / (present - 1)) if present > 1 else np.nan
            np.add.at(total, clusters, correction * deviation / chosen.sum())
    if not n_folds:
        return np.full((2, n_clusters), np.nan)
    training = np.bincount(groups, weights=effects.sum(axis=0), minlength=n_clusters) / n_folds
    return np.stack([total / n_folds, training - training.mean()])


def fewest_clusters(labels: np.ndarray, groups: np.ndarray) -> int:
    """Return the number of clusters in which the rarer label occurs."""
    return min(len(np.unique(groups[labels])), len(np.unique(groups[~labels])))


def auroc_interval(auroc: float, influence: np.ndarray, fewest: int) -> tuple[float, float]:
    """Return a 95% interval of an AUROC.

    Parameters
    ----------
    auroc
        Mean AUROC over folds.
    influence
        From :func:`cluster_influence`, dims ``(role, cluster)``.
    fewest
        Number of clusters in which the rarer label occurs.

    Returns
    -------
    tuple of float
        Lower and upper end, between 0 and 1; NaN if the AUROC is.

    Notes
    -----
    A t interval on the logit scale, with one degree of freedom less than there are clusters. An AUROC of 1
    has no standard error. If the true AUROC were a, the probability that m disjoint pairs of independent
    samples are all ranked correctly would be a to the power of m; with m the number of clusters of the rarer
    label, the lower end is therefore the m-th root of 0.025.
    """
    if np.isnan(auroc) or np.isnan(influence).any():
        return float("nan"), float("nan")
    bound = (_LEVEL / 2) ** (1 / fewest)
    if auroc in (0, 1):
        return (bound, 1.0) if auroc == 1 else (0.0, 1 - bound)
    error = np.sqrt(np.square(influence).sum())
    half = t.ppf(1 - _LEVEL / 2, influence.shape[-1] - 1) * error / (auroc * (1 - auroc))
    low, high = expit(logit(auroc) - half), expit(logit(auroc) + half)
    return float(low), float(high)


def paired_difference(
    aurocs: tuple[float, float],
    influences: tuple[np.ndarray, np.ndarray],
    fewest: int,
    *,
    limits: tuple[float, ...] = (0, 1),
) -> tuple[float, float, float, float]:
    """Return the difference between two AUROCs of the same samples and folds, the first minus the second.

    Parameters
    ----------
    aurocs
        Mean AUROCs over folds.
    influences
        From :func:`cluster_influence`, each with dims ``(role, cluster)``.
    fewest
        Number of clusters in which the rarer label occurs.
    limits
        The lowest and the highest AUROC, at which there is no standard error; empty for other measures.

    Returns
    -------
    tuple of float
        The difference, the ends of its 95% interval, and a two-sided p-value; NaN if an AUROC is.

    Notes
    -----
    DeLong, DeLong, Clarke-Pearson, Comparing the areas under two or more correlated receiver operating
    characteristic curves, Biometrics 1988, with influences summed by cluster and a t distribution. An AUROC
    of 0 or 1 has no standard error; the distance to the bound in :func:`auroc_interval` takes its place, and
    is added to the half-width in squares, as by Zou, Donner, Construction of confidence limits about effect
    measures, Statistics in Medicine 2008. With it, or without any standard error, p is 1 for equal AUROCs,
    and at least that of a sign test in which the clusters of the rarer label all agree.
    """
    difference, influence = aurocs[0] - aurocs[1], influences[0] - influences[1]
    if np.isnan(difference) or np.isnan(influence).any():
        return (float("nan"),) * 4
    error, freedom = np.sqrt(np.square(influence).sum()), influence.shape[-1] - 1
    down = up = float(np.square(t.ppf(1 - _LEVEL / 2, freedom) * error))
    distance = (1 - (_LEVEL / 2) ** (1 / fewest)) ** 2
    at_limit = [[auroc == limit for limit in limits] for auroc in aurocs]
    if limits:
        down += distance * (at_limit[0][1] + at_limit[1][0])
        up += distance * (at_limit[0][0] + at_limit[1][1])
    p = float(2 * t.sf(abs(difference) / error, freedom)) if error >= 1e-12 else 0.0
    if error < 1e-12 or any(map(any, at_limit)):
        p = 1.0 if abs(difference) < 1e-12 else max(p, min(2 * 0.5**fewest, 1.0))
    return float(difference), float(difference - down**0.5), float(difference + up**0.5), p


def holm(p: np.ndarray) -> np.ndarray:
    """Return p-values with Holm's correction for testing several hypotheses.

    Parameters
    ----------
    p
        Dims ``(hypothesis,)``; NaN where there is no test, which does not count.

    Returns
    -------
    numpy.ndarray
        Dims ``(hypothesis,)``, at most 1.

    Notes
    -----
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.

    Examples
    --------
    >>> holm(np.array([0.04, 0.01, np.nan])).tolist()
    [0.04, 0.02, nan]
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: (~np.isnan(p)).sum()]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return corrected
