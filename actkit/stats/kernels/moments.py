"""Moments of vectors, accumulated block by block in any order and merged exactly."""

from dataclasses import dataclass

import numpy as np

from .magnitude import unit_scale


@dataclass(frozen=True)
class Moments:
    """Moments of vectors from which whitening is computed, in float64.

    Parameters
    ----------
    n
        Number of vectors.
    mean
        Mean, dims ``(hidden,)``.
    scatter
        Sum of the outer products of centred vectors, dims ``(hidden, hidden_2)``.
    fourth
        Sum of the fourth powers of the norms of centred vectors.
    third
        Sum of centred vectors, each multiplied by its squared norm, dims ``(hidden,)``.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray
    fourth: float
    third: np.ndarray

    @classmethod
    def nothing(cls, hidden: int) -> "Moments":
        """Return the moments of zero vectors."""
        return cls(0, np.zeros(hidden), np.zeros((hidden, hidden)), 0.0, np.zeros(hidden))

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Moments":
        """Return the moments of vectors, dims ``(sample, hidden)``."""
        if not len(vectors):
            return cls.nothing(vectors.shape[1])
        mean = vectors.mean(axis=0, dtype=np.float64)
        centred = vectors - mean
        squares = np.square(centred).sum(axis=1)
        return cls(len(centred), mean, centred.T @ centred, float(squares @ squares), squares @ centred)

    def about(self, mean: np.ndarray) -> "Moments":
        """Return the moments about another mean."""
        shift = mean - self.mean
        size, trace, projected = shift @ shift, np.trace(self.scatter), self.scatter @ shift
        fourth = (
            self.fourth
            + 4 * shift @ projected
            + self.n * size**2
            - 4 * self.third @ shift
            + 2 * size * float(trace)
        )
        third = self.third - 2 * projected - (trace + self.n * size) * shift
        return Moments(self.n, mean, self.scatter + self.n * np.outer(shift, shift), float(fourth), third)

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of vectors: the pairwise update of [1]_, for higher moments too.

        References
        ----------
        .. [1] Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
           variances, COMPSTAT 1982.
        """
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        mean = self.mean + (other.mean - self.mean) * (other.n / n)
        first, second = self.about(mean), other.about(mean)
        return Moments(
            n, mean, first.scatter + second.scatter, first.fourth + second.fourth, first.third + second.third
        )

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, dims ``(hidden, hidden_2)``."""
        return np.asarray(self.scatter / max(self.n - 1, 1))

    @property
    def ledoit_wolf(self) -> float:
        """Optimal shrinkage of the covariance towards a multiple of the identity, between 0 and 1 [1]_.

        References
        ----------
        .. [1] Ledoit, Wolf, A well-conditioned estimator for large-dimensional covariance matrices,
           Journal of Multivariate Analysis 2004.
        """
        hidden = len(self.mean)
        covariance = self.scatter / self.n
        size = float(np.square(covariance).sum())
        spread = (self.fourth / self.n - size) / self.n
        distance = size - float(np.trace(covariance)) ** 2 / hidden
        return min(max(spread / distance, 0.0), 1.0) if distance > 0 else 1.0


@dataclass(frozen=True)
class Crossing:
    """Cross-moments of two representations from which debiased CKA is computed, in float64.

    Parameters
    ----------
    n
        Number of samples.
    means
        Means of both, dims ``(hidden,)`` and ``(hidden_2,)``.
    traces
        Sums of the squared norms of centred vectors, one for each representation.
    scatter
        Sum of the outer products of centred vectors of both, dims ``(hidden, hidden_2)``.
    squares
        Sum of the products of their squared norms.
    thirds
        Sums of centred vectors of each, multiplied by the squared norms of the other.
    scales
        Powers of two by which the vectors of each were multiplied.

    Notes
    -----
    The unbiased HSIC of Song et al., Feature selection via dependence maximization, JMLR 2012, in feature
    space; docs/methods.md has the formula. Blocks are merged as by Chan, Golub, LeVeque, COMPSTAT 1982.
    """

    n: int
    means: tuple[np.ndarray, np.ndarray]
    traces: tuple[float, float]
    scatter: np.ndarray
    squares: float
    thirds: tuple[np.ndarray, np.ndarray]
    scales: tuple[float, float]

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "Crossing":
        """Return the cross-moments of vectors, dims ``(sample, hidden)`` and ``(sample, hidden_2)``."""
        if not len(first):
            zeros, shape = (
                (np.zeros(first.shape[1]), np.zeros(second.shape[1])),
                (first.shape[1], second.shape[1]),
            )
            return cls(0, zeros, (0.0, 0.0), np.zeros(shape), 0.0, zeros, (1.0, 1.0))
        scales = unit_scale(first).item(), unit_scale(second).item()
        x = np.multiply(first, scales[0], dtype=np.float64)
        y = np.multiply(second, scales[1], dtype=np.float64)
        means = x.mean(axis=0), y.mean(axis=0)
        x -= means[0]
        y -= means[1]
        a, b = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
        traces, thirds = (float(a.sum()), float(b.sum())), (b @ x, a @ y)
        return cls(len(x), means, traces, x.T @ y, float(a @ b), thirds, scales)

    def centred(self, vectors: np.ndarray, number: int) -> np.ndarray:
        """Return scaled, centred vectors of representation 0 or 1, as they enter the sums."""
        exact = np.multiply(vectors, self.scales[number], dtype=np.float64)
        return np.asarray(exact - self.means[number])

    def rescaled(self, scales: tuple[float, float]) -> "Crossing":
        """Return the cross-moments of vectors multiplied by other powers of two."""
        if scales == self.scales:
            return self
        a, b = scales[0] / self.scales[0], scales[1] / self.scales[1]
        return Crossing(
            self.n,
            (a * self.means[0], b * self.means[1]),
            (a**2 * self.traces[0], b**2 * self.traces[1]),
            a * b * self.scatter,
            a**2 * b**2 * self.squares,
            (a * b**2 * self.thirds[0], a**2 * b * self.thirds[1]),
            scales,
        )

    def about(self, means: tuple[np.ndarray, np.ndarray]) -> "Crossing":
        """Return the cross-moments about other means."""
        shift = means[0] - self.means[0], means[1] - self.means[1]
        size = float(shift[0] @ shift[0]), float(shift[1] @ shift[1])
        projected = self.scatter @ shift[1], shift[0] @ self.scatter
        squares = (
            self.squares
            - 2 * float(shift[1] @ self.thirds[1])
            - 2 * float(shift[0] @ self.thirds[0])
            + size[1] * self.traces[0]
            + size[0] * self.traces[1]
            + 4 * float(shift[0] @ projected[0])
            + self.n * size[0] * size[1]
        )
        # sums of |y|² x and of |x|² y
        thirds = (
            self.thirds[0] - 2 * projected[0] - (self.traces[1] + self.n * size[1]) * shift[0],
            self.thirds[1] - 2 * projected[1] - (self.traces[0] + self.n * size[0]) * shift[1],
        )
        traces = self.traces[0] + self.n * size[0], self.traces[1] + self.n * size[1]
        scatter = self.scatter + self.n * np.outer(*shift)
        return Crossing(self.n, means, traces, scatter, squares, thirds, self.scales)

    def merge(self, other: "Crossing") -> "Crossing":
        """Return the cross-moments of both sets of samples."""
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        scales = min(self.scales[0], other.scales[0]), min(self.scales[1], other.scales[1])
        first, second, share = self.rescaled(scales), other.rescaled(scales), other.n / n
        means = (
            first.means[0] + (second.means[0] - first.means[0]) * share,
            first.means[1] + (second.means[1] - first.means[1]) * share,
        )
        first, second = first.about(means), second.about(means)
        return Crossing(
            n,
            means,
            (first.traces[0] + second.traces[0], first.traces[1] + second.traces[1]),
            first.scatter + second.scatter,
            first.squares + second.squares,
            (first.thirds[0] + second.thirds[0], first.thirds[1] + second.thirds[1]),
            scales,
        )

    @property
    def hsic(self) -> float:
        """Unbiased HSIC of the scaled vectors; NaN for fewer than 4 samples."""
        n = self.n
        if n < 4:
            return float("nan")
        product = self.traces[0] * self.traces[1] / ((n - 1) * (n - 2))
        total = float(np.square(self.scatter).sum()) - n / (n - 2) * self.squares + product
        return total / (n * (n - 3))
