"""Unbiased HSIC of Gram matrices, averaged over draws of one sample per cluster."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .magnitude import unit_scale

FEWEST = 4  # clusters; with fewer, HSIC has no unbiased estimate
_MOST_SLICES = 16  # of clusters of equal size
_BLOCK_BYTES = 2**28


@dataclass(frozen=True)
class DistinctSums:
    """Weighted sums over samples of different clusters, dims ``(..., layer, layer_2)``.

    Parameters
    ----------
    n
        Number of clusters, dims ``(...)``.
    pairs
        Sum of ``K[i, j] * L[i, j]``.
    triples
        Sum of ``K[i, j] * L[i, q]``.
    quadruples
        Sum of ``K[i, j] * L[q, r]``.

    Notes
    -----
    A sample has the weight 1 / (size of its cluster), so that dividing a sum by the number of ordered tuples
    of different clusters gives its average over all draws of one sample per cluster.
    """

    n: np.ndarray
    pairs: np.ndarray
    triples: np.ndarray
    quadruples: np.ndarray

    def hsic(self) -> np.ndarray:
        """Return the unbiased HSIC; NaN for fewer than 4 clusters."""
        n = np.where(self.n < FEWEST, np.nan, self.n)[..., None, None]
        two = n * (n - 1)
        three = two * (n - 2)
        return np.asarray(self.pairs / two - 2 * self.triples / three + self.quadruples / (three * (n - 3)))


@dataclass(frozen=True)
class GramSums:
    """Sums of the Gram matrices of several representations.

    Parameters
    ----------
    total
        Sums over all clusters.
    remaining
        Sums without one cluster at a time, dims ``(cluster, layer, layer_2)``; None if not requested.
    squares
        Sum of ``K[i, j] * L[i, j]`` over all samples, those of the same cluster included, dims
        ``(layer, layer_2)``.
    traces
        Weighted sum of squared norms of centred vectors, dims ``(layer,)``.
    """

    total: DistinctSums
    remaining: DistinctSums | None
    squares: np.ndarray
    traces: np.ndarray


def gram_sums(vectors: np.ndarray, groups: np.ndarray | None, *, jackknife: bool) -> GramSums:
    """Return the sums that make up the HSIC of every pair of representations.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``.
    groups
        Cluster of each sample, dims ``(sample,)``; by default, each sample is its own cluster.
    jackknife
        Whether to compute the sums without each cluster.

    Notes
    -----
    The HSIC is invariant to constants added to rows and columns of a Gram matrix, so a single centring serves
    all draws and every leave-one-cluster-out estimate. Sums over different clusters follow by
    inclusion-exclusion from row sums and from Gram matrices summed by cluster, so time grows with
    ``layer * sample**2 * (hidden + layer)`` and memory, excluding the vectors, with
    ``layer * sample + layer**2 * cluster``.
    """
    n_layers, n = vectors.shape[:2]
    order = np.arange(n) if groups is None else np.argsort(groups, kind="stable")
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1][order]
    clusters = _Clusters.of(members)
    rows, sums, traces = np.empty((n_layers, n)), np.empty((n_layers, len(clusters.starts))), []
    for layer in range(n_layers):
        centred = _centred(vectors[layer][order], clusters.weights)
        means = np.add.reduceat(centred * clusters.weights[:, None], clusters.starts)
        # the weighted row sums of a centred Gram matrix are 0, so those over other clusters follow
        rows[layer] = -np.einsum("sh,sh->s", centred, means[members])
        sums[layer] = -np.square(means).sum(axis=1)
        traces.append(clusters.weights @ np.square(centred).sum(axis=1))
    parts = [
        _part(gram, rows, sums, clusters, block, jackknife=jackknife)
        for block, gram in _grams(vectors, order, clusters)
    ]
    total = DistinctSums(
        np.array(len(clusters.starts)),
        sum(part.pairs.sum(axis=0) for part in parts),
        sum(part.triples.sum(axis=0) for part in parts),
        sum(part.quadruples.sum(axis=0) for part in parts),
    )
    remaining = _remaining(total, parts) if jackknife else None
    return GramSums(total, remaining, total.pairs + sum(part.within for part in parts), np.array(traces))


@dataclass(frozen=True)
class _Clusters:
    """Samples sorted by cluster."""

    members: np.ndarray  # cluster of each sample
    starts: np.ndarray  # first sample of each cluster
    weights: np.ndarray  # 1 / (size of the cluster) of each sample

    @classmethod
    def of(cls, members: np.ndarray) -> "_Clusters":
        starts = np.flatnonzero(np.diff(members, prepend=-1))
        return cls(members, starts, 1 / np.bincount(members)[members])

    @property
    def are_single(self) -> bool:
        return len(self.starts) == len(self.members)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums over the samples of each cluster, along the last dimension."""
        size = len(self.members) // len(self.starts)
        if size > _MOST_SLICES or not np.array_equal(self.starts, np.arange(0, len(self.members), size)):
            return np.asarray(np.add.reduceat(values, self.starts, axis=-1))
        total = values[..., ::size].copy()
        for place in range(1, size):  # several times faster than reduceat
            total += values[..., place::size]
        return total


@dataclass(frozen=True)
class _Part:
    """Contributions of some clusters to the sums, dims ``(cluster, layer, layer_2)``.

    Each contribution has the cluster in the first index. The others are None without a jackknife.
    """

    pairs: np.ndarray
    triples: np.ndarray  # the cluster in the place of j
    quadruples: np.ndarray  # the cluster in the place of i
    within: np.ndarray  # products within clusters, dims (layer, layer_2)
    centre: np.ndarray | None = None  # triples with the cluster in the place of i


