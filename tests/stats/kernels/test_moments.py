"""Moments of blocks, merged in any order, equal those of all vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from actkit.stats.kernels.moments import Moments

FIELDS = ("mean", "scatter", "fourth", "third")


def draw(seed: int, n: int = 60, hidden: int = 5, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, hidden)) @ rng.standard_normal((hidden, hidden)) + offset


@given(st.integers(0, 2**31), st.lists(st.integers(0, 60), max_size=5), st.sampled_from([0.0, 1e4]))
def test_merged_blocks_equal_all_vectors(seed: int, cuts: list[int], offset: float) -> None:
    vectors = draw(seed, offset=offset)
    parts = np.split(vectors, sorted(cuts))
    np.random.default_rng(seed).shuffle(parts)  # type: ignore[arg-type]
    merged = Moments.nothing(5)
    for part in parts:
        merged = Moments.of(part).merge(merged)
    whole = Moments.of(vectors)
    assert merged.n == whole.n
    for name in FIELDS:
        wanted = getattr(whole, name)
        np.testing.assert_allclose(getattr(merged, name), wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())


def test_covariance_and_shrinkage_are_those_of_numpy_and_scikit_learn() -> None:
    vectors = draw(0, n=40, hidden=8)
    result = Moments.of(vectors)
    np.testing.assert_allclose(result.covariance, np.cov(vectors.T), atol=1e-12)
    assert result.ledoit_wolf == pytest.approx(ledoit_wolf(vectors)[1], abs=1e-12)


def test_float32_is_summed_in_float64() -> None:
    vectors = draw(0, n=5000, offset=1e4).astype(np.float32)
    wanted = np.cov(vectors.astype(np.float64).T)
    np.testing.assert_allclose(Moments.of(vectors).covariance, wanted, rtol=1e-10)
