"""Unbiased HSIC of tokens in feature space, accumulated block by block over whole clusters."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .hsic import DistinctSums
from .magnitude import unit_scale

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ClusterBlock:
    """Whole clusters of tokens of two representations, as float64.

    Parameters
    ----------
    tokens
        Vectors of both, dims ``(token, hidden)`` and ``(token, hidden_2)``.
    members
        Cluster of each token, numbered from 0 within the block, dims ``(token,)``.
    weights
        1 / (size of the token's cluster), dims ``(token,)``.
    means
        Mean of each cluster, dims ``(cluster, hidden)`` and ``(cluster, hidden_2)``.
    """

    tokens: Pair
    members: np.ndarray
    weights: np.ndarray
    means: Pair

    @classmethod
    def of(cls, tokens: Pair, members: np.ndarray) -> "ClusterBlock":
        """Sort tokens by cluster, and average them."""
        order = np.argsort(members, kind="stable")
        members = members[order]
        x, y = tokens[0][order], tokens[1][order]
        weights = 1 / np.bincount(members)[members]
        starts = np.flatnonzero(np.diff(members, prepend=-1))
        means = tuple(np.add.reduceat(values * weights[:, None], starts) for values in (x, y))
        return cls((x, y), members, weights, (means[0], means[1]))

    def by_cluster(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of a value of each token within clusters, dims ``(cluster,)``."""
        return np.bincount(self.members, weights=self.weights * values)

    def projections(self) -> Pair:
        """Return the product of each token with the mean of its cluster, dims ``(token,)``, for both."""
        x, y = (
            np.einsum("th,th->t", values, mean[self.members])
            for values, mean in zip(self.tokens, self.means, strict=True)
        )
        return x, y

    def within(self) -> np.ndarray:
        """Return the squared norm of each cluster's cross-moment, dims ``(cluster,)``.

        A cluster of few tokens has small Gram matrices, and one of many tokens a small cross-moment.
        """
        x, y = self.tokens
        sizes = np.bincount(self.members)
        ends = np.cumsum(sizes)
        result = np.empty(len(sizes))
        for cluster, (begin, end) in enumerate(zip(ends - sizes, ends, strict=True)):
            first, second = x[begin:end], y[begin:end]
            if end - begin <= min(x.shape[1], y.shape[1]):
                result[cluster] = np.vdot(first @ first.T, second @ second.T)
            else:
                result[cluster] = np.square(first.T @ second).sum()
        return result / np.square(sizes)


@dataclass(frozen=True)
class TokenSums:
    """Sums over clusters from which the HSIC of two representations is computed, in float64.

    Parameters
    ----------
    n_tokens, n
        Number of tokens and of clusters.
    shifts
        Vectors that are subtracted from the scaled tokens of each, near their means, so that no digits are
        lost.
    scales
        Powers of two by which the tokens of each were multiplied.
    scatter
        Sum over clusters of the mean outer product of both, dims ``(hidden, hidden_2)``.
    mean_scatter
        Sum over clusters of the outer product of their means.
    sums
        Sums of the cluster means of each.
    projected
        Sum of each cluster's cross-moment times its mean of the other representation, for each.
    norm_weighted
        Sum of the cluster means of each, multiplied by the squared norm of the other's.
    norms
        Sum of the squared norms of the cluster means of each.
    norm_products
        Sum of the products of the squared norms of both means.
    within
        Sum of the squared norms of the clusters' cross-moments.
    bilinear
        Sum of the products of each cluster's cross-moment with both of its means.

    Notes
    -----
    The HSIC is invariant to a shift of each representation. Sums over different clusters follow by
    inclusion-exclusion; docs/methods/similarity.md has the formulas. All sums are additive, so blocks of
    whole clusters are merged exactly, provided that their shifts are equal.
    """

    n_tokens: int
    n: int
    shifts: Pair
    scales: tuple[float, float]
    scatter: np.ndarray
    mean_scatter: np.ndarray
    sums: Pair
    projected: Pair
    norm_weighted: Pair
    norms: tuple[float, float]
    norm_products: float
    within: float
    bilinear: float

    @classmethod
    def of(cls, tokens: Pair, members: np.ndarray, like: "TokenSums | None" = None) -> "TokenSums":
        """Return the sums of whole clusters.

        Parameters
        ----------
        tokens
            Vectors of both, dims ``(token, hidden)`` and ``(token, hidden_2)``; at least one.
        members
            Cluster of each token, numbered from 0 without gaps.
        like
            Sums whose shifts are used; by default, the means of these tokens.
        """
        scales = unit_scale(tokens[0]).item(), unit_scale(tokens[1]).item()
        if like is None:
            scaled = _scaled(tokens, scales)
            shifts = scaled[0].mean(axis=0), scaled[1].mean(axis=0)
        else:
            # a shift may be larger than the tokens of this block
            of_shifts = [like.scales[at] * unit_scale(like.shifts[at]).item() for at in (0, 1)]
            scales = min(scales[0], of_shifts[0]), min(scales[1], of_shifts[1])
            scaled = _scaled(tokens, scales)
            factors = scales[0] / like.scales[0], scales[1] / like.scales[1]
            shifts = like.shifts[0] * factors[0], like.shifts[1] * factors[1]
        block = ClusterBlock.of((scaled[0] - shifts[0], scaled[1] - shifts[1]), members)
        (x, y), (mean_x, mean_y), weights = block.tokens, block.means, block.weights[:, None]
        of_x, of_y = block.projections()
        norms_x, norms_y = np.square(mean_x).sum(axis=1), np.square(mean_y).sum(axis=1)
        return cls(
            n_tokens=len(x),
            n=len(mean_x),
            shifts=shifts,
            scales=scales,
            scatter=(x * weights).T @ y,
            mean_scatter=mean_x.T @ mean_y,
            sums=(mean_x.sum(axis=0), mean_y.sum(axis=0)),
            projected=((block.weights * of_y) @ x, (block.weights * of_x) @ y),
            norm_weighted=(norms_y @ mean_x, norms_x @ mean_y),
            norms=(float(norms_x.sum()), float(norms_y.sum())),
            norm_products=float(norms_x @ norms_y),
            within=float(block.within().sum()),
            bilinear=float((block.weights * of_x) @ of_y),
        )

    def block(self, tokens: Pair, members: np.ndarray) -> ClusterBlock:
        """Return whole clusters as they enter the sums: scaled and shifted."""
        x, y = _scaled(tokens, self.scales)
        return ClusterBlock.of((x - self.shifts[0], y - self.shifts[1]), members)

    def rescaled(self, scales: tuple[float, float]) -> "TokenSums":
        """Return the sums of tokens multiplied by other powers of two."""
        if scales == self.scales:
            return self
        a, b = scales[0] / self.scales[0], scales[1] / self.scales[1]
        return replace(
            self,
            scales=scales,
            shifts=(a * self.shifts[0], b * self.shifts[1]),
            scatter=a * b * self.scatter,
            mean_scatter=a * b * self.mean_scatter,
            sums=(a * self.sums[0], b * self.sums[1]),
            projected=(a * b**2 * self.projected[0], a**2 * b * self.projected[1]),
            norm_weighted=(a * b**2 * self.norm_weighted[0], a**2 * b * self.norm_weighted[1]),
            norms=(a**2 * self.norms[0], b**2 * self.norms[1]),
            norm_products=a**2 * b**2 * self.norm_products,
            within=a**2 * b**2 * self.within,
            bilinear=a**2 * b**2 * self.bilinear,
        )

    def merge(self, other: "TokenSums") -> "TokenSums":
        """Return the sums of both sets of clusters, whose shifts are equal and which share no cluster."""
        scales = min(self.scales[0], other.scales[0]), min(self.scales[1], other.scales[1])
        first, second = self.rescaled(scales), other.rescaled(scales)

        def both(a: Pair, b: Pair) -> Pair:
            return a[0] + b[0], a[1] + b[1]

        return TokenSums(
            n_tokens=first.n_tokens + second.n_tokens,
            n=first.n + second.n,
            shifts=first.shifts,
            scales=scales,
            scatter=first.scatter + second.scatter,
            mean_scatter=first.mean_scatter + second.mean_scatter,
            sums=both(first.sums, second.sums),
            projected=both(first.projected, second.projected),
            norm_weighted=both(first.norm_weighted, second.norm_weighted),
            norms=(first.norms[0] + second.norms[0], first.norms[1] + second.norms[1]),
            norm_products=first.norm_products + second.norm_products,
            within=first.within + second.within,
            bilinear=first.bilinear + second.bilinear,
        )

    @property
    def total(self) -> DistinctSums:
        """Sums over all clusters, dims ``(1, 1)``."""
        x, y = self.sums
        totals = self._totals()
        row_products = (
            x @ self.mean_scatter @ y
            - x @ self.norm_weighted[0]
            - y @ self.norm_weighted[1]
            + self.norm_products
        )
        between = np.square(self.mean_scatter).sum() - self.norm_products
        triples = x @ self.scatter @ y - x @ self.projected[0] - y @ self.projected[1] + 2 * self.bilinear
        return DistinctSums(
            np.array(self.n),
            _table(np.square(self.scatter).sum() - self.within),
            _table(triples - np.vdot(self.scatter, self.mean_scatter)),
            _table(totals[0] * totals[1] - 4 * row_products + 2 * between),
        )

    def _totals(self) -> tuple[float, float]:
        """Return the sums of both Gram matrices over different clusters."""
        x, y = self.sums
        return float(x @ x) - self.norms[0], float(y @ y) - self.norms[1]

    def hsic(self) -> float:
        """Return the unbiased HSIC of the scaled tokens; NaN for fewer than 4 clusters."""
        return float(self.total.hsic().item())

    def hsic_without(self, tokens: Pair, members: np.ndarray) -> np.ndarray:
        """Return the HSIC of the scaled tokens without one cluster at a time, dims ``(cluster,)``.

        Parameters
        ----------
        tokens, members
            Whole clusters, which are among those of the sums.
        """
        block = self.block(tokens, members)
        (x, y), (mean_x, mean_y) = block.tokens, block.means
        sum_x, sum_y = self.sums
        total_x, total_y = self._totals()
        mixed = self.scatter + self.mean_scatter / max(self.n - 3, 1)  # one product instead of two
        products = block.by_cluster(np.einsum("th,th->t", x @ mixed, y))
        of_x, of_y = block.projections()
        along_x, along_y = x @ sum_x, y @ sum_y
        bilinear, within = block.by_cluster(of_x * of_y), block.within()
        half_x, half_y = block.by_cluster(of_x * along_y), block.by_cluster(along_x * of_y)
        # triples with the cluster in the place of i, apart from a term among the products; of j; of q
        centre = block.by_cluster(along_x * along_y) - half_x - half_y + 2 * bilinear
        crossing = np.einsum("ch,ch->c", mean_x @ self.scatter, mean_y)
        first = mean_x @ (self.scatter @ sum_y - self.projected[0]) - half_x + 2 * bilinear - crossing
        second = mean_y @ (sum_x @ self.scatter - self.projected[1]) - half_y + 2 * bilinear - crossing
        # quadruples, from row sums a and b of the Gram matrices summed by cluster
        norms_x, norms_y = np.square(mean_x).sum(axis=1), np.square(mean_y).sum(axis=1)
        a, b = mean_x @ sum_x - norms_x, mean_y @ sum_y - norms_y
        across_x = mean_x @ (self.mean_scatter @ sum_y - self.norm_weighted[0]) - norms_x * b
        across_y = mean_y @ (sum_x @ self.mean_scatter - self.norm_weighted[1]) - norms_y * a
        between = np.einsum("ch,ch->c", mean_x @ self.mean_scatter, mean_y) - norms_x * norms_y
        quadruples = a * total_y + b * total_x - 4 * a * b - 2 * across_x - 2 * across_y + 4 * between
        total = self.total
        remaining = DistinctSums(
            np.full(len(mean_x), self.n - 1),
            total.pairs - 2 * _table(products - within),
            total.triples - _table(centre + first + second),
            total.quadruples - 2 * _table(quadruples),
        )
        return remaining.hsic()[:, 0, 0]


def _scaled(tokens: Sequence[np.ndarray], scales: Sequence[float]) -> Pair:
    x, y = (np.multiply(tokens[at], scales[at], dtype=np.float64) for at in (0, 1))
    return x, y


def _table(values: np.ndarray | float) -> np.ndarray:
    """Return values with dims ``(..., layer, layer_2)``, of one pair of layers."""
    return np.asarray(values)[..., None, None]
