"""Permutation tests of many sparse features: sign flips of pairs, or permuted labels of units."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import norm

LIVE = 10  # units in which a feature has to differ, or to be active, to be tested
_TIES = 1 - 1e-9  # statistics that differ by rounding errors are equal
_ROUNDING = 1e-12  # relative difference between averages of equal values
_CELLS = 2**23  # of the matrices of permuted statistics held at once
_MORE = 99  # further rounds of permutations for features that no permutation of the first round exceeds
_TIGHT = 1 / (4 * norm.sf(np.sqrt(2)))


class LayerTest(NamedTuple):
    """Test of all features of a layer.

    Parameters
    ----------
    difference, effect, t, p
        Dims ``(feature,)``; ``t`` and ``p`` are NaN unless the feature is live.
    extremeness
        The absolute value of the statistic that is compared with its permutations, dims ``(feature,)``: t, or
        a monotone function of it.
    live
        Whether the feature is tested, dims ``(feature,)``.
    largest
        Largest permuted statistic of the live features, dims ``(permutation,)``; 0 if none is live.
    """

    difference: np.ndarray
    effect: np.ndarray
    t: np.ndarray
    p: np.ndarray
    extremeness: np.ndarray
    live: np.ndarray
    largest: np.ndarray


def paired_test(first: csr_array, second: csr_array, signs: np.ndarray) -> LayerTest:
    """Compare two values of each pair by flipping the signs of the pairs' differences.

    Parameters
    ----------
    first, second
        Value of each pair under either label, dims ``(pair, feature)``.
    signs
        -1 or 1, dims ``(permutation, pair)``.

    Notes
    -----
    t is that of a paired t-test. With the signs flipped, the sum of squares of the differences stays the
    same, so that t increases with ``|sum| / sqrt(sum of squares)``, which is what is compared. If no flip
    reaches the observed statistic, p is the bound ``2 c P(N >= |sum| / sqrt(sum of squares))`` with c = 3.18
    where this is below 1 / (permutations + 1). It holds for any differences whose signs are exchangeable:
    Bentkus, Dzindzalieta, A tight Gaussian bound for weighted sums of Rademacher random variables, Bernoulli
    2015.
    """
    differences, size = (second - first).tocsc(), (abs(first) + abs(second)).tocsc()
    differences = differences.multiply(abs(differences) > _ROUNDING * size).tocsc()
    differences.eliminate_zeros()
    n_pairs, n_features = differences.shape
    sums, squares = differences.sum(axis=0), differences.power(2).sum(axis=0)
    live = differences.count_nonzero(axis=0) >= LIVE
    scale = np.sqrt(np.where(live, squares, np.nan))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = np.maximum(squares - sums**2 / n_pairs, 0) / (n_pairs - 1)
        variance[variance < 1e-14 * squares] = 0  # rounding errors of equal differences
        t = np.where(live, sums / n_pairs / np.sqrt(variance / n_pairs), np.nan)
    p, largest = np.full(n_features, np.nan), np.zeros(len(signs))
    for columns in _blocks(live, len(signs) + n_pairs):
        flipped = np.abs(signs @ differences[:, columns].toarray()) / scale[columns]
        observed = np.abs(sums[columns]) / scale[columns]
        p[columns] = _monte_carlo(flipped, observed)
        largest = np.maximum(largest, flipped.max(axis=1))
    extremeness = np.abs(sums) / scale
    bound = 2 * _TIGHT * norm.sf(extremeness)
    is_least = p < 1.5 / (len(signs) + 1)
    p = np.where(is_least & (bound < 1 / (len(signs) + 1)), bound, p)
    return LayerTest(sums / n_pairs, _effect(first, second, sums / n_pairs), t, p, extremeness, live, largest)


def label_test(values: csr_array, labels: np.ndarray, permuted: np.ndarray, *, seed: int = 0) -> LayerTest:
    """Compare units that have one of two labels by permuting the labels.

    Parameters
    ----------
    values
        Value of each unit, dims ``(unit, feature)``.
    labels
        Whether each unit has the second label, dims ``(unit,)``.
    permuted
        The same, permuted, dims ``(permutation, unit)``.
    seed
        Random seed of further permutations.

    Notes
    -----
    If no permutation exceeds the statistic of a feature, 99 times as many are added for this feature alone,
    so that p can be smaller than 1 / (permutations + 1). It stays valid: below this value, p is that of all
    rounds, and whether it is below is decided by the first round alone.

    Welch's t: permutations of a studentised difference hold their level asymptotically even if the labels
    differ in spread. Chung, Romano, Exact and asymptotically robust permutation tests, Annals of Statistics
    2013.
    """
    columns_of, n_features = values.tocsc(), values.shape[1]
    means = [columns_of[np.flatnonzero(chosen)].mean(axis=0) for chosen in (~labels, labels)]
    difference = means[1] - means[0]
    live = columns_of.count_nonzero(axis=0) >= LIVE
    t, p = np.full(n_features, np.nan), np.full(n_features, np.nan)
    largest = np.zeros(len(permuted))
    for columns in _blocks(live, len(permuted) + len(labels)):
        block = columns_of[:, columns].toarray()
        varies = _varies(block)
        live[columns[~varies]] = False
        columns, block = columns[varies], block[:, varies]
        if not len(columns):
            continue
        t[columns] = welch(block, labels[None])[0]
        drawn = np.abs(welch(block, permuted))
        p[columns] = _monte_carlo(drawn, np.abs(t[columns]))
        extreme = np.flatnonzero(p[columns] < 1.5 / (len(permuted) + 1))
        p[columns[extreme]] = _refined(block[:, extreme], labels, t[columns[extreme]], len(permuted), seed)
        largest = np.maximum(largest, drawn.max(axis=1))
    effect = _effect(columns_of[np.flatnonzero(~labels)], columns_of[np.flatnonzero(labels)], difference)
    return LayerTest(difference, effect, t, p, np.abs(t), live, largest)


def _refined(values: np.ndarray, labels: np.ndarray, t: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return p-values of features that no permutation of the first round exceeds, from further rounds."""
    if not len(t):
        return t
    rng, exceeding = np.random.default_rng([seed, 1]), np.zeros(len(t))
    tiled = np.tile(labels, (count, 1))
    for _ in range(_MORE):
        drawn = np.abs(welch(values, rng.permuted(tiled, axis=1)))
        exceeding += (drawn >= np.abs(t) * _TIES).sum(axis=0)
    return np.minimum((1 + exceeding) / (1 + count * (1 + _MORE)), 1 / (1 + count))


