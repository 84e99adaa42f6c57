"""Moments of blocks, merged in any order, equal those of all vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import ledoit_wolf

from actkit.stats.kernels.cka import align
from actkit.stats.kernels.moments import Crossing, Moments

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


@given(st.integers(0, 2**31), st.lists(st.integers(0, 60), max_size=5))
def test_hsic_of_parts_is_that_of_gram_matrices(seed: int, cuts: list[int]) -> None:
    both = np.stack([draw(seed, offset=1e3), draw(seed + 1)])
    both[1] += both[0] - 1e3
    parts = np.split(both, sorted(cuts), axis=1)

    def hsic(one: int, two: int) -> float:
        merged = Crossing.of(parts[0][one], parts[0][two])
        for part in parts[1:]:
            merged = Crossing.of(part[one], part[two]).merge(merged)
        return merged.hsic

    cka = hsic(0, 1) / np.sqrt(hsic(0, 0) * hsic(1, 1))
    assert cka == pytest.approx(align(both, jackknife=False).cka[0, 1], abs=1e-9)


def test_fewer_than_four_have_no_hsic() -> None:
    assert np.isnan(Crossing.of(draw(0, n=3), draw(1, n=3)).hsic)


def test_parts_of_other_magnitudes_have_the_hsic_of_the_whole() -> None:
    parts = [draw(seed) * factor for seed, factor in enumerate((1e-200, 1e200, 0.0, 1.0))]
    merged = Crossing.of(parts[0], parts[0])
    for part in parts[1:]:
        merged = merged.merge(Crossing.of(part, part))
    whole = Crossing.of(np.concatenate(parts), np.concatenate(parts))
    assert merged.scales == whole.scales
    assert merged.hsic == pytest.approx(whole.hsic, rel=1e-9)
    tiny = Crossing.of(parts[2], parts[2]).merge(Crossing.of(parts[0], parts[0]))
    assert tiny.hsic > 0
