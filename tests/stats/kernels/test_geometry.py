"""TwoNN against scikit-dimension and known manifolds; mean cosines against explicit pairs."""

import numpy as np
import pytest
import skdim

from actkit.stats.kernels.geometry import cosine_means, two_nn


def sphere(n: int, dimension: int, rng: np.random.Generator, hidden: int = 12) -> np.ndarray:
    """Draw uniform points on a sphere of a dimension, rotated into a wider space."""
    points = rng.standard_normal((n, dimension + 1))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points @ np.linalg.qr(rng.standard_normal((hidden, hidden)))[0][: dimension + 1]


@pytest.mark.parametrize("fraction", [0.9, 0.7])
@pytest.mark.parametrize("hidden", [12, 40])
def test_the_estimate_is_that_of_scikit_dimension(fraction: float, hidden: int) -> None:
    rng = np.random.default_rng(0)
    x = sphere(203, 4, rng, hidden) + 0.1 * rng.standard_normal((203, hidden))
    wanted = skdim.id.TwoNN(discard_fraction=1 - fraction).fit(x).dimension_
    assert two_nn(x, fraction=fraction).dimension == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_spheres_have_their_dimension(dimension: int) -> None:
    found = two_nn(sphere(2000, dimension, np.random.default_rng(dimension)))
    assert found.dimension == pytest.approx(dimension, abs=3 * found.se)
    assert found.se < 0.05 * dimension


def test_repeated_points_count_once() -> None:
    rng = np.random.default_rng(0)
    x = sphere(150, 3, rng)
    twice = np.concatenate([x, x[:50] * (1 + 1e-9)])[rng.permutation(200)]
    found, wanted = two_nn(twice), two_nn(x)
    assert (found.n, found.n_repeated) == (150, 50)
    assert (wanted.n, wanted.n_repeated) == (150, 0)
    assert found.dimension == pytest.approx(wanted.dimension, rel=1e-4)
    assert np.isnan(two_nn(np.full((50, 3), 0.1)).dimension)
    assert two_nn(np.full((50, 3), 0.1)).n == 1


def test_few_points_have_no_dimension_or_no_error() -> None:
    x = sphere(39, 2, np.random.default_rng(0))
    assert np.isnan(two_nn(x[:19]).dimension)
    assert np.isfinite(two_nn(x).dimension)
    assert np.isnan(two_nn(x).se)
    assert two_nn(x[:1]).n == 1


@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_scale_and_place_change_nothing(factor: float) -> None:
    x = sphere(100, 3, np.random.default_rng(0))
    for moved in (x * factor, x + 100):
        np.testing.assert_allclose(two_nn(moved), two_nn(x), rtol=1e-6)


def explicit(x: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return both means from all pairs, with clusters weighing equally."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    names = np.unique(groups)
    between = [cosines[np.ix_(groups == a, groups == b)].mean() for a in names for b in names if a != b]
    within = []
    for name in names:
        block = cosines[np.ix_(groups == name, groups == name)]
        if len(block) > 1:
            within.append(block[~np.eye(len(block), dtype=bool)].mean())
    return float(np.mean(between)), float(np.mean(within))


def test_mean_cosines_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 9, 30)
    groups[0] = 9  # a cluster of one
    x = rng.standard_normal((30, 6)) + 0.5
    wanted = explicit(x, groups)
    between, within, corrected = cosine_means(x, groups)
    np.testing.assert_allclose([between.mean, within.mean], wanted, atol=1e-12)
    assert corrected.mean == pytest.approx(wanted[1] - wanted[0], abs=1e-12)
    left = np.array([explicit(x[groups != name], groups[groups != name]) for name in np.unique(groups)])
    for found, values in zip((between, within, corrected), (*left.T, left[:, 1] - left[:, 0]), strict=True):
        wanted_se = np.sqrt(9 / 10 * np.square(values - values.mean()).sum())
        assert found.se == pytest.approx(wanted_se, abs=1e-12)


def test_cosines_that_do_not_exist_are_nan() -> None:
    x = np.random.default_rng(0).standard_normal((6, 4))
    between, within, corrected = cosine_means(x, np.arange(6))
    assert np.isfinite(between).all()
    assert np.isnan([*within, *corrected]).all()
    between, within, _ = cosine_means(x, np.zeros(6, dtype=int))
    assert np.isnan(between.mean)
    assert np.isfinite(within.mean)
    assert np.isnan(cosine_means(x[:1], np.zeros(1, dtype=int))[0].mean)
    between, within, _ = cosine_means(x, np.arange(6) % 2)
    assert np.isfinite([between.mean, *within]).all()
    assert np.isnan(between.se)  # nothing is left between one cluster
    x[0] = 0
    assert np.isnan(cosine_means(x, np.arange(6))[0].mean)
