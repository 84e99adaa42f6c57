"""Debiased CKA of few pairs of representations, in feature space if dimensions are fewer than samples.

The sums of :mod:`~actkit.stats.kernels.token_hsic` with samples as tokens; a Gram matrix of all samples costs
several times as much, unless all pairs of many layers share it.
"""

from itertools import pairwise

import numpy as np

from .cka import align, standard_error
from .hsic import FEWEST
from .token_hsic import ClusterBlock, Frame, TokenSums


def adjacent_cka(vectors: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Return the debiased CKA of adjacent layers, dims ``(layer,)``, of which the lower one is named.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``.
    groups
        Cluster of each sample, dims ``(sample,)``; by default, each sample is its own cluster.
    """
    _, n, hidden = vectors.shape
    if hidden > n:
        return np.ascontiguousarray(np.diagonal(align(vectors, groups, jackknife=False).cka, offset=1))
    blocks = [_block(layer, groups) for layer in vectors]
    own = np.array([TokenSums.of(block, block).hsic() for block in blocks])
    cross = np.array([TokenSums.of(*pair).hsic() for pair in pairwise(blocks)])
    return _ratio(cross, own[:-1], own[1:])


def pair_cka(x: np.ndarray, y: np.ndarray, groups: np.ndarray | None = None) -> tuple[float, float, float]:
    """Return the debiased CKA of two representations, its jackknife standard error, and the biased CKA.

    Parameters
    ----------
    x, y
        Vectors of the same samples, dims ``(sample, hidden)``.
    groups
        Cluster of each sample, dims ``(sample,)``; by default, each sample is its own cluster.
    """
    n, hidden = x.shape
    n_clusters = n if groups is None else len(np.unique(groups))
    if hidden > n or n_clusters < FEWEST:
        aligned = align(np.stack([x, y]), groups)
        return aligned.cka[0, 1].item(), aligned.se[0, 1].item(), aligned.biased[0, 1].item()
    first = _block(x, groups)
    second = first if y is x else _block(y, groups)
    pairs = [(first, second), (first, first), (second, second)]
    sums = [TokenSums.of(*pair) for pair in pairs]
    cka = _ratio(*(np.asarray(each.hsic()) for each in sums))
    left_out = _ratio(*(each.hsic_without(*pair) for each, pair in zip(sums, pairs, strict=True)))
    squares = [np.square(_centred(each)).sum() for each in sums]
    with np.errstate(invalid="ignore", divide="ignore"):
        biased = squares[0] / (np.sqrt(squares[1]) * np.sqrt(squares[2]))
    return cka.item(), standard_error(left_out).item(), biased.item()


def _block(vectors: np.ndarray, groups: np.ndarray | None) -> ClusterBlock:
    members = np.arange(len(vectors)) if groups is None else np.unique(groups, return_inverse=True)[1]
    return ClusterBlock.of(vectors, members, Frame.of(vectors))


def _centred(sums: TokenSums) -> np.ndarray:
    """Return the sum of outer products about the means, in which every cluster has the same weight."""
    return np.asarray(sums.scatter - np.outer(*sums.sums) / sums.n)


def _ratio(cross: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt(np.where(first > 0, first, np.nan)) * np.sqrt(np.where(second > 0, second, np.nan))
        return np.asarray(cross / norm)
