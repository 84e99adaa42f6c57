"""Differences between two groups of vectors: label permutations, effect sizes, directions."""

from dataclasses import dataclass

import numpy as np

_BLOCKS = 50  # maximum number of jackknife blocks
_MEMORY = 2**27  # bytes


def permuted(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Draw label permutations under the null hypothesis that respect the clusters.

    Parameters
    ----------
    labels
        Boolean, dims ``(sample,)``.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``. Labels are permuted within clusters that
        contain both (such as twins), and exchanged between whole clusters that contain only one.
    count
        Number of permutations.
    seed
        Random seed of the permutations.

    Returns
    -------
    numpy.ndarray
        Boolean, dims ``(permutation, sample)``.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    positive = np.bincount(groups, weights=labels)
    mixed = (positive > 0) & (positive < sizes)
    order = np.argsort(groups, kind="stable")
    starts = np.cumsum(sizes) - sizes
    pure = np.flatnonzero(~mixed & (sizes > 0))
    pure_labels = labels[order][starts[pure]]
    drawn = np.empty((count, len(labels)), dtype=bool)
    group_labels = np.zeros(len(sizes), dtype=bool)
    in_mixed = mixed[groups]
    for row in drawn:
        group_labels[pure] = rng.permutation(pure_labels)
        row[:] = group_labels[groups]
        # sorting by group, then at random, shuffles labels within each group
        shuffled = np.lexsort((rng.random(len(labels)), groups))
        swapped = np.empty_like(labels)
        swapped[order] = labels[shuffled]
        row[in_mixed] = swapped[in_mixed]
    return drawn


def contrast(labels: np.ndarray) -> np.ndarray:
    """Return the weights of a difference between group means: the second group minus the first.

    Parameters
    ----------
    labels
        Boolean, dims ``(..., sample)``.
    """
    positive = labels.sum(axis=-1, keepdims=True)
    negative = labels.shape[-1] - positive
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(labels, 1 / positive, -1 / negative))