def welch(values: np.ndarray, labels: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Return Welch's t of the second label minus the first, for several labellings.

    Parameters
    ----------
    values
        Dims ``(unit, feature)``.
    labels
        Whether each unit has the second label, dims ``(labelling, unit)``.
    counted
        Units that count, dims ``(labelling, unit)``; all by default.

    Returns
    -------
    numpy.ndarray
        Dims ``(labelling, feature)``; infinite if neither label varies but they differ, 0 if they do not.
    """
    centred = values - values.mean(axis=0)
    every = np.ones((1, len(values)), dtype=bool) if counted is None else counted
    chosen = labels & every
    n_second = chosen.sum(axis=1, keepdims=True)
    n_first = every.sum(axis=1, keepdims=True) - n_second
    chosen, every = chosen.astype(np.float64), every.astype(np.float64)
    squared = centred**2
    sums, squares = chosen @ centred, chosen @ squared
    rest, rest_squares = every @ centred - sums, every @ squared - squares
    error = _mean_variance(sums, squares, n_second) + _mean_variance(rest, rest_squares, n_first)
    difference = sums / n_second - rest / n_first
    with np.errstate(divide="ignore", invalid="ignore"):
        is_zero = np.abs(difference) <= 1e-12 * np.sqrt(squares + rest_squares)
        return np.asarray(np.where(is_zero, 0.0, difference / np.sqrt(error)))


def best_features(values: csr_array, labels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Choose the feature with the largest absolute value of Welch's t in each training part.

    Parameters
    ----------
    values
        Value of each unit, dims ``(unit, feature)``.
    labels
        Whether each unit has the second label, dims ``(unit,)``.
    train
        Which units are used to choose, dims ``(split, unit)``.

    Returns
    -------
    tuple of numpy.ndarray
        Index of the feature and its signed t, dims ``(split,)``; -1 and 0 where no feature is active in 10
        units.
    """
    chosen, statistic = np.full(len(train), -1), np.zeros(len(train))
    weights, by_column = train.astype(np.float64), values.tocsc()
    live = np.flatnonzero((weights @ (by_column != 0).astype(np.float64)).max(axis=0) >= LIVE)
    best = np.zeros(len(train))
    for columns in _blocks_of(live, values.shape[0] + len(train)):
        block = by_column[:, columns].toarray()
        scores = welch(block, np.broadcast_to(labels, train.shape), train)
        is_live = ((weights @ (block != 0)) >= LIVE) & _varies(block)
        size = np.where(is_live, np.nan_to_num(np.abs(scores), posinf=np.finfo(float).max), 0)
        at = size.argmax(axis=1)
        rows = np.flatnonzero(size.max(axis=1) > best)
        best[rows] = size[rows, at[rows]]
        chosen[rows], statistic[rows] = columns[at[rows]], scores[rows, at[rows]]
    return chosen, statistic


def _varies(values: np.ndarray) -> np.ndarray:
    """Return which features differ between units by more than rounding errors."""
    return np.asarray(np.ptp(values, axis=0) > _ROUNDING * np.abs(values).max(axis=0))


def _mean_variance(sums: np.ndarray, squares: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the squared standard error of a mean; exactly 0 if only rounding errors vary."""
    around = squares - sums**2 / count
    return np.asarray(np.where(around > 1e-12 * squares, around, 0) / ((count - 1) * count))


def _effect(first: csr_array, second: csr_array, difference: np.ndarray) -> np.ndarray:
    """Return the difference over the pooled standard deviation within labels.

    If neither label varies, it is infinite if they differ, NaN if they do not.
    """
    within, size, freedom = np.zeros(len(difference)), np.zeros(len(difference)), 0
    for values in (first, second):
        count, squares = values.shape[0], values.power(2).sum(axis=0)
        size += np.sqrt(squares / count)
        around = squares - values.sum(axis=0) ** 2 / count
        within += np.where(around > 1e-12 * squares, around, 0)
        freedom += count - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = np.where(np.abs(difference) > _ROUNDING * size, difference, 0)
        return np.asarray(difference / np.sqrt(within / freedom))


def _monte_carlo(drawn: np.ndarray, observed: np.ndarray) -> np.ndarray:
    return np.asarray((1 + (drawn >= observed * _TIES).sum(axis=0)) / (1 + len(drawn)))


def _blocks(live: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    yield from _blocks_of(np.flatnonzero(live), rows)


def _blocks_of(columns: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    at_once = max(_CELLS // rows, 1)
    for start in range(0, len(columns), at_once):
        yield columns[start : start + at_once]


def family_p(extremeness: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return p-values corrected over all features of all layers by the permuted maximum.

    Parameters
    ----------
    extremeness
        Of :class:`LayerTest`, any dims; NaN unless live.
    largest
        Largest permuted statistic of all layers, dims ``(permutation,)``.

    Returns
    -------
    numpy.ndarray
        Dims as ``extremeness``.
    """
    ordered = np.sort(largest)
    below = np.searchsorted(ordered, extremeness * _TIES, side="left")
    p = (1 + len(ordered) - below) / (1 + len(ordered))
    return np.asarray(np.where(np.isnan(extremeness), np.nan, p))
