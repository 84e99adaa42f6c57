"""Moments of vectors, accumulated block by block in any order and merged exactly."""

from dataclasses import dataclass

import numpy as np


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