def _centred(matrix: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return vectors of weighted mean 0 as float64, scaled so that no product overflows or underflows."""
    exact = matrix * unit_scale(matrix)
    exact -= weights @ exact / weights.sum()
    return np.asarray(exact)


def _grams(vectors: np.ndarray, order: np.ndarray, clusters: _Clusters) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of centred Gram matrices, dims ``(row, layer, sample)``, by whole clusters."""
    n_layers, n = vectors.shape[:2]
    n_rows = max(_BLOCK_BYTES // (8 * n_layers * n), 1)
    edges = [0]
    for start in [*clusters.starts[1:].tolist(), n]:
        if start - edges[-1] >= n_rows or start == n:
            edges.append(start)
    for begin, end in pairwise(edges):
        gram = np.empty((end - begin, n_layers, n))
        for layer in range(n_layers):
            centred = _centred(vectors[layer][order], clusters.weights)
            gram[:, layer] = centred[begin:end] @ centred.T
        yield slice(begin, end), gram


def _part(
    gram: np.ndarray,
    rows: np.ndarray,
    sums: np.ndarray,
    clusters: _Clusters,
    block: slice,
    *,
    jackknife: bool,
) -> _Part:
    """Return the contributions of the clusters of a block of rows.

    Parameters
    ----------
    gram
        Dims ``(row, layer, sample)``; overwritten.
    rows
        Weighted row sums over other clusters, dims ``(layer, sample)``.
    sums
        The same, summed by cluster, dims ``(layer, cluster)``.
    clusters, block
        Clusters of all samples, and the rows.
    jackknife
        Whether to compute the contributions that only the jackknife needs.
    """
    members, weights = clusters.members[block], clusters.weights
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    within = _cut_clusters(gram, clusters, block)
    row_weights, row_sums = weights[block][:, None, None], rows[:, block].T
    block_sums = sums[:, members[0] : members[-1] + 1].T  # (cluster, layer)
    products = _weighted_products(gram, weights)
    if clusters.are_single:
        crossing = gram @ rows.T if jackknife else _outer(row_sums, row_sums)
        quadruples = _quadruples(block_sums, sums, crossing, products)
        centre = _outer(row_sums, row_sums) - products if jackknife else None
        return _Part(products, crossing - products, quadruples, within, centre)
    centre = None
    if jackknife:
        to_clusters = clusters.sums(gram * weights)  # (row, layer, cluster)
        others = _outer(row_sums, row_sums) - to_clusters @ to_clusters.transpose(0, 2, 1)
        centre = np.add.reduceat(others * row_weights, starts)
    gram *= row_weights
    by_sample = np.add.reduceat(gram, starts) * weights  # (cluster, layer, sample)
    by_cluster = clusters.sums(by_sample)
    triples = by_sample @ rows.T - _weighted_products(by_sample, 1 / weights)
    between = _weighted_products(by_cluster, np.ones(1))
    quadruples = _quadruples(block_sums, sums, by_cluster @ sums.T, between)
    return _Part(np.add.reduceat(products * row_weights, starts), triples, quadruples, within, centre)


def _cut_clusters(gram: np.ndarray, clusters: _Clusters, block: slice) -> np.ndarray:
    """Set entries within clusters to 0, and return the sum of their products, dims ``(layer, layer_2)``."""
    if clusters.are_single:
        at = np.arange(len(gram))
        squares = gram[at, :, block.start + at]
        gram[at, :, block.start + at] = 0
        return np.asarray(squares.T @ squares)
    members, weights = clusters.members[block], clusters.weights[block]
    within = np.zeros((gram.shape[1], gram.shape[1]))
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    for begin, end in pairwise([*starts.tolist(), len(members)]):
        columns = slice(block.start + begin, block.start + end)
        entries = gram[begin:end, :, columns].transpose(1, 0, 2).reshape(gram.shape[1], -1)
        within += weights[begin] ** 2 * (entries @ entries.T)
        gram[begin:end, :, columns] = 0
    return within


def _weighted_products(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the weighted products of all layers, dims ``(row, layer, layer_2)``."""
    scaled = values if (weights == 1).all() else values * np.sqrt(weights)
    return np.asarray(scaled @ scaled.transpose(0, 2, 1))


def _outer(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return outer products of rows, dims ``(row, layer, layer_2)``."""
    return np.asarray(first[:, :, None] * second[:, None, :])


def _quadruples(own: np.ndarray, sums: np.ndarray, crossing: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Return the sum of ``A[g, h] * B[p, r]`` over different clusters for each cluster ``g``.

    Parameters
    ----------
    own
        Row sums of clusters ``g``, dims ``(cluster, layer)``.
    sums
        Row sums of all clusters, dims ``(layer, cluster)``.
    crossing
        Sum over ``h`` of ``A[g, h]`` times the row sum of ``B`` at ``h``.
    products
        Sum over ``h`` of ``A[g, h] * B[g, h]``.
    """
    others = _outer(own, sums.sum(axis=1) - 2 * own)
    return np.asarray(others - 2 * crossing + 2 * products)


def _remaining(total: DistinctSums, parts: list[_Part]) -> DistinctSums:
    """Return the sums without one cluster at a time."""
    pairs = np.concatenate([part.pairs for part in parts])
    triples = np.concatenate([part.triples for part in parts])
    quadruples = np.concatenate([part.quadruples for part in parts])
    centre = np.concatenate([part.centre for part in parts if part.centre is not None])
    return DistinctSums(
        np.full(len(pairs), total.n - 1),
        total.pairs - 2 * pairs,
        total.triples - centre - triples - triples.transpose(0, 2, 1),
        total.quadruples - 2 * (quadruples + quadruples.transpose(0, 2, 1)),
    )
