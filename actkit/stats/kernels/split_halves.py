"""Cosines of directions from disjoint halves of the clusters, which share no sampling noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

PAIR_SUMMARIES = (
    *("cosine", "cosine_low", "cosine_high", "ceiling"),
    *("disattenuated", "disattenuated_low", "disattenuated_high"),
)
RELIABILITIES = ("reliability", "reliability_low", "reliability_high")
Z95 = 1.959963984540054
_SIGNS = np.array([-1.0, 1.0])


@dataclass(frozen=True)
class Cells:
    """The samples of one language by cell: those of one class in one cluster.

    Parameters
    ----------
    rows
        Indices of the samples, cell by cell, dims ``(sample,)``.
    starts
        Index of the first sample of each cell in ``rows``, dims ``(cell,)``.
    cluster, side
        Cluster, and class as 0 or 1, of each cell, dims ``(cell,)``.
    sizes
        Number of samples of each class in each cluster, dims ``(cluster, class)``.
    """

    rows: np.ndarray
    starts: np.ndarray
    cluster: np.ndarray
    side: np.ndarray
    sizes: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, labels: np.ndarray, clusters: np.ndarray, n_clusters: int) -> "Cells":
        """Group samples by cluster and class.

        Parameters
        ----------
        rows
            Indices of the samples of the language, dims ``(sample,)``.
        labels
            Whether each has the second label, dims ``(sample,)``.
        clusters
            Cluster of each: integers below ``n_clusters``, dims ``(sample,)``.
        n_clusters
            Number of clusters of all languages.
        """
        cell = 2 * clusters + labels
        order = np.argsort(cell, kind="stable")
        starts = np.flatnonzero(np.diff(cell[order], prepend=-1))
        cluster, side = np.divmod(cell[order][starts], 2)
        sizes = np.bincount(cell, minlength=2 * n_clusters).reshape(n_clusters, 2)
        return cls(rows[order], starts, cluster, side, sizes)


def cluster_halves(cells: Sequence[Cells], count: int, *, seed: int) -> np.ndarray:
    """Divide the clusters of all languages into random halves.

    Parameters
    ----------
    cells
        Samples of each language.
    count
        Number of random splits.
    seed
        Random seed of the splits.

    Returns
    -------
    numpy.ndarray
        0 or 1, dims ``(split, cluster)``. Both halves have equally many clusters of each kind: those with the
        same classes in the same languages.
    """
    rng = np.random.default_rng(seed)
    kind = np.unique(np.concatenate([part.sizes > 0 for part in cells], axis=1), axis=0, return_inverse=True)[
        1
    ]
    halves = np.empty((count, len(kind)), dtype=np.int64)
    for split in range(count):
        rank = np.empty(len(kind), dtype=np.int64)
        rank[np.lexsort((rng.random(len(kind)), kind.ravel()))] = np.arange(len(kind)) + split
        halves[split] = rank % 2
    return halves


def half_cosines(
    vectors: np.ndarray, cells: Sequence[Cells], halves: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return cosines between the directions of languages, each direction from other clusters.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    cells
        Samples of each language.
    halves
        From :func:`cluster_halves`.

    Returns
    -------
    tuple of numpy.ndarray
        ``PAIR_SUMMARIES``, dims ``(summary, language, language_2)``; ``RELIABILITIES``, dims
        ``(summary, language)``; and the directions of the halves, dims ``(half, split, language, hidden)``,
        0 in splits that leave a half without one of the labels.

    Notes
    -----
    Averaged over splits, ``d1 · d2`` of disjoint halves estimates the product of the true directions without
    bias. Divided by the root mean squares of the lengths, it is the cosine (between two languages) or the
    reliability (within one); divided by the roots of the languages' own products, the disattenuated cosine.
    Intervals come from a jackknife that deletes each cluster from all splits.
    """
    n_languages, n_splits, n_hidden = len(cells), len(halves), vectors.shape[1]
    pairs = np.full((len(PAIR_SUMMARIES), n_languages, n_languages), np.nan)
    reliabilities = np.full((len(RELIABILITIES), n_languages), np.nan)
    directions = np.full((2, n_splits, n_languages, n_hidden), np.nan)
    if not np.isfinite(vectors).all():
        return pairs, reliabilities, directions
    parts = [HalfMeans(vectors, part, halves) for part in cells]
    with np.errstate(invalid="ignore", divide="ignore"):
        for a, part in enumerate(parts):
            directions[:, :, a] = part.directions.transpose(1, 0, 2)
            reliabilities[:, a] = _interval(*_Products(part, part).reliability)
            pairs[:, a, a] = 1
        is_reliable = reliabilities[1] > 0
        for a in range(n_languages):
            for b in range(a):
                products = _Products(parts[a], parts[b])
                can_tell = is_reliable[a] and is_reliable[b]
                disattenuated = _interval(*products.disattenuated)
                if not can_tell or disattenuated[1:] == [-1, 1]:
                    disattenuated = [np.nan] * 3
                summary = [*_interval(*products.cosine), products.ceiling if can_tell else np.nan]
                summary += disattenuated
                pairs[:, a, b] = pairs[:, b, a] = summary
    pairs[PAIR_SUMMARIES.index("ceiling") :, range(n_languages), range(n_languages)] = np.nan
    return pairs, reliabilities, directions


