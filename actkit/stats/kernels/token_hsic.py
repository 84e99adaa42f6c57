"""Unbiased HSIC of tokens in feature space, accumulated block by block over whole clusters."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.linalg import LinAlgError, cholesky
from scipy.linalg.blas import dtrmm

from .hsic import DistinctSums
from .magnitude import unit_scale

Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Frame:
    """How the tokens of a representation are scaled and shifted, so that no digits are lost.

    Parameters
    ----------
    scale
        Power of two by which tokens are multiplied.
    shift
        Vector near the mean of the scaled tokens, subtracted from them, dims ``(hidden,)``.
    """

    scale: float
    shift: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray) -> "Frame":
        """Return the frame of a block of tokens."""
        scale = unit_scale(tokens).item()
        return cls(scale, np.multiply(tokens, scale, dtype=np.float64).mean(axis=0))

    def including(self, tokens: np.ndarray) -> "Frame":
        """Return the same shift at a scale that suits further tokens."""
        # a shift may be larger than these tokens
        return self.at(min(unit_scale(tokens).item(), self.scale * unit_scale(self.shift).item()))

    def at(self, scale: float) -> "Frame":
        """Return the same shift at another scale."""
        return Frame(scale, self.shift * (scale / self.scale))


@dataclass(frozen=True)
class ClusterBlock:
    """Whole clusters of tokens of one representation, as float64.

    Parameters
    ----------
    frame
        How the tokens were scaled and shifted.
    tokens
        Vectors, sorted by cluster, dims ``(token, hidden)``.
    members
        Cluster of each token, numbered from 0 within the block, dims ``(token,)``.
    """

    frame: Frame
    tokens: np.ndarray
    members: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray, members: np.ndarray, frame: Frame) -> "ClusterBlock":
        """Scale and shift tokens, and sort them by cluster.

        Parameters
        ----------
        tokens
            Dims ``(token, hidden)``; at least one.
        members
            Cluster of each token, numbered from 0 without gaps.
        frame
            How they are scaled and shifted.
        """
        if (np.diff(members) < 0).any():
            order = np.argsort(members, kind="stable")
            tokens, members = tokens[order], members[order]
        exact = np.multiply(tokens, frame.scale, dtype=np.float64)
        exact -= frame.shift
        return cls(frame, exact, members)

    @cached_property
    def sizes(self) -> np.ndarray:
        """Number of tokens of each cluster."""
        return np.bincount(self.members)

    @cached_property
    def weights(self) -> np.ndarray:
        """1 / (size of the token's cluster), dims ``(token,)``."""
        return np.asarray(1 / self.sizes[self.members])

    @cached_property
    def means(self) -> np.ndarray:
        """Mean of each cluster, dims ``(cluster, hidden)``."""
        return np.stack([self.weights[span] @ self.tokens[span] for span in self.slices])

    @cached_property
    def norms(self) -> np.ndarray:
        """Squared norm of the mean of each cluster."""
        return np.asarray(np.einsum("ch,ch->c", self.means, self.means))

    @cached_property
    def projections(self) -> np.ndarray:
        """Product of each token with the mean of its cluster, dims ``(token,)``."""
        return np.asarray(np.einsum("th,th->t", self.tokens, self.means[self.members]))

    @cached_property
    def slices(self) -> list[slice]:
        """The tokens of each cluster."""
        ends = np.cumsum(self.sizes)
        return [slice(*edges) for edges in zip((ends - self.sizes).tolist(), ends.tolist(), strict=True)]

    @cached_property
    def grams(self) -> list[np.ndarray]:
        """Gram matrix of the tokens of each cluster."""
        return [self.tokens[span] @ self.tokens[span].T for span in self.slices]

    def by_cluster(self, values: np.ndarray) -> np.ndarray:
        """Return the mean of a value of each token within clusters, dims ``(cluster,)``."""
        return np.bincount(self.members, weights=self.weights * values)

    def within(self, other: "ClusterBlock") -> np.ndarray:
        """Return the squared norm of each cluster's cross-moment, dims ``(cluster,)``.

        A cluster of few tokens has small Gram matrices, and one of many tokens a small cross-moment.
        """
        if self.sizes.max() <= 2 * min(self.tokens.shape[1], other.tokens.shape[1]):
            squares = [np.vdot(*both) for both in zip(self.grams, other.grams, strict=True)]
        else:
            moments = [self.tokens[span].T @ other.tokens[span] for span in self.slices]
            squares = [np.vdot(moment, moment) for moment in moments]
        return np.asarray(squares / np.square(self.sizes))


@dataclass(frozen=True)
class TokenSums:
    """Sums over clusters from which the HSIC of two representations is computed, in float64.

    Parameters
    ----------
    n
        Number of clusters.
    frames
        How the tokens of each were scaled and shifted.
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
        Squared norms of the clusters' cross-moments, dims ``(cluster,)``.
    bilinear
        Sum of the products of each cluster's cross-moment with both of its means.

    Notes
    -----
    The HSIC is invariant to a shift of each representation. Sums over different clusters follow by
    inclusion-exclusion; docs/methods/similarity.md has the formulas. All sums are additive, so blocks of
    whole clusters are merged exactly, provided that their shifts are equal.
    """

    n: int
    frames: tuple[Frame, Frame]
    scatter: np.ndarray
    mean_scatter: np.ndarray
    sums: Pair
    projected: Pair
    norm_weighted: Pair
    norms: tuple[float, float]
    norm_products: float
    within: np.ndarray
    bilinear: float

    @classmethod
    def of(cls, x: ClusterBlock, y: ClusterBlock) -> "TokenSums":
        """Return the sums of the same clusters in two representations, which may be one."""
        weighted = x.tokens * np.sqrt(x.weights)[:, None]
        return cls(
            n=len(x.means),
            frames=(x.frame, y.frame),
            # BLAS needs half the time for the product of a matrix with itself
            scatter=weighted.T @ (weighted if x is y else y.tokens * np.sqrt(y.weights)[:, None]),
            mean_scatter=x.means.T @ y.means,
            sums=(x.means.sum(axis=0), y.means.sum(axis=0)),
            projected=(
                (x.weights * y.projections) @ x.tokens,
                (y.weights * x.projections) @ y.tokens,
            ),
            norm_weighted=(y.norms @ x.means, x.norms @ y.means),
            norms=(float(x.norms.sum()), float(y.norms.sum())),
            norm_products=float(x.norms @ y.norms),
            within=x.within(y),
            bilinear=float((x.weights * x.projections) @ y.projections),
        )

    def rescaled(self, scales: tuple[float, float]) -> "TokenSums":
        """Return the sums of tokens multiplied by other powers of two."""
        first, second = self.frames
        if scales == (first.scale, second.scale):
            return self
        a, b = scales[0] / first.scale, scales[1] / second.scale
        return replace(
            self,
            frames=(first.at(scales[0]), second.at(scales[1])),
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
        pairs = list(zip(self.frames, other.frames, strict=True))
        scales = (min(frame.scale for frame in pairs[0]), min(frame.scale for frame in pairs[1]))
        first, second = self.rescaled(scales), other.rescaled(scales)

        def both(a: Pair, b: Pair) -> Pair:
            return a[0] + b[0], a[1] + b[1]

        return TokenSums(
            n=first.n + second.n,
            frames=first.frames,
            scatter=first.scatter + second.scatter,
            mean_scatter=first.mean_scatter + second.mean_scatter,
            sums=both(first.sums, second.sums),
            projected=both(first.projected, second.projected),
            norm_weighted=both(first.norm_weighted, second.norm_weighted),
            norms=(first.norms[0] + second.norms[0], first.norms[1] + second.norms[1]),
            norm_products=first.norm_products + second.norm_products,
            within=np.append(first.within, second.within),
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
            _table(np.square(self.scatter).sum() - self.within.sum()),
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

    @cached_property
    def _root(self) -> np.ndarray | None:
        """Cholesky factor of the matrix whose products the jackknife needs; None if it has none."""
        try:
            return np.asarray(cholesky(self._mixed, lower=True))
        except LinAlgError:
            return None

    @property
    def _mixed(self) -> np.ndarray:
        return np.asarray(self.scatter + self.mean_scatter / max(self.n - 3, 1))  # one product, not two

    def _products(self, x: ClusterBlock, y: ClusterBlock) -> np.ndarray:
        """Return ``x @ mixed @ y`` of each token."""
        if x is y and self._root is not None:  # a triangular product takes half the time
            roots = dtrmm(1.0, self._root, x.tokens.T, lower=1, trans_a=1).T
            return np.asarray(np.einsum("th,th->t", roots, roots))
        return np.asarray(np.einsum("th,th->t", x.tokens @ self._mixed, y.tokens))

    def hsic_without(self, x: ClusterBlock, y: ClusterBlock, first: int = 0) -> np.ndarray:
        """Return the HSIC of the scaled tokens without one cluster at a time, dims ``(cluster,)``.

        Parameters
        ----------
        x, y
            Whole clusters, which are among those of the sums and have their frames.
        first
            Position of their first cluster among all.
        """
        mean_x, mean_y, sum_x, sum_y = x.means, y.means, *self.sums
        total_x, total_y = self._totals()
        products = x.by_cluster(self._products(x, y))
        of_x, of_y = x.projections, y.projections
        along_x, along_y = x.tokens @ sum_x, y.tokens @ sum_y
        bilinear, within = x.by_cluster(of_x * of_y), self.within[first : first + len(mean_x)]
        half_x, half_y = x.by_cluster(of_x * along_y), x.by_cluster(along_x * of_y)
        # triples with the cluster in the place of i, apart from a term among the products; of j; of q
        centre = x.by_cluster(along_x * along_y) - half_x - half_y + 2 * bilinear
        crossing = np.einsum("ch,ch->c", mean_x @ self.scatter, mean_y)
        first = mean_x @ (self.scatter @ sum_y - self.projected[0]) - half_x + 2 * bilinear - crossing
        second = mean_y @ (sum_x @ self.scatter - self.projected[1]) - half_y + 2 * bilinear - crossing
        # quadruples, from row sums a and b of the Gram matrices summed by cluster
        norms_x, norms_y = x.norms, y.norms
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


def _table(values: np.ndarray | float) -> np.ndarray:
    """Return values with dims ``(..., layer, layer_2)``, of one pair of layers."""
    return np.asarray(values)[..., None, None]
