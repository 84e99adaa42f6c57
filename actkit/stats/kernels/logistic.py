"""L2-penalised logistic regression, iterated until it converges."""

from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import LinearOperator, cg
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from .probe_fit import FittedProbe

_TOLERANCE = 1e-8  # of the gradient's norm at the start
_ACCEPTED = 1e-6  # where rounding errors prevent further progress
_ITERATIONS = 100
_LEAST_WEIGHT = 1e-12


def fit_logistic(x: np.ndarray, labels: np.ndarray, *, penalty: float = 1.0) -> FittedProbe:
    """Return an L2-penalised logistic regression for one labelling.

    Parameters
    ----------
    x
        Dims ``(sample, hidden)``, float64.
    labels
        Boolean, dims ``(sample,)``; both values occur.
    penalty
        Factor of half the squared length of the weights (1/C in scikit-learn). The intercept is not
        penalised.

    Returns
    -------
    FittedProbe
        The exact optimum.

    Raises
    ------
    ArithmeticError
        If the norm of the gradient does not fall to 1e-6 of its value at the start.

    Notes
    -----
    Newton's method with step halving (iteratively reweighted least squares: Hastie, Tibshirani, Friedman,
    The elements of statistical learning, Springer 2009, section 4.4.1). With fewer samples than dimensions,
    each step solves the dual system, whose size is the number of samples, in the form that stays stable for
    samples of little weight (Rasmussen, Williams, Gaussian processes for machine learning, MIT Press 2006,
    algorithm 3.1).
    """
    problem = _Dual(x, penalty) if len(x) < x.shape[1] else _Primal(x, penalty)
    coefficients, intercept = np.zeros(problem.size), 0.0
    scores, value, start = np.zeros(len(x)), np.inf, np.inf
    # of a sum of gradients of the samples that cancel, such as those of a constant dimension
    rounding = 1e-14 * (np.abs(x).sum() + len(x))
    for iteration in range(_ITERATIONS):
        residual = labels - expit(scores)
        gradient = np.hypot(problem.gradient(coefficients, residual), residual.sum())
        start = gradient if iteration == 0 else start
        if gradient <= max(_TOLERANCE * start, rounding):
            break
        if iteration == 0:
            value = _loss(scores, labels)
        curvature = np.maximum(expit(scores) * expit(-scores), _LEAST_WEIGHT)
        full, full_intercept = problem.newton(scores, curvature, residual)
        share = 1.0
        while True:
            new = coefficients + share * (full - coefficients)
            new_intercept = intercept + share * (full_intercept - intercept)
            fitted = problem.predict(new)
            new_value = _loss(fitted + new_intercept, labels) + problem.size_term(new, fitted)
            if new_value <= value or share < 1e-4:
                break
            share /= 2
        if not new_value <= value + 1e-9 * abs(value):
            break
        coefficients, intercept, scores, value = new, new_intercept, fitted + new_intercept, new_value
    if gradient > max(_ACCEPTED * start, 100 * rounding):
        raise ArithmeticError(f"logistic regression did not converge: gradient at {gradient / start:.1e}")
    return FittedProbe(
        x,
        problem.weights(coefficients)[:, None],
        intercepts=np.array([intercept]),
        residual=residual,
        curvature=expit(scores) * expit(-scores),
        solve=lambda sides: problem.inverse(expit(scores) * expit(-scores))(sides),
    )


