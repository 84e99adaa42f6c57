"""Similarity of representations of the same samples, with its distribution under permuted samples.

A representation is first reduced to what its similarity to others depends on: a value per pair of samples
for CKA and RSA, the neighbours of each sample, or its principal components for Procrustes. Samples are then
permuted in that form. The first of the ``orders`` of samples is that of the data, and the others are random.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from scipy.spatial.distance import squareform
from scipy.stats import rankdata

from .magnitude import unit_scale

_BLOCK = 2**15  # pairs of samples compared at once
_CONSTANT = 1e-12  # deviations from the mean, relative to the largest magnitude, that are due to rounding


@dataclass(frozen=True)
class Calibration:
    """Similarities and their distribution under permutation, dims those of the similarities.

    Parameters
    ----------
    similarity
        The similarity of matched samples.
    null_mean, null_sd
        Mean and standard deviation over permutations of the samples.
    p
        Permutation p-value, which counts the data as one of the permutations.
    calibrated
        (similarity − null_mean) / (1 − null_mean): 0 on average for unrelated representations, and 1 for
        equal ones.

    Notes
    -----
    Phipson, Smyth, Permutation p-values should never be zero, Statistical Applications in Genetics and
    Molecular Biology 2010.
    """

    similarity: np.ndarray
    null_mean: np.ndarray
    null_sd: np.ndarray
    p: np.ndarray
    calibrated: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Calibration":
        """Return the calibration of values, dims ``(order, ...)``."""
        observed, draws = values[0], values[1:]
        mean = draws.mean(axis=0)
        sd = draws.std(axis=0, ddof=1) if len(draws) > 1 else np.full_like(mean, np.nan)
        # equal values may differ by rounding
        exceeding = (draws >= observed - 1e-12).sum(axis=0)
        p = np.where(np.isnan(observed), np.nan, (1 + exceeding) / (1 + len(draws)))
        with np.errstate(invalid="ignore", divide="ignore"):
            calibrated = np.where(mean < 1, (observed - mean) / (1 - mean), np.nan)
        return cls(observed, mean, sd, p, calibrated)


def sample_orders(n: int, permutations: int, seed: int) -> np.ndarray:
    """Return the order of the data, followed by random permutations of it, dims ``(order, sample)``."""
    rng = np.random.default_rng(seed)
    return np.stack([np.arange(n), *(rng.permutation(n) for _ in range(permutations))])


def cka_pairs(vectors: np.ndarray) -> np.ndarray:
    """Return U-centred linear Gram entries, whose cosine is the debiased CKA, dims ``(pair,)``.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.

    Notes
    -----
    The inner product of U-centred matrices is the unbiased HSIC: Székely, Rizzo, Partial distance correlation
    with methods for dissimilarities, Annals of Statistics 2014.
    """
    n = len(vectors)
    centred = _centred(vectors)
    gram = centred @ centred.T
    np.fill_diagonal(gram, 0)
    rows = gram.sum(axis=1) / (n - 2)
    gram += rows.sum() / (n - 1) - rows[:, None] - rows
    return _unit(squareform(gram, checks=False))


def rsa_pairs(vectors: np.ndarray) -> np.ndarray:
    """Return centred ranks of cosine distances, whose cosine is Spearman's correlation, dims ``(pair,)``.

    Notes
    -----
    Kriegeskorte, Mur, Bandettini, Representational similarity analysis, Frontiers in Systems Neuroscience
    2008.
    """
    ranks = rankdata(squareform(-_cosines(vectors), checks=False))
    return _unit(ranks - (len(ranks) + 1) / 2)


def neighbours(vectors: np.ndarray, k: int) -> np.ndarray:
    """Return the k nearest neighbours of each sample by cosine, dims ``(sample, neighbour)``."""
    distances = -_cosines(vectors)
    np.fill_diagonal(distances, np.inf)
    return np.argsort(distances, axis=1, kind="stable")[:, :k]


def principal_components(vectors: np.ndarray, n_components: int) -> np.ndarray:
    """Return the leading principal components, scaled to a total sum of squares of 1.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    n_components
        Number of components of the result, dims ``(sample, component)``; those beyond the rank are 0.
    """
    centred = _centred(vectors)
    n, hidden = centred.shape
    count = min(n_components, n, hidden)
    if hidden <= n:
        axes = eigh(centred.T @ centred, subset_by_index=[hidden - count, hidden - 1])[1]
        scores = centred @ axes
    else:
        values, axes = eigh(centred @ centred.T, subset_by_index=[n - count, n - 1])
        scores = axes * np.sqrt(np.maximum(values, 0))
    return np.pad(_unit(scores), ((0, 0), (0, n_components - count)))


def pair_similarities(
    a: np.ndarray, b: np.ndarray, orders: np.ndarray, *, paired: bool = False
) -> np.ndarray:
    """Return the cosines of values of pairs, with the samples of ``b`` in each order.

    Parameters
    ----------
    a, b
        From :func:`cka_pairs` or :func:`rsa_pairs`, dims ``(layer, pair)`` and ``(layer_2, pair)``.
    orders
        From :func:`sample_orders`.
    paired
        Whether to compare only layers of the same index.

    Returns
    -------
    numpy.ndarray
        Dims ``(order, layer, layer_2)``, or ``(order, layer)`` if ``paired``.
    """
    n = orders.shape[1]
    first, second = (index.astype(np.int32) for index in np.triu_indices(n, 1))
    starts = np.arange(n) * n - np.arange(n) * (np.arange(n) + 1) // 2 - np.arange(n) - 1
    right = np.ascontiguousarray(b.T)
    left = right if a is b else np.ascontiguousarray(a.T)
    result = np.zeros((len(orders), len(a), *([] if paired else [len(b)])))
    for number, order in enumerate(orders):
        for begin in range(0, len(first), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            one, two = order[first[block]], order[second[block]]
            moved = right[starts[np.minimum(one, two)] + np.maximum(one, two)]
            result[number] += (left[block] * moved).sum(axis=0) if paired else left[block].T @ moved
    return _mirrored(result) if a is b and not paired else result


def neighbour_similarities(
    a: np.ndarray, b: np.ndarray, orders: np.ndarray, *, paired: bool = False
) -> np.ndarray:
    """Return the mean share of common neighbours; arguments and result as for :func:`pair_similarities`.

    Parameters
    ----------
    a, b
        From :func:`neighbours`, dims ``(layer, sample, neighbour)``.
    orders, paired
        As for :func:`pair_similarities`.

    Notes
    -----
    Mutual k-nearest neighbours: Huh, Cheung, Wang, Isola, The platonic representation hypothesis, ICML 2024.
    """
    n, k = a.shape[1:]
    samples = np.arange(n)[:, None]
    is_neighbour = np.zeros((n * n, len(a)), dtype=bool)
    for layer, found in enumerate(a):
        is_neighbour[samples * n + found, layer] = True
    result = np.empty((len(orders), len(a), *([] if paired else [len(b)])))
    for number, order in enumerate(orders):
        inverse = np.argsort(order)
        for layer_2, found in enumerate(b):
            edges = (inverse[:, None] * n + inverse[found]).ravel()
            if paired:
                result[number, layer_2] = is_neighbour[edges, layer_2].sum()
            else:
                result[number, :, layer_2] = is_neighbour[edges].sum(axis=0)
    result /= n * k
    return _mirrored(result) if a is b and not paired else result


def procrustes_similarities(
    a: np.ndarray, b: np.ndarray, orders: np.ndarray, *, paired: bool = False
) -> np.ndarray:
    """Return the orthogonal Procrustes similarity, the sum of the singular values of XᵀY, between 0 and 1.

    Parameters
    ----------
    a, b
        From :func:`principal_components`, dims ``(layer, sample, component)``.
    orders, paired
        As for :func:`pair_similarities`.

    Notes
    -----
    With unit sums of squares, the squared distance after the best rotation is 2 − 2 s: Williams, Kunz,
    Kornblith, Linderman, Generalized shape metrics on neural representations, NeurIPS 2021.
    """
    result = np.empty((len(orders), len(a), *([] if paired else [len(b)])))
    for number, order in enumerate(orders):
        moved = b[:, order]
        if paired:
            result[number] = _nuclear_norms(a.transpose(0, 2, 1) @ moved)
            continue
        for layer, components in enumerate(a):
            begin = layer if a is b else 0  # the similarity is symmetric, so half of a square suffices
            result[number, layer, begin:] = _nuclear_norms(components.T @ moved[begin:])
    return _mirrored(result) if a is b and not paired else result


def _mirrored(values: np.ndarray) -> np.ndarray:
    """Copy the upper triangle to the lower one, dims ``(order, layer, layer)``."""
    upper = np.triu(values)
    return np.asarray(upper + np.triu(values, 1).transpose(0, 2, 1))


def _nuclear_norms(matrices: np.ndarray) -> np.ndarray:
    if np.isnan(matrices).any():
        return np.array([np.nan if np.isnan(one).any() else _nuclear_norms(one[None])[0] for one in matrices])
    return np.asarray(np.linalg.svd(matrices, compute_uv=False).sum(axis=-1))


def _centred(vectors: np.ndarray) -> np.ndarray:
    """Return centred vectors as float64, scaled so that no product overflows; 0 if all are equal."""
    exact = np.asarray(vectors * unit_scale(vectors))
    exact -= exact.mean(axis=0)
    if np.abs(exact).max(initial=0) <= _CONSTANT:
        return np.zeros_like(exact)
    return exact


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """Return cosines between samples, so rounded that equal ones are equal; NaN for a vector of zeros."""
    exact = vectors * unit_scale(vectors, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    return np.asarray(np.round(exact @ exact.T, 12))


def _unit(values: np.ndarray) -> np.ndarray:
    """Scale values to a sum of squares of 1; NaN if all are 0."""
    size = np.sqrt(np.square(values).sum())
    return np.asarray(values / size) if size > 0 else np.full(values.shape, np.nan)
