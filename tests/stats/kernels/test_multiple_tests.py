"""Corrections for several tests, against Tukey's distribution and Holm's procedure."""

import numpy as np
import pytest
from scipy.stats import studentized_range

from actkit.stats.kernels.auroc import holm
from actkit.stats.kernels.multiple_tests import family_holm, pairwise_differences


def test_with_one_test_per_family_it_is_holms_procedure() -> None:
    p = np.append(np.random.default_rng(0).random(9) ** 3, np.nan)
    np.testing.assert_allclose(family_holm(p[:, None])[:, 0], holm(p))


def test_adjusted_values_are_the_levels_at_which_the_procedure_rejects() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        p = rng.random((4, 3)) ** 4
        p[rng.random(p.shape) < 0.2] = np.nan
        corrected = family_holm(p)
        for level in (0.01, 0.05, 0.2, 0.6):
            with np.errstate(invalid="ignore"):
                np.testing.assert_array_equal(corrected <= level, rejected(p, level))


def rejected(p: np.ndarray, level: float) -> np.ndarray:
    """Return what the step-down procedure rejects, step by step."""
    left = ~np.isnan(p).all(axis=1)
    result = np.zeros(p.shape, dtype=bool)
    while left.any():
        result |= left[:, None] & (p <= level / left.sum())
        leaves = left & (result | np.isnan(p)).all(axis=1)
        if not leaves.any():
            break
        left &= ~leaves
    return result


def test_no_families_and_no_tests() -> None:
    assert np.isnan(family_holm(np.full((2, 3), np.nan))).all()


def test_it_is_tukeys_for_independent_layers() -> None:
    influence = np.zeros((5, 2, 4000))
    influence[np.arange(5), 0, np.arange(5)] = 0.03
    aurocs = np.linspace(0.6, 0.7, 5)
    differences, low, high, p = pairwise_differences(aurocs, influence, 50, seed=0)
    np.testing.assert_allclose(differences, aurocs[:, None] - aurocs)
    half = studentized_range.ppf(0.95, 5, 3999) * 0.03
    apart = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose((high - low)[apart] / 2, half, rtol=0.02)
    np.testing.assert_allclose((high + low)[apart] / 2, differences[apart])
    expected = studentized_range.sf(np.abs(differences) / 0.03, 5, 3999)
    np.testing.assert_allclose(p, expected, atol=0.02)


def test_few_clusters_widen_the_intervals() -> None:
    rng = np.random.default_rng(2)
    _, low, high, _ = pairwise_differences(np.full(2, 0.5), rng.standard_normal((2, 2, 4)), 2, seed=0)
    _, low_2, high_2, _ = pairwise_differences(np.full(2, 0.5), rng.standard_normal((2, 2, 400)), 200, seed=0)
    assert (high - low)[0, 1] / np.sqrt(4) > (high_2 - low_2)[0, 1] / np.sqrt(400) * 1.2


def test_layers_without_an_error_of_their_difference() -> None:
    influence = np.zeros((4, 2, 30))
    influence[:2] = np.random.default_rng(3).standard_normal((2, 30)) / 100
    influence[3] = np.nan
    differences, low, _, p = pairwise_differences(np.array([0.7, 0.7, 1, np.nan]), influence, 15, seed=0)
    assert (differences[0, 1], p[0, 1]) == (0, 1)  # the same scores
    assert np.isnan(low[0, 1])
    assert p[0, 2] < 0.05
    assert np.isnan(differences[3]).all()
    assert np.isnan(p[:, 3]).all()
    perfect = pairwise_differences(np.array([1.0, 0.0]), np.zeros((2, 2, 30)), 15, seed=0)
    assert perfect[3][0, 1] == pytest.approx(2 * 0.5**15)
    # in training, influences on a perfect probe are tiny, not 0
    tiny = 1e-7 * np.random.default_rng(4).standard_normal((2, 2, 30))
    differences, low, high, p = pairwise_differences(np.array([1.0, 1.0]), tiny, 15, seed=0)
    assert (differences[0, 1], p[0, 1]) == (0, 1)
    assert np.isnan([low[0, 1], high[0, 1]]).all()
