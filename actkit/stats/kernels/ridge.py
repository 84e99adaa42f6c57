"""Ridge regression of many targets, with one factorisation of the smaller Gram matrix."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class RidgeSystem:
    """The normal equations of a ridge regression without intercept.

    Parameters
    ----------
    x
        Training samples, dims ``(sample, hidden)``; may be sparse.
    penalty
        Factor of the squared norm of the weights.
    factor
        Cholesky factor of the regularised Gram matrix.
    is_dual
        Whether the Gram matrix is that of the samples, and not that of the dimensions.
    """

    x: Any
    penalty: float
    factor: Any
    is_dual: bool

    @classmethod
    def of(cls, x: np.ndarray) -> "RidgeSystem":
        """Factorise the equations; the penalty is the mean eigenvalue of the Gram matrix of the samples."""
        is_dual = x.shape[1] > len(x)  # primal and dual give the same weights; solve the smaller system
        return cls._factorised(x, x @ x.T if is_dual else x.T @ x, is_dual)

    @classmethod
    def of_gram(cls, x: np.ndarray, gram: np.ndarray) -> "RidgeSystem":
        """Factorise the equations by the Gram matrix of the dimensions, which is overwritten."""
        return cls._factorised(x, gram, is_dual=False)

    @classmethod
    def of_sparse(cls, x: csr_matrix) -> "RidgeSystem":
        """Factorise the equations of sparse samples by their Gram matrix."""
        return cls._factorised(x, (x @ x.T).toarray(), is_dual=True)

    @classmethod
    def _factorised(cls, x: Any, gram: np.ndarray, is_dual: bool) -> "RidgeSystem":
        penalty = max(float(np.trace(gram)) / x.shape[0], 1e-12)
        gram[np.diag_indices_from(gram)] += penalty
        return cls(x, penalty, cho_factor(gram, overwrite_a=True, check_finite=False), is_dual)

    def weights(self, targets: np.ndarray) -> np.ndarray:
        """Return the weights of each target, dims ``(hidden, target)``.

        Parameters
        ----------
        targets
            Dims ``(sample, target)``.
        """
        if self.is_dual:
            return np.asarray(self.x.T @ self._solved(targets))
        return self._solved(self.x.T @ targets)

    def solve(self, sides: np.ndarray) -> np.ndarray:
        """Return the product of the inverse Hessian with vectors, dims ``(hidden, vector)``."""
        if self.is_dual:
            inner = self.x.T @ self._solved(self.x @ sides)
            return np.asarray((sides - inner) / self.penalty)
        return self._solved(sides)

    def _solved(self, sides: np.ndarray) -> np.ndarray:
        return np.asarray(cho_solve(self.factor, sides, check_finite=False))
