"""Gaps between two groups of samples under interventions, with intervals from a jackknife over clusters."""

import numpy as np
from scipy import stats

GAP_SUMMARIES = ("gap", "remaining", "change_first", "change_second")


def gap_summaries(
    values: np.ndarray, intact: np.ndarray, labels: np.ndarray, groups: np.ndarray, *, level: float = 0.95
) -> np.ndarray:
    """Summarise how interventions change the difference between two groups.

    Parameters
    ----------
    values
        Metric of each sample under each intervention, dims ``(intervention, sample)``.
    intact
        Metric of each sample without intervention, dims ``(sample,)``.
    labels
        Whether each sample belongs to the second group, dims ``(sample,)``.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``.
    level
        Nominal coverage of the intervals.

    Returns
    -------
    numpy.ndarray
        Dims ``(summary, bound, intervention)``: the estimate and the lower and upper bound of its interval of
        the ``gap`` (mean of the second group minus mean of the first), the ``remaining`` share of the intact
        gap, and the mean change of the metric in each group. Intervals are NaN if there are fewer than two
        clusters, or if a group is in one cluster alone.

    Notes
    -----
    Jackknife: Efron & Stein, The jackknife estimate of variance, Annals of Statistics 1981. All clusters have
    the same weight, and the quantile is that of Student's t with one degree of freedom fewer than clusters.
    """
    n_clusters = int(groups.max()) + 1
    table = np.vstack([intact, values]).astype(np.float64)
    sums, counts = [], []
    for is_member in (~labels, labels):
        members = groups[is_member]
        sums.append(np.stack([np.bincount(members, row[is_member], n_clusters) for row in table]))
        counts.append(np.bincount(members, minlength=n_clusters))
    estimate = _summaries([part.sum(axis=1) / count.sum() for part, count in zip(sums, counts, strict=True)])
    with np.errstate(divide="ignore", invalid="ignore"):
        deleted = _summaries(
            [
                (part.sum(axis=1, keepdims=True) - part) / (count.sum() - count)
                for part, count in zip(sums, counts, strict=True)
            ]
        )
    if n_clusters < 2:
        return np.stack([estimate, np.full_like(estimate, np.nan), np.full_like(estimate, np.nan)], axis=1)
    with np.errstate(invalid="ignore"):  # a share of a gap that is 0 without some cluster
        deviations = deleted - deleted.mean(axis=-1, keepdims=True)
    error = np.sqrt((n_clusters - 1) / n_clusters * np.square(deviations).sum(axis=-1))
    margin = stats.t.ppf((1 + level) / 2, n_clusters - 1) * error
    return np.stack([estimate, estimate - margin, estimate + margin], axis=1)


def _summaries(means: list[np.ndarray]) -> np.ndarray:
    """Return the summaries, dims ``(summary, intervention, …)``, from means of the groups, intact first."""
    first, second = means
    gaps = second - first
    with np.errstate(divide="ignore", invalid="ignore"):
        remaining = gaps[1:] / gaps[:1]
    return np.stack([gaps[1:], remaining, first[1:] - first[:1], second[1:] - second[:1]])


def ratio_of_means(
    numerators: np.ndarray, denominators: np.ndarray, groups: np.ndarray, *, level: float = 0.95
) -> np.ndarray:
    """Return the ratio of two means with an interval from a jackknife over clusters.

    Parameters
    ----------
    numerators, denominators
        Dims ``(…, sample)``, of the same shape. Samples with a NaN numerator are left out of both means.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``.
    level
        Nominal coverage of the interval.

    Returns
    -------
    numpy.ndarray
        Dims ``(bound, …)``: estimate, lower and upper bound, which are NaN with fewer than two clusters.

    Notes
    -----
    Jackknife: Efron & Stein 1981, as in :func:`gap_summaries`.
    """
    valid = ~np.isnan(numerators)
    one_hot = np.eye(int(groups.max()) + 1)[groups]  # dims (sample, cluster)
    tops = np.where(valid, numerators, 0.0) @ one_hot
    bottoms = np.where(valid, denominators, 0.0) @ one_hot
    present = (valid @ one_hot) > 0
    top, bottom = tops.sum(axis=-1), bottoms.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = top / bottom
        deleted = (top[..., None] - tops) / (bottom[..., None] - bottoms)
        n_clusters = present.sum(axis=-1)
        mean = np.where(present, deleted, 0.0).sum(axis=-1) / n_clusters
        squares = np.where(present, np.square(deleted - mean[..., None]), 0.0).sum(axis=-1)
        error = np.sqrt((n_clusters - 1) / n_clusters * squares)
        quantile = stats.t.ppf((1 + level) / 2, np.maximum(n_clusters - 1, 1))
        margin = np.where(n_clusters > 1, quantile * error, np.nan)
    return np.stack([estimate, estimate - margin, estimate + margin])
