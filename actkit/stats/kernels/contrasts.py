"""How two groups of vectors differ: labels permuted as they could have been, effects, directions."""

import numpy as np

_BLOCKS = 50  # of the jackknife
_MEMORY = 2**27


def permuted(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Draw labels as they could have been, had they nothing to do with the vectors.

    Parameters
    ----------
    labels
        Boolean, dims ``(sample,)``.
    groups
        Integers from 0, dims ``(sample,)``. Labels change places within each group that has both, as
        twins do; and between groups that have one alone, each group as a whole.
    count
        How many to draw.
    seed
        Of the draws.

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
    first = np.cumsum(sizes) - sizes
    pure = np.flatnonzero(~mixed & (sizes > 0))
    own = labels[order][first[pure]]
    drawn = np.empty((count, len(labels)), dtype=bool)
    of_group = np.zeros(len(sizes), dtype=bool)
    inside = mixed[groups]
    for row in drawn:
        of_group[pure] = rng.permutation(own)
        row[:] = of_group[groups]
        # sorted by group and then at random, the labels of each group stay among its samples
        shuffled = np.lexsort((rng.random(len(labels)), groups))
        swapped = np.empty_like(labels)
        swapped[order] = labels[shuffled]
        row[inside] = swapped[inside]
    return drawn


def contrast(labels: np.ndarray) -> np.ndarray:
    """Return weights that make the difference of means, the second group less the first.

    Parameters
    ----------
    labels
        Boolean, dims ``(..., sample)``.
    """
    positive = labels.sum(axis=-1, keepdims=True)
    negative = labels.shape[-1] - positive
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(labels, 1 / positive, -1 / negative))


def effect(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> float:
    """Return how far apart the means are, squared, as a ratio to the variance within the groups.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(sample,)``.
    groups
        Which samples are not independent, dims ``(sample,)``.

    Returns
    -------
    float
        What chance alone adds to the squared distance is taken off, so that it may be negative.
    """
    positive, negative = vectors[labels].astype(np.float64), vectors[~labels].astype(np.float64)
    means = positive.mean(axis=0), negative.mean(axis=0)
    spreads = np.square(positive - means[0]).sum(), np.square(negative - means[1]).sum()
    counts = len(positive), len(negative)
    within = (spreads[0] + spreads[1]) / (sum(counts) - 2)
    difference = means[0] - means[1]
    if groups is None:
        chance = sum(spread / (count * (count - 1)) for spread, count in zip(spreads, counts, strict=True))
    else:
        left = np.empty(vectors.shape)
        left[labels] = (positive - means[0]) / counts[0]
        left[~labels] = (means[1] - negative) / counts[1]
        order = np.argsort(groups, kind="stable")
        starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
        summed = np.add.reduceat(left[order], starts)
        chance = np.square(summed).sum() * len(starts) / max(len(starts) - 1, 1)
    return float((difference @ difference - chance) / within) if within > 0 else float("nan")


def effect_error(vectors: np.ndarray, labels: np.ndarray, groups: np.ndarray | None, *, seed: int) -> float:
    """Return the standard error of :func:`effect`, by a jackknife of up to 50 blocks of groups."""
    own = np.arange(len(labels)) if groups is None else groups
    names = np.unique(own)
    shuffled = np.random.default_rng(seed).permutation(names)
    block_of = dict(zip(shuffled.tolist(), (np.arange(len(names)) % _BLOCKS).tolist(), strict=True))
    block = np.array([block_of[name] for name in own.tolist()])
    left: list[float] = []
    for number in range(min(_BLOCKS, len(names))):
        kept = block != number
        if 1 < labels[kept].sum() < kept.sum() - 1:
            left.append(effect(vectors[kept], labels[kept], None if groups is None else groups[kept]))
    if len(left) < 2:
        return float("nan")
    return float(np.sqrt((len(left) - 1) / len(left) * np.square(np.array(left) - np.mean(left)).sum()))


def cohens_d(vectors: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return Cohen's d of each dimension, the second group less the first.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(..., sample)``: one row a permutation.

    Returns
    -------
    numpy.ndarray
        Dims ``(..., hidden)``; 0 where a dimension is constant.
    """
    exact = vectors.astype(np.float64)
    exact -= exact.mean(axis=0)
    positive = labels.sum(axis=-1)[..., None]
    negative = labels.shape[-1] - positive
    sums = labels.astype(np.float64) @ exact  # those of the others are their opposite
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


def halves(labels: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Return weights that make differences of means in halves of the groups.

    Parameters
    ----------
    labels
        Boolean, dims ``(sample,)``.
    groups
        Integers from 0, dims ``(sample,)``; a group is in one half.
    count
        How often to draw halves.
    seed
        Of the draws.

    Returns
    -------
    numpy.ndarray
        Dims ``(half, split, sample)``, with 2 halves; 0 where a sample is in the other one.
    """
    rng = np.random.default_rng(seed)
    weights = np.zeros((2, count, len(labels)))
    n_groups = int(groups.max()) + 1
    # as many groups of each kind in both, so that no half lacks a label
    kind = np.bincount(groups, weights=labels) > 0
    for split in range(count):
        place = np.empty(n_groups, dtype=np.int64)
        place[np.lexsort((rng.random(n_groups), kind))] = np.arange(n_groups) + split
        for half in (0, 1):
            chosen = place[groups] % 2 == half
            weights[half, split, chosen] = contrast(labels[chosen])
    return weights


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Return cosines of vectors, dims ``(..., hidden)``; NaN where one is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
        return np.asarray((one * two).sum(axis=-1) / lengths)
