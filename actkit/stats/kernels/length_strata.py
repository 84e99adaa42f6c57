"""Match samples of several classes by the number of their tokens."""

import numpy as np


def length_matched(codes: np.ndarray, lengths: np.ndarray, groups: np.ndarray, *, seed: int) -> np.ndarray:
    """Return which samples to keep so that each class has as many of each length.

    Parameters
    ----------
    codes
        Class of each sample, integers from 0, dims ``(sample,)``.
    lengths
        Number of tokens, dims ``(sample,)``.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``. Clusters are put in a random order; of
        the samples of a class and length, those of the first clusters are kept, so that twins of equal length
        tend to remain together.
    seed
        Random seed of the order.

    Returns
    -------
    numpy.ndarray
        Boolean, dims ``(sample,)``.

    Notes
    -----
    Exact matching (Stuart, Matching methods for causal inference, Statistical Science 2010).
    """
    priority = np.random.default_rng(seed).permutation(int(groups.max(initial=0)) + 1)[groups]
    length = np.unique(lengths, return_inverse=True)[1]
    counts = np.zeros((length.max(initial=0) + 1, codes.max(initial=0) + 1), dtype=np.int64)
    np.add.at(counts, (length, codes), 1)
    order = np.lexsort((priority, codes, length))
    cells = counts.ravel()
    first = (np.cumsum(cells) - cells).reshape(counts.shape)
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes))
    return np.asarray(rank - first[length, codes] < counts.min(axis=1)[length])


def length_strata(codes: np.ndarray, lengths: np.ndarray, folds: int) -> np.ndarray:
    """Return strata of similar length and equal class, from which each fold should draw as many samples.

    Matched classes are balanced as a whole: if the training part has longer samples of a class, the test part
    has shorter ones, and a probe of length is below chance. Stratified folds are balanced nearly.

    Parameters
    ----------
    codes, lengths
        As for :func:`length_matched`, of the samples that were kept.
    folds
        Number of folds, and the fewest samples of a class in most strata.

    Returns
    -------
    numpy.ndarray
        Integers from 0, dims ``(sample,)``.
    """
    n_classes, n = int(codes.max(initial=0)) + 1, len(codes)
    n_strata = max(n // (folds * n_classes), 1)
    below = np.searchsorted(np.sort(lengths), lengths)  # equal lengths are in one stratum
    stratum = below * n_strata // max(n, 1) * n_classes + codes
    return np.asarray(np.unique(stratum, return_inverse=True)[1])
