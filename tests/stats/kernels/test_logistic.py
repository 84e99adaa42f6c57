"""Logistic regression against scikit-learn's exact optimum, and its gradient."""

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from actkit.stats.kernels.logistic import fit_logistic, fit_sparse_logistic
from actkit.stats.kernels.probes import standardized

# samples, dimensions, distance between the groups, largest scale of a dimension
SHAPES = {
    "more samples than dimensions": (300, 40, 0.5, 1),
    "more dimensions than samples": (150, 400, 0.5, 1),
    "as many": (80, 80, 0.5, 1),
    "separable": (100, 20, 30, 1),
    "no difference": (400, 300, 0, 1),
    "dimensions of unequal scale": (200, 50, 0.5, 1000),
}


def draw(kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training vectors and labels, and test vectors and labels."""
    n, hidden, distance, scale = SHAPES[kind]
    rng = np.random.default_rng(len(kind))
    labels = rng.random(2 * n) < 0.4
    x = rng.standard_normal((2 * n, hidden)) * np.geomspace(1, scale, hidden)
    x[:, 0] += distance * labels
    return x[:n], labels[:n], x[n:], labels[n:]


def gradient(
    x: np.ndarray, labels: np.ndarray, weights: np.ndarray, intercept: float, penalty: float = 1
) -> float:
    residual = labels - expit(x @ weights + intercept)
    return float(np.hypot(np.linalg.norm(penalty * weights - x.T @ residual), residual.sum()))


@pytest.mark.parametrize("kind", SHAPES)
def test_the_gradient_vanishes_and_scores_are_scikit_learns(kind: str) -> None:
    x, labels, held_out, held_out_labels = draw(kind)
    if kind != "dimensions of unequal scale":
        x, held_out = standardized(x, held_out)
    fitted = fit_logistic(x, labels)
    weights, intercept = fitted.weights[:, 0], fitted.intercepts.item()
    assert gradient(x, labels, weights, intercept) <= 1e-6 * gradient(x, labels, 0 * weights, 0)
    optimum = LogisticRegression(tol=1e-12, max_iter=1_000_000, solver="newton-cholesky").fit(x, labels)
    wanted = roc_auc_score(held_out_labels, optimum.decision_function(held_out))
    assert roc_auc_score(held_out_labels, held_out @ weights + intercept) == pytest.approx(wanted, abs=1e-4)
    np.testing.assert_allclose(weights, optimum.coef_[0], atol=1e-5)
    assert intercept == pytest.approx(optimum.intercept_.item(), abs=1e-5)


@pytest.mark.parametrize("penalty", [0.01, 10])
def test_primal_and_dual_agree_at_any_penalty(penalty: float) -> None:
    x, labels, *_ = draw("more dimensions than samples")
    dual = fit_logistic(x, labels, penalty=penalty)
    axes = np.linalg.svd(x, full_matrices=False)[2].T  # as many as there are samples
    primal = fit_logistic(x @ axes, labels, penalty=penalty)
    np.testing.assert_allclose(axes @ primal.weights, dual.weights, atol=1e-5)
    assert primal.intercepts == pytest.approx(dual.intercepts, abs=1e-5)
    direction = np.random.default_rng(0).standard_normal(x.shape[1])
    np.testing.assert_allclose(primal.effects(axes.T @ direction), dual.effects(direction), rtol=1e-4)


def test_texts_have_the_same_optimum_and_effects() -> None:
    x, labels, held_out, _ = draw("more samples than dimensions")
    x[np.abs(x) < 1] = 0
    dense, sparse = (
        fit_logistic(x, labels, penalty=0.1),
        fit_sparse_logistic(csr_matrix(x), labels, penalty=0.1),
    )
    np.testing.assert_allclose(sparse.weights, dense.weights, atol=1e-5)
    weights, intercept = sparse.weights[:, 0], sparse.intercepts.item()
    start = gradient(x, labels, 0 * weights, 0)
    assert gradient(x, labels, weights, intercept, penalty=0.1) <= 1e-6 * start
    np.testing.assert_allclose(sparse.effects(held_out[0]), dense.effects(held_out[0]), rtol=0.02, atol=1e-5)


def test_constant_dimensions_have_no_weight() -> None:
    labels = np.arange(40) % 2 == 0
    fitted = fit_logistic(np.zeros((40, 3)), labels)
    np.testing.assert_array_equal(fitted.weights, 0)
    assert fitted.intercepts == 0
    unbalanced = fit_logistic(np.zeros((40, 3)), np.arange(40) < 10)
    assert unbalanced.intercepts == pytest.approx(np.log(1 / 3))