def fit_sparse_logistic(x: csr_matrix, labels: np.ndarray, *, penalty: float) -> FittedProbe:
    """Return the logistic regression of :func:`fit_logistic` for sparse samples.

    L-BFGS suits the many dimensions of texts. Its tolerance is absolute; the mean gradient starts at about
    0.01. The effects of samples use conjugate gradients.
    """
    optimum = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=100_000).fit(x, labels)
    probability = expit(optimum.decision_function(x))
    curvature = probability * (1 - probability)
    size = x.shape[1]
    hessian = LinearOperator((size, size), lambda v: x.T @ (curvature * (x @ v)) + penalty * v, dtype=float)

    def solve(sides: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(sides, axis=0)
        units = sides / np.where(lengths > 0, lengths, 1)  # the squares of small numbers would be 0
        solved = [cg(hessian, unit, rtol=1e-3, maxiter=1000)[0] for unit in units.T]
        return np.asarray(np.column_stack(solved) * lengths)

    return FittedProbe(
        x,
        optimum.coef_.T,
        optimum.intercept_,
        residual=labels - probability,
        curvature=curvature,
        solve=solve,
    )


def _loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the negative log likelihood."""
    return float((np.logaddexp(0, scores) - labels * scores).sum())


class _Primal:
    """The problem in terms of one coefficient per dimension."""

    def __init__(self, x: np.ndarray, penalty: float) -> None:
        self.x, self.penalty, self.size = x, penalty, x.shape[1]

    def predict(self, coefficients: np.ndarray) -> np.ndarray:
        return np.asarray(self.x @ coefficients)

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        return coefficients

    def size_term(self, coefficients: np.ndarray, _fitted: np.ndarray) -> float:
        return self.penalty * float(coefficients @ coefficients) / 2

    def gradient(self, coefficients: np.ndarray, residual: np.ndarray) -> float:
        return float(np.linalg.norm(self.penalty * coefficients - self.x.T @ residual))

    def newton(
        self, scores: np.ndarray, curvature: np.ndarray, residual: np.ndarray
    ) -> tuple[np.ndarray, float]:
        target = curvature * scores + residual
        sides = self.x.T @ np.column_stack([target, curvature])
        solved = self.inverse(curvature)(sides)
        # eliminate the intercept, which has no penalty
        schur = curvature.sum() - sides[:, 1] @ solved[:, 1]
        intercept = float((target.sum() - sides[:, 1] @ solved[:, 0]) / schur)
        return solved[:, 0] - intercept * solved[:, 1], intercept

    def inverse(self, curvature: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return the product with the inverse Hessian."""
        scaled = self.x * np.sqrt(curvature)[:, None]
        hessian = scaled.T @ scaled
        hessian[np.diag_indices_from(hessian)] += self.penalty
        factor = cho_factor(hessian, overwrite_a=True)
        return lambda sides: np.asarray(cho_solve(factor, sides))


class _Dual:
    """The problem in terms of one coefficient per sample: the weights are sums of samples."""

    def __init__(self, x: np.ndarray, penalty: float) -> None:
        self.x, self.penalty, self.size = x, penalty, len(x)
        self.gram = x @ x.T / penalty

    def predict(self, coefficients: np.ndarray) -> np.ndarray:
        return np.asarray(self.gram @ coefficients)

    def weights(self, coefficients: np.ndarray) -> np.ndarray:
        return np.asarray(self.x.T @ coefficients / self.penalty)

    def size_term(self, coefficients: np.ndarray, fitted: np.ndarray) -> float:
        return float(coefficients @ fitted) / 2

    def gradient(self, coefficients: np.ndarray, residual: np.ndarray) -> float:
        difference = coefficients - residual
        return float(np.sqrt(max(self.penalty * (difference @ self.gram @ difference), 0)))

    def newton(
        self, scores: np.ndarray, curvature: np.ndarray, residual: np.ndarray
    ) -> tuple[np.ndarray, float]:
        root = np.sqrt(curvature)
        sides = np.column_stack([root * scores + residual / root, root])
        solved = root[:, None] * self._solve(root, sides)
        intercept = float(solved[:, 0].sum() / solved[:, 1].sum())
        return solved[:, 0] - intercept * solved[:, 1], intercept

    def inverse(self, curvature: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Return the product with the inverse Hessian of the weights."""
        root = np.sqrt(curvature)

        def product(sides: np.ndarray) -> np.ndarray:
            inner = root[:, None] * self._solve(root, root[:, None] * (self.x @ sides))
            return np.asarray((sides - self.x.T @ inner / self.penalty) / self.penalty)

        return product

    def _solve(self, root: np.ndarray, sides: np.ndarray) -> np.ndarray:
        system = self.gram * root * root[:, None]
        system[np.diag_indices_from(system)] += 1
        return np.asarray(cho_solve(cho_factor(system, overwrite_a=True), sides))
