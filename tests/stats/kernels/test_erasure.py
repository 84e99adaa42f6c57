"""LEACE against two references and its guarantees; shrinkage of dependent samples against scikit-learn's."""

import numpy as np
import pytest
import torch
from concept_erasure import LeaceFitter
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from actkit.stats.kernels.erasure import Erasure, erasure, shrinkage


def drawn(n: int, hidden: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw correlated vectors with an offset, whose means depend on the class."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    means = 2 * rng.standard_normal((classes, hidden))
    mixing = rng.standard_normal((hidden, hidden))
    return means[labels] + rng.standard_normal((n, hidden)) @ mixing + 5, labels


def projection(found: Erasure) -> np.ndarray:
    """Return the whole matrix by which centred vectors are multiplied from the left."""
    return np.eye(len(found.mean)) - found.left @ found.right.T


def erased(x: np.ndarray, found: Erasure) -> np.ndarray:
    return x - (x - found.mean) @ found.right @ found.left.T


def by_the_formula(x: np.ndarray, labels: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Return I − W⁺ P W of Belrose et al. (2023), with explicit matrices."""
    values, axes = np.linalg.eigh(covariance)
    kept = values > values[-1] * 1e-12
    root, axes = np.sqrt(values[kept]), axes[:, kept]
    whitening, inverse = axes / root @ axes.T, axes * root @ axes.T
    z = (labels[:, None] == np.unique(labels)).astype(float)
    crossed = whitening @ (x - x.mean(axis=0)).T @ (z - z.mean(axis=0)) / len(x)
    return np.eye(x.shape[1]) - inverse @ crossed @ np.linalg.pinv(crossed, rcond=1e-10) @ whitening


SHAPES = [(200, 12, 2), (200, 12, 5), (30, 50, 2), (30, 50, 4)]


@pytest.mark.parametrize(("n", "hidden", "classes"), SHAPES)
def test_the_map_is_that_of_concept_erasure(n: int, hidden: int, classes: int) -> None:
    x, labels = drawn(n, hidden, classes)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).double()
    options = {"shrinkage": False, "constrain_cov_trace": False, "svd_tol": 1e-8}
    wanted = LeaceFitter.fit(torch.from_numpy(x), one_hot, **options).eraser
    found = erasure(x, labels)
    assert found.left.shape == found.right.shape == (hidden, classes - 1)
    np.testing.assert_allclose(projection(found), wanted.P.numpy(), atol=1e-8)
    np.testing.assert_allclose(erased(x, found), wanted(torch.from_numpy(x)).numpy(), atol=1e-8)
    assert found.rank == min(n - 1, hidden)


@pytest.mark.parametrize(("n", "hidden", "classes"), SHAPES)
def test_the_map_is_the_published_formula(n: int, hidden: int, classes: int) -> None:
    x, labels = drawn(n, hidden, classes, seed=1)
    plain, shrunk = erasure(x, labels), erasure(x, labels, shrink=True)
    np.testing.assert_allclose(
        projection(plain), by_the_formula(x, labels, np.cov(x.T, bias=True)), atol=1e-9
    )
    estimate = LedoitWolf().fit(x)
    assert shrunk.shrunk == pytest.approx(estimate.shrinkage_, abs=1e-12)
    np.testing.assert_allclose(projection(shrunk), by_the_formula(x, labels, estimate.covariance_), atol=1e-9)


@given(
    st.integers(6, 40),
    st.integers(2, 40),
    st.integers(2, 5),
    st.booleans(),
    st.sampled_from([1e-30, 1, 1e30]),
)
def test_no_covariance_with_a_label_remains(
    n: int, hidden: int, classes: int, shrink: bool, factor: float
) -> None:
    x, labels = drawn(n, hidden, classes, seed=n)
    found = erasure(x * factor, labels, shrink=shrink)
    rest = erased(x * factor, found)
    z = (labels[:, None] == np.arange(classes)).astype(float)
    crossed = (z - z.mean(axis=0)).T @ (rest - rest.mean(axis=0)) / n
    assert np.abs(crossed).max() < 1e-9 * np.abs(x * factor).max()
    np.testing.assert_allclose(rest.mean(axis=0), x.mean(axis=0) * factor, rtol=1e-9, atol=1e-9 * factor)
    again = erased(rest, found)  # a projection
    np.testing.assert_allclose(again, rest, atol=1e-8 * np.abs(x * factor).max())


def test_no_other_linear_erasure_changes_the_vectors_less() -> None:
    """In the norm of the inverse covariance, and in Euclidean distance; the mean stays where it is."""
    x, labels = drawn(400, 8, 3)
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    found = erasure(x, labels)
    basis = np.linalg.qr(found.left)[0]

    def change(matrix: np.ndarray, metric: np.ndarray) -> float:
        moved = centred @ matrix.T
        return float(np.einsum("ij,jk,ik->", moved, metric, moved) / len(x))

    rng = np.random.default_rng(0)
    for metric in (np.linalg.inv(covariance), np.eye(8)):
        least = change(found.left @ found.right.T, metric)
        assert change(basis @ basis.T, metric) > least * 1.001  # the orthogonal projection
        for size in (1e-3, 0.1, 1.0):
            complement = np.eye(8) - basis @ basis.T  # what may be added: zero on the means of the classes
            other = found.left @ found.right.T + size * rng.standard_normal((8, 8)) @ complement
            np.testing.assert_allclose((np.eye(8) - other) @ basis, 0, atol=1e-12)
            assert change(other, metric) > least
    assert change(found.left @ found.right.T, np.linalg.inv(covariance)) == pytest.approx(2)  # directions


def test_dimensions_without_variance_are_left_alone() -> None:
    x, labels = drawn(60, 6, 2)
    x[:, 4] = 7
    x[:, 5] = x[:, 0]
    found = erasure(x, labels)
    assert found.rank == 4
    np.testing.assert_allclose(erased(x, found)[:, 4], 7, atol=1e-12)
    np.testing.assert_allclose(erased(x, found)[:, 5], erased(x, found)[:, 0], atol=1e-10)
    constant = erasure(np.full((20, 3), 0.1), np.arange(20) % 2)
    assert (constant.rank, constant.left.shape) == (0, (3, 0))


def test_shrinkage_of_clusters_is_that_of_their_number() -> None:
    """Copies add nothing: the intensity is that of the distinct samples, not of four times as many."""
    x, _ = drawn(60, 20, 2)
    x -= x.mean(axis=0)
    groups = np.repeat(np.arange(60), 4)
    once, copied = shrinkage(x, 20), shrinkage(np.repeat(x, 4, axis=0), 20, groups)
    assert copied == pytest.approx(once, rel=1e-12)
    assert shrinkage(np.repeat(x, 4, axis=0), 20) < 0.5 * once
    shuffled = np.random.default_rng(0).permutation(240)
    assert shrinkage(np.repeat(x, 4, axis=0)[shuffled], 20, groups[shuffled]) == pytest.approx(once)


@pytest.mark.parametrize("shrink", [False, True])
def test_dimensions_of_tiny_variance_carry_no_label_afterwards(shrink: bool) -> None:
    x, labels = drawn(300, 8, 2)
    x[:, 3] *= 1e-33  # as the weights of a layer norm may be
    x[:, 5] = 0.25
    changed = erased(x, erasure(x, labels, shrink=shrink))
    spread = changed.std(axis=0)
    assert spread[5] < 1e-15
    difference = changed[labels == 1].mean(axis=0) - changed[labels == 0].mean(axis=0)
    assert abs(difference[3]) < 1e-10 * spread[3]
    assert spread[3] < 1e-31