def squared_smd(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return the squared standardized mean difference, with the bias of the squared distance removed.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(sample,)``.
    groups
        Cluster of each sample, dims ``(sample,)``; by default, samples are independent.

    Returns
    -------
    float
        The squared distance between the means, minus its expectation under no difference, over the total
        within-group variance. It may be negative; NaN if the variance is 0.
    """
    classes, _ = _class_sums(vectors, labels, groups)
    kept = np.ones((1, len(classes[0].counts)), dtype=bool)
    return float(_squared_smds(classes, kept)[0])


def squared_smd_error(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, *, seed: int
) -> float:
    """Return the standard error of :func:`squared_smd` from a jackknife over up to 50 blocks of clusters."""
    classes, n_clusters = _class_sums(vectors, labels, groups)
    block = np.empty(n_clusters, dtype=np.int64)
    block[np.random.default_rng(seed).permutation(n_clusters)] = np.arange(n_clusters) % _BLOCKS
    kept = block != np.arange(min(_BLOCKS, n_clusters))[:, None]
    n_first, n_second = (kept @ side.counts for side in classes)
    estimates = _squared_smds(classes, kept[(n_first > 1) & (n_second > 1)])
    if len(estimates) < 2:
        return float("nan")
    deviations = np.square(estimates - estimates.mean()).sum()
    return float(np.sqrt((len(estimates) - 1) / len(estimates) * deviations))


@dataclass(frozen=True)
class _ClassSums:
    """Sums of the vectors of one class about its mean, by cluster.

    Parameters
    ----------
    mean
        Mean of the class, dims ``(hidden,)``.
    sums
        Sums of the differences from it, dims ``(cluster, hidden)``; 0 for clusters outside the class.
    squares
        Sums of their squared lengths, dims ``(cluster,)``.
    counts
        Number of samples, dims ``(cluster,)``.
    """

    mean: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, vectors: np.ndarray, ids: np.ndarray, n_clusters: int) -> "_ClassSums":
        exact = vectors.astype(np.float64)
        mean = exact.mean(axis=0)
        exact -= mean
        squares = np.bincount(ids, np.einsum("sh,sh->s", exact, exact), n_clusters)
        sums = np.zeros((n_clusters, exact.shape[1]))
        order = np.argsort(ids, kind="stable")
        sums[np.unique(ids)] = np.add.reduceat(exact[order], np.flatnonzero(np.diff(ids[order], prepend=-1)))
        return cls(mean, sums, squares, np.bincount(ids, minlength=n_clusters).astype(np.float64))


def _class_sums(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None
) -> tuple[tuple[_ClassSums, _ClassSums], int]:
    """Return the sums of the first and of the second class, and the number of clusters."""
    ids = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_clusters = int(ids.max()) + 1
    first, second = (_ClassSums.of(vectors[side], ids[side], n_clusters) for side in (~labels, labels))
    return (first, second), n_clusters


def _squared_smds(classes: tuple[_ClassSums, _ClassSums], kept: np.ndarray) -> np.ndarray:
    """Return the squared standardized mean difference of some of the clusters.

    The expectation of the squared distance between two means whose expectations are equal is the trace of
    the covariance of their difference, estimated without bias for clusters of any size, with any variance, in
    one class or both. For classes of equal clusters, it is the sum of the squared cluster sums of each class
    times its own ``G / (G - 1)``.

    Parameters
    ----------
    classes
        Sums of the two classes.
    kept
        Clusters included, dims ``(estimate, cluster)``.

    Returns
    -------
    numpy.ndarray
        Dims ``(estimate,)``; NaN if the variance is 0 or a class has a single cluster, which says nothing
        about the variance between clusters.

    Notes
    -----
    With ``p`` the share of a cluster in its class and ``V = sum(v)`` the variance of the class mean, the
    squared cluster sum of residuals has expectation ``(1 - 2 p) v + p**2 V``, which is solved for ``V``.
    """
    n = [kept @ side.counts for side in classes]
    shifts = [kept @ side.sums / size[:, None] for side, size in zip(classes, n, strict=True)]
    shares = [kept * side.counts / size[:, None] for side, size in zip(classes, n, strict=True)]

    def products(a: int, b: int) -> np.ndarray:
        """Return products of the cluster sums of residuals over the sizes, dims ``(estimate, cluster)``."""
        first, second = classes[a], classes[b]
        raw = np.einsum("ch,ch->c", first.sums, second.sums)
        crossing = second.counts * (shifts[b] @ first.sums.T) + first.counts * (shifts[a] @ second.sums.T)
        square = np.einsum("eh,eh->e", shifts[a], shifts[b])[:, None] * first.counts * second.counts
        return np.asarray(kept * (raw - crossing + square) / (n[a] * n[b])[:, None])

    with np.errstate(invalid="ignore", divide="ignore"):
        chance = sum(_total(products(a, a), shares[a], shares[a]) for a in (0, 1))
        chance -= 2 * _total(products(0, 1), shares[0], shares[1])
    squares = sum(kept @ side.squares for side in classes)
    within = squares - sum(size * np.square(shift).sum(axis=1) for size, shift in zip(n, shifts, strict=True))
    difference = classes[1].mean - classes[0].mean + shifts[1] - shifts[0]
    is_defined = within > 1e-12 * squares  # rounding errors of a variance of 0
    for share in shares:
        is_defined &= share.max(axis=1) < 1
    with np.errstate(invalid="ignore", divide="ignore"):
        result = (np.square(difference).sum(axis=1) - chance) / (within / (n[0] + n[1] - 2))
    return np.asarray(np.where(is_defined, result, np.nan))


def _total(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the sum of the (co)variances of clusters from products of their residuals, by estimate."""
    rest = 1 - first - second
    rest = np.where(np.abs(rest) < 1e-9, 1e-9, rest)  # two equal clusters
    return np.asarray((products / rest).sum(axis=1) / (1 + (first * second / rest).sum(axis=1)))


def cohens_d(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return Cohen's d of each dimension: the second group minus the first.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(..., sample)``: one row per permutation.

    Returns
    -------
    numpy.ndarray
        Dims ``(..., hidden)``; 0 for constant dimensions.

    Notes
    -----
    Cohen, Statistical power analysis for the behavioral sciences, 2nd edition, Erlbaum 1988.
    """
    exact = vectors.astype(np.float64)
    exact -= exact.mean(axis=0)
    positive = labels.sum(axis=-1)[..., None]
    negative = labels.shape[-1] - positive
    sums = labels.astype(np.float64) @ exact  # the sums of the other group are their negatives
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = sums / positive + sums / negative
        between = np.square(sums) / positive + np.square(sums) / negative
        within = (np.square(exact).sum(axis=0) - between) / (labels.shape[-1] - 2)
        return np.asarray(np.where(within > 0, difference / np.sqrt(within), 0.0))


def largest_d(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the largest absolute Cohen's d over dimensions, dims ``(permutation,)``."""
    rows = max(_MEMORY // (8 * vectors.shape[1]), 1)
    parts = [
        np.abs(cohens_d(vectors, labels[start : start + rows])).max(axis=-1)
        for start in range(0, len(labels), rows)
    ]
    return np.concatenate(parts)
