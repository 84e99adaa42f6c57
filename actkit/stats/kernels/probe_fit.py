"""Fitted linear probes, and the effect of each training sample on their scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .ridge import RidgeSystem

_VECTORS = 8  # random vectors that estimate the mean leverage
_LARGEST_LEVERAGE = 0.9


@dataclass(frozen=True)
class FittedProbe:
    """A linear probe for one or several labellings of the same samples.

    Parameters
    ----------
    x
        Training samples, dims ``(sample, hidden)``; may be sparse.
    weights, intercepts
        Dims ``(hidden, labelling)`` and ``(labelling,)``.
    residual
        Negative derivative of the loss with respect to the score of each sample, for the first labelling,
        dims ``(sample,)``.
    curvature
        Second derivative of the loss, dims ``(sample,)``.
    solve
        The product of the inverse Hessian, including the penalty, with vectors, dims ``(hidden, vector)``.
    """

    x: Any
    weights: np.ndarray
    intercepts: np.ndarray
    residual: np.ndarray
    curvature: np.ndarray
    solve: Callable[[np.ndarray], np.ndarray]

    def effects(self, direction: np.ndarray) -> np.ndarray:
        """Return how much each training sample contributes to the product of the weights and a direction.

        Parameters
        ----------
        direction
            Dims ``(hidden,)``.

        Returns
        -------
        numpy.ndarray
            Dims ``(sample,)``: to first order, the product minus that of the probe without the sample.

        Notes
        -----
        A step of Newton's method from the probe to the one without the sample (Cook, Weisberg, Residuals and
        influence in regression, Chapman and Hall 1982), in which the leverage of each sample is replaced by
        the mean over samples. The trace of the hat matrix is estimated with random signs (Hutchinson, A
        stochastic estimator of the trace of the influence matrix, Communications in Statistics 1989).
        """
        n = len(self.residual)
        total = self.curvature.sum()
        centre = self.x.T @ self.curvature / total
        root = np.sqrt(self.curvature)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], (n, _VECTORS)) * root[:, None]
        sides = np.column_stack([direction, self.x.T @ signs - np.outer(centre, signs.sum(axis=0))])
        solved = self._solve_without_intercept(sides, centre * total, total)
        leverage = float((sides[:, 1:] * solved[:, 1:]).sum()) / _VECTORS / n
        along = self.x @ solved[:, 0] - centre @ solved[:, 0]
        return np.asarray(along * self.residual / (1 - min(leverage, _LARGEST_LEVERAGE)))

    def _solve_without_intercept(self, sides: np.ndarray, edge: np.ndarray, corner: float) -> np.ndarray:
        """Solve with the Hessian of the weights from which the unpenalised intercept is eliminated."""
        solved = self.solve(np.column_stack([sides, edge]))
        along = solved[:, -1]
        return np.asarray(solved[:, :-1] + np.outer(along, edge @ solved[:, :-1]) / (corner - edge @ along))


def fit_ridge(
    x: np.ndarray, labels: np.ndarray, products: tuple[np.ndarray, np.ndarray] | None = None
) -> FittedProbe:
    """Return a ridge-regression probe for several labellings at once.

    Parameters
    ----------
    x
        Standardised training samples, dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(labelling, sample)``; the first labelling has both labels.
    products
        Products of the samples' dimensions, and with the targets of all labellings, from
        :class:`~actkit.stats.kernels.shared_products.SharedProducts`; `labels` may then be the first alone.

    Returns
    -------
    FittedProbe
        The boundary of the first labelling is halfway between the mean scores of its two labels; the others,
        of which only the order of the scores is used, have intercept 0.

    Notes
    -----
    With labels -1 and 1, ridge regression finds the direction of a regularised linear discriminant (Hastie,
    Tibshirani, Friedman, The elements of statistical learning, Springer 2009, exercise 4.2). The penalty is
    the mean eigenvalue of the Gram matrix of the samples. One factorisation serves all labellings.
    """
    targets = np.where(labels, 1.0, -1.0).T
    targets -= targets.mean(axis=0)
    if products is None:
        system = RidgeSystem.of(x)
        weights = system.weights(targets)
    else:
        system = RidgeSystem.of_gram(x, products[0])
        weights = system.solve(products[1])
    intercepts = np.zeros(weights.shape[1])
    middle = (labels[0] / labels[0].sum() + ~labels[0] / (~labels[0]).sum()) @ x / 2
    intercepts[0] = -middle @ weights[:, 0]
    return FittedProbe(
        x,
        weights,
        intercepts,
        residual=targets[:, 0] - x @ weights[:, 0],
        curvature=np.ones(len(x)),
        solve=system.solve,
    )
