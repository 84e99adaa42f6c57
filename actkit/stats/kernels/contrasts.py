"""Differences between two groups of vectors: label permutations, effect sizes, directions."""

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
    sides = vectors[~labels].astype(np.float64), vectors[labels].astype(np.float64)
    residuals = [side - side.mean(axis=0) for side in sides]
    within = sum(np.square(side).sum() for side in residuals) / (len(vectors) - 2)
    difference = sides[1].mean(axis=0) - sides[0].mean(axis=0)
    ids = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    chance = _expected_square(residuals, [ids[~labels], ids[labels]])
    return float((difference @ difference - chance) / within) if within > 0 else float("nan")


def _expected_square(residuals: list[np.ndarray], groups: list[np.ndarray]) -> float:
    """Return the expected squared distance between two means whose expectations are equal.

    It is the trace of the covariance of their difference, estimated without bias for clusters of any size,
    with any variance, in one class or both. For classes of equal clusters, it is the sum of the squared
    cluster sums of each class times its own ``G / (G - 1)``.

    Parameters
    ----------
    residuals
        Differences from the class mean, dims ``(sample, hidden)``, for the two classes.
    groups
        Cluster of each sample, dims ``(sample,)``, for the two classes.

    Notes
    -----
    With ``p`` the share of a cluster in its class and ``V = sum(v)`` the variance of the class mean, the
    squared cluster sum of residuals has expectation ``(1 - 2 p) v + p**2 V``, which is solved for ``V``.
    """
    n_groups = 1 + max(int(ids.max()) for ids in groups)
    shares = [np.bincount(ids, minlength=n_groups) / len(ids) for ids in groups]
    if any(share.max() == 1 for share in shares):
        return float("nan")  # a single cluster says nothing about the variance between clusters
    order = [np.argsort(ids, kind="stable") for ids in groups]
    sums = [
        np.add.reduceat(side[rows], np.flatnonzero(np.diff(ids[rows], prepend=-1))) / len(ids)
        for side, ids, rows in zip(residuals, groups, order, strict=True)
    ]
    members = [np.flatnonzero(share) for share in shares]
    variances = [
        _total(np.square(part).sum(axis=1), share[rows], share[rows])
        for part, share, rows in zip(sums, shares, members, strict=True)
    ]
    shared, first, second = np.intersect1d(members[0], members[1], assume_unique=True, return_indices=True)
    products = (sums[0][first] * sums[1][second]).sum(axis=1)
    return sum(variances) - 2 * _total(products, shares[0][shared], shares[1][shared])


def _total(products: np.ndarray, first: np.ndarray, second: np.ndarray) -> float:
    """Return the sum of the (co)variances of clusters from products of their residuals."""
    rest = 1 - first - second
    rest = np.where(np.abs(rest) < 1e-9, 1e-9, rest)  # two equal clusters
    return float((products / rest).sum() / (1 + (first * second / rest).sum()))


def squared_smd_error(
    vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, *, seed: int
) -> float:
    """Return the standard error of :func:`squared_smd` from a jackknife over up to 50 blocks of clusters."""
    ids = np.arange(len(labels)) if groups is None else groups
    names = np.unique(ids)
    shuffled = np.random.default_rng(seed).permutation(names)
    block_of = dict(zip(shuffled.tolist(), (np.arange(len(names)) % _BLOCKS).tolist(), strict=True))
    block = np.array([block_of[name] for name in ids.tolist()])
    estimates: list[float] = []
    for number in range(min(_BLOCKS, len(names))):
        kept = block != number
        if 1 < labels[kept].sum() < kept.sum() - 1:
            estimates.append(
                squared_smd(vectors[kept], labels[kept], None if groups is None else groups[kept])
            )
    if len(estimates) < 2:
        return float("nan")
    return float(
        np.sqrt(
            (len(estimates) - 1) / len(estimates) * np.square(np.array(estimates) - np.mean(estimates)).sum()
        )
    )


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