def deletion_weights(cells: Cells, halves: np.ndarray) -> np.ndarray:
    """Return the weight of each split without a cluster.

    Parameters
    ----------
    cells
        Samples of a language.
    halves
        From :func:`cluster_halves`.

    Returns
    -------
    numpy.ndarray
        Dims ``(cluster, split)``: 0 in splits whose half would lack a label; NaN for clusters that no half
        can spare, or that have no samples.
    """
    _, counts = _half_sizes(cells, halves)
    rest = counts[np.arange(len(halves)), halves.T] - cells.sizes[:, None, :]
    can_delete = (rest > 0).all(axis=2) & (counts > 0).all(axis=(1, 2))
    can_delete &= (cells.sizes > 0).any(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(can_delete / can_delete.sum(axis=1, keepdims=True))


def _half_sizes(cells: Cells, halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return clusters of halves, dims ``(split, half, 1, cluster)``, and sizes ``(split, half, class)``."""
    is_in = halves[:, None, None, :] == np.arange(2)[:, None, None]
    return is_in, (is_in * cells.sizes.T).sum(axis=3)


class HalfMeans:
    """The class means of one language in each half, and how they change without a cluster."""

    def __init__(self, vectors: np.ndarray, cells: Cells, halves: np.ndarray) -> None:
        exact = vectors[cells.rows].astype(np.float64)
        exact -= exact.mean(axis=0)
        self.cells, self.halves = cells, halves
        self.sums = np.add.reduceat(exact, cells.starts)
        n_splits = len(halves)
        is_in, counts = _half_sizes(cells, halves)
        self.is_valid = (counts > 0).all(axis=(1, 2))
        weights = is_in[..., cells.cluster] * (cells.side == np.arange(2)[:, None])
        scaled = weights / np.maximum(counts, 1)[..., None]
        scaled[~self.is_valid] = 0
        self.means = (scaled.reshape(-1, len(self.sums)) @ self.sums).reshape(n_splits, 2, 2, -1)
        self.directions = self.means[:, :, 1] - self.means[:, :, 0]
        self._split = np.arange(n_splits)[None, :]
        self.half = halves.T  # cluster, split
        sizes = cells.sizes[:, None, :]
        rest = counts[self._split, self.half] - sizes  # cluster, split, class
        self.can_delete = (rest > 0).all(axis=2) & self.is_valid
        with np.errstate(divide="ignore"):
            inverse = np.where(rest > 0, _SIGNS / rest, 0)
        # without its cluster, the direction of a half changes by these multiples of means and sums
        self._of_means, self._of_sums = inverse * sizes, -inverse

    def changes(self, directions: np.ndarray) -> np.ndarray:
        """Return the product of each change with the directions of the halves, (cluster, split, half)."""
        flat = directions.reshape(-1, directions.shape[-1])
        sums = self._by_cluster((self.sums @ flat.T).reshape(len(self.sums), *directions.shape[:2]))
        means = np.einsum("shkd,sjd->shkj", self.means, directions, optimize=True)[self._split, self.half]
        change = np.einsum("gsk,gskj->gsj", self._of_means, means)
        return np.asarray(change + np.einsum("gsk,gksj->gsj", self._of_sums, sums))

    @cached_property
    def squares(self) -> np.ndarray:
        """Squared length of each change, dims ``(cluster, split)``."""
        grams = np.einsum("shkd,shld->shkl", self.means, self.means, optimize=True)[self._split, self.half]
        flat = self.means.reshape(-1, self.means.shape[-1])
        products = self._by_cluster((self.sums @ flat.T).reshape(len(self.sums), *self.means.shape[:3]))
        cross = products[
            np.arange(len(products))[:, None, None],
            np.arange(2)[:, None],
            self._split[:, None],
            self.half[:, None],
        ]  # cluster, class of the sum, split, class of the mean
        own = self._by_cluster(np.square(self.sums).sum(axis=1))  # cluster, class
        both = np.flatnonzero(np.diff(self.cells.cluster) == 0)
        between = np.zeros(len(own))
        between[self.cells.cluster[both]] = (self.sums[both] * self.sums[both + 1]).sum(axis=1)
        m, s = self._of_means, self._of_sums
        total = np.einsum("gsk,gskl,gsl->gs", m, grams, m, optimize=True)
        total += 2 * np.einsum("gsl,glsk,gsk->gs", s, cross, m, optimize=True)
        total += np.einsum("gsk,gk->gs", np.square(s), own)
        return np.asarray(total + 2 * s[..., 0] * s[..., 1] * between[:, None])

    @property
    def lengths_without(self) -> np.ndarray:
        """Mean squared length of the directions without each cluster, dims ``(cluster,)``."""
        lengths = np.square(self.directions).sum(axis=(1, 2)) / 2
        own = np.take_along_axis(self.changes(self.directions), self.half[..., None], axis=2)[..., 0]
        weights = deletion_weights(self.cells, self.halves)
        return np.asarray((weights * (lengths + own + self.squares / 2)).sum(axis=1))

    def changes_in(self, split: int, half: int, others: np.ndarray) -> np.ndarray:
        """Return the changes of the direction of a half, times other directions.

        Parameters
        ----------
        split, half
            The half.
        others
            Dims ``(hidden, direction)``.

        Returns
        -------
        numpy.ndarray
            Dims ``(cluster, direction)``, for the clusters of the half.
        """
        is_in = self.halves[split] == half
        rows = np.flatnonzero(is_in[self.cells.cluster])
        products = np.zeros((*self.cells.sizes.shape, others.shape[1]))
        products[self.cells.cluster[rows], self.cells.side[rows]] = self.sums[rows] @ others
        change = self._of_means[is_in, split] @ (self.means[split, half] @ others)
        return np.asarray(change + np.einsum("gk,gkd->gd", self._of_sums[is_in, split], products[is_in]))

    def _by_cluster(self, cells: np.ndarray) -> np.ndarray:
        """Arrange values of cells by cluster and class, 0 where there is no cell."""
        arranged = np.zeros((*self.cells.sizes.shape, *cells.shape[1:]))
        arranged[self.cells.cluster, self.cells.side] = cells
        return arranged


class _Products:
    """Products of the half directions of two languages: of all clusters, and without each of them."""

    def __init__(self, a: HalfMeans, b: HalfMeans) -> None:
        present = np.flatnonzero((a.cells.sizes + b.cells.sizes).sum(axis=1))
        half = a.half[present]
        weights = (a.can_delete & b.can_delete)[present].astype(float)
        weights /= weights.sum(axis=1, keepdims=True)
        whole = (a.is_valid & b.is_valid).astype(float)
        whole /= whole.sum()

        def average(values: np.ndarray, changes: np.ndarray) -> np.ndarray:
            """Return the mean over splits of all clusters, then without each."""
            return np.append(whole @ values, (weights * (values + changes)).sum(axis=1))

        def of_half(changes: np.ndarray, half: np.ndarray) -> np.ndarray:
            return np.take_along_axis(changes[present], half[..., None], axis=2)[..., 0]

        def crossed(x: HalfMeans, y: HalfMeans) -> np.ndarray:
            products = np.einsum("shd,shd->s", x.directions, y.directions[:, ::-1]) / 2
            changes = of_half(x.changes(y.directions), 1 - half) + of_half(y.changes(x.directions), 1 - half)
            return average(products, changes / 2)

        def squared(x: HalfMeans) -> np.ndarray:
            lengths = np.square(x.directions).sum(axis=(1, 2)) / 2
            return average(lengths, of_half(x.changes(x.directions), half) + x.squares[present] / 2)

        self._product = crossed(a, b)
        self._true = [crossed(a, a), crossed(b, b)] if a is not b else [self._product] * 2
        self._lengths = [squared(a), squared(b)] if a is not b else [squared(a)] * 2

    @property
    def reliability(self) -> tuple[float, np.ndarray]:
        ratio = self._true[0] / self._lengths[0]
        return ratio[0], ratio[1:]

    @property
    def cosine(self) -> tuple[float, np.ndarray]:
        ratio = self._product / np.sqrt(self._lengths[0] * self._lengths[1])
        return ratio[0], ratio[1:]

    @property
    def ceiling(self) -> float:
        return float(np.sqrt(self._true[0][0] * self._true[1][0] / self._lengths[0][0] / self._lengths[1][0]))

    @property
    def disattenuated(self) -> tuple[float, np.ndarray]:
        ratio = self._product / np.sqrt(self._true[0] * self._true[1])
        return ratio[0], ratio[1:]


def _interval(value: float, without: np.ndarray) -> list[float]:
    """Return a cosine and its 95% jackknife interval, restricted to the values that a cosine can have."""
    kept = without[np.isfinite(without)]
    if len(kept) < 2:
        return [float(np.clip(value, -1, 1)), np.nan, np.nan]
    error = np.sqrt((len(kept) - 1) / len(kept) * np.square(kept - kept.mean()).sum())
    return [float(limit) for limit in np.clip([value, value - Z95 * error, value + Z95 * error], -1, 1)]
