"""Moments of vectors that come in parts, in any order: merged, they are those of all."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Moments:
    """What whitening needs to know of vectors; float64.

    Parameters
    ----------
    n
        How many vectors.
    mean
        Dims ``(hidden,)``.
    scatter
        Sum of the outer products of what is left without the mean, dims ``(hidden, hidden_2)``.
    fourth
        Sum of the fourth powers of the lengths of that.
    third
        Sum of it, each times its squared length, dims ``(hidden,)``.
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray
    fourth: float
    third: np.ndarray

    @classmethod
    def nothing(cls, hidden: int) -> "Moments":
        """Return those of no vectors."""
        return cls(0, np.zeros(hidden), np.zeros((hidden, hidden)), 0.0, np.zeros(hidden))

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Moments":
        """Return those of vectors, dims ``(sample, hidden)``."""
        if not len(vectors):
            return cls.nothing(vectors.shape[1])
        mean = vectors.mean(axis=0, dtype=np.float64)
        left = vectors - mean
        squares = np.square(left).sum(axis=1)
        return cls(len(left), mean, left.T @ left, float(squares @ squares), squares @ left)

    def moved(self, mean: np.ndarray) -> "Moments":
        """Return the sums around another mean."""
        by = mean - self.mean
        size, trace, pulled = by @ by, np.trace(self.scatter), self.scatter @ by
        fourth = (
            self.fourth + 4 * by @ pulled + self.n * size**2 - 4 * self.third @ by + 2 * size * float(trace)
        )
        third = self.third - 2 * pulled - (trace + self.n * size) * by
        return Moments(self.n, mean, self.scatter + self.n * np.outer(by, by), float(fourth), third)

    def merge(self, other: "Moments") -> "Moments":
        """Return those of both, as [1]_ does for the first two.

        References
        ----------
        .. [1] Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample
           variances, COMPSTAT 1982.
        """
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        mean = self.mean + (other.mean - self.mean) * (other.n / n)
        one, two = self.moved(mean), other.moved(mean)
        return Moments(n, mean, one.scatter + two.scatter, one.fourth + two.fourth, one.third + two.third)

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased covariance, dims ``(hidden, hidden_2)``."""
        return np.asarray(self.scatter / max(self.n - 1, 1))

    @property
    def ledoit_wolf(self) -> float:
        """How far to shrink the covariance towards a multiple of the identity, between 0 and 1 [1]_.

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
    """What the debiased CKA of two representations needs, of parts of their samples; float64.

    Parameters
    ----------
    n
        How many samples.
    means
        Of the two, dims ``(hidden,)`` and ``(hidden_2,)``.
    traces
        Of the two, the sum of the squared lengths of what is left without the mean.
    scatter
        Sum of the outer products of what is left of both, dims ``(hidden, hidden_2)``.
    squares
        Sum of the products of their squared lengths.
    thirds
        Sums of each of the two, times the squared length of the other.
    """

    n: int
    means: tuple[np.ndarray, np.ndarray]
    traces: tuple[float, float]
    scatter: np.ndarray
    squares: float
    thirds: tuple[np.ndarray, np.ndarray]

    @classmethod
    def of(cls, one: np.ndarray, two: np.ndarray) -> "Crossing":
        """Return it of vectors of the same samples, dims ``(sample, hidden)`` and ``(sample, hidden_2)``."""
        if not len(one):
            nothing = np.zeros(one.shape[1]), np.zeros(two.shape[1])
            return cls(0, nothing, (0.0, 0.0), np.zeros((one.shape[1], two.shape[1])), 0.0, nothing)
        means = one.mean(axis=0, dtype=np.float64), two.mean(axis=0, dtype=np.float64)
        x, y = one - means[0], two - means[1]
        a, b = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
        return cls(len(x), means, (float(a.sum()), float(b.sum())), x.T @ y, float(a @ b), (b @ x, a @ y))

    def moved(self, means: tuple[np.ndarray, np.ndarray]) -> "Crossing":
        """Return the sums around other means."""
        by = means[0] - self.means[0], means[1] - self.means[1]
        size = float(by[0] @ by[0]), float(by[1] @ by[1])
        pulled = self.scatter @ by[1], by[0] @ self.scatter
        squares = (
            self.squares
            - 2 * float(by[1] @ self.thirds[1])
            - 2 * float(by[0] @ self.thirds[0])
            + size[1] * self.traces[0]
            + size[0] * self.traces[1]
            + 4 * float(by[0] @ pulled[0])
            + self.n * size[0] * size[1]
        )
        # of |y|² x, and of |x|² y
        thirds = (
            self.thirds[0] - 2 * pulled[0] - (self.traces[1] + self.n * size[1]) * by[0],
            self.thirds[1] - 2 * pulled[1] - (self.traces[0] + self.n * size[0]) * by[1],
        )
        traces = self.traces[0] + self.n * size[0], self.traces[1] + self.n * size[1]
        scatter = self.scatter + self.n * np.outer(*by)
        return Crossing(self.n, means, traces, scatter, squares, thirds)

    def merge(self, other: "Crossing") -> "Crossing":
        """Return that of both."""
        n = self.n + other.n
        if not self.n or not other.n:
            return self if self.n else other
        share = other.n / n
        means = (
            self.means[0] + (other.means[0] - self.means[0]) * share,
            self.means[1] + (other.means[1] - self.means[1]) * share,
        )
        one, two = self.moved(means), other.moved(means)
        return Crossing(
            n,
            means,
            (one.traces[0] + two.traces[0], one.traces[1] + two.traces[1]),
            one.scatter + two.scatter,
            one.squares + two.squares,
            (one.thirds[0] + two.thirds[0], one.thirds[1] + two.thirds[1]),
        )

    @property
    def hsic(self) -> float:
        """The unbiased HSIC, as :func:`~actkit.stats.kernels.cka.align` has it; NaN for fewer than 4."""
        n = self.n
        if n < 4:
            return float("nan")
        product = self.traces[0] * self.traces[1] / ((n - 1) * (n - 2))
        total = float(np.square(self.scatter).sum()) - n / (n - 2) * self.squares + product
        return total / (n * (n - 3))
