"""Summaries of norms, against NumPy and known properties of the bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.stats.kernels.norms import NORM_SUMMARIES, _medians, summarize_norms

OPTIONS = {"resamples": 200, "seed": 0}


def named(summary: np.ndarray) -> dict[str, np.ndarray]:
    return {name: summary[:, i] for i, name in enumerate(NORM_SUMMARIES)}


@pytest.fixture
def ragged() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    norms = rng.lognormal(size=(4, 30, 9)).astype(np.float32)
    mask = np.arange(9)[None, :] < rng.integers(1, 10, 30)[:, None]
    return np.where(mask, norms, np.nan).astype(np.float32), mask


def test_summaries_equal_numpy(ragged: tuple[np.ndarray, np.ndarray]) -> None:
    norms, mask = ragged
    result = named(summarize_norms(norms, mask, **OPTIONS))
    for layer, values in enumerate(norms):
        tokens = values[mask].astype(np.float64)
        assert result["mean"][layer] == pytest.approx(tokens.mean(), rel=1e-12)
        assert result["median"][layer] == np.median(tokens)
        assert result["p5"][layer] == np.percentile(tokens, 5)
        assert result["p95"][layer] == np.percentile(tokens, 95)
        assert result["p99"][layer] == np.percentile(tokens, 99)
        assert result["max"][layer] == tokens.max()
        assert result["sample_mean"][layer] == pytest.approx(np.nanmean(np.nanmean(values, axis=1)), rel=1e-6)
        assert result["n_tokens"][layer] == mask.sum()
        assert result["low"][layer] < result["mean"][layer] < result["high"][layer]


def test_mean_weighs_tokens_and_sample_mean_weighs_samples() -> None:
    norms = np.array([[[1.0, 1.0, 1.0, 1.0], [6.0, np.nan, np.nan, np.nan]]], dtype=np.float32)
    result = named(summarize_norms(norms, ~np.isnan(norms[0]), **OPTIONS))
    assert result["mean"][0] == 2.0
    assert result["sample_mean"][0] == 3.5


def test_the_interval_widens_when_tokens_of_a_sample_move_together() -> None:
    rng = np.random.default_rng(0)
    alone = rng.normal(10, 1, (1, 50, 20))
    together = np.repeat(rng.normal(10, 1, (1, 50, 1)), 20, axis=2)
    mask = np.ones((50, 20), dtype=bool)
    width = {}
    for name, norms in (("alone", alone), ("together", together)):
        result = named(summarize_norms(norms, mask, resamples=2000, seed=0))
        width[name] = float(result["high"][0] - result["low"][0])
    # the effective sample size of 20 equal tokens is 1: sqrt(20) = 4.5
    assert 3.5 < width["together"] / width["alone"] < 5.5
    assert width["together"] == pytest.approx(2 * 1.96 / np.sqrt(50), rel=0.25)


def test_samples_without_content_do_not_count_and_none_at_all_is_nan() -> None:
    norms = np.array([[[2.0, 4.0], [100.0, 100.0]]])
    result = named(summarize_norms(norms, np.array([[True, True], [False, False]]), **OPTIONS))
    assert (result["mean"][0], result["sample_mean"][0], result["n_tokens"][0]) == (3.0, 3.0, 2)
    empty = named(summarize_norms(norms, np.zeros((2, 2), dtype=bool), **OPTIONS))
    assert np.isnan(empty["mean"][0])
    assert empty["n_tokens"][0] == 0


@given(st.integers(0, 2**31), st.floats(1e-3, 1e6))
def test_scale_and_order_of_samples(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    norms = rng.lognormal(size=(2, 6, 4))
    mask = rng.random((6, 4)) < 0.7
    mask[0, 0] = True
    order = rng.permutation(6)
    plain = named(summarize_norms(norms, mask, **OPTIONS))
    scaled = named(summarize_norms(norms * scale, mask, **OPTIONS))
    shuffled = named(summarize_norms(norms[:, order], mask[order], **OPTIONS))
    for name in ("mean", "sample_mean", "median", "p95", "max"):
        np.testing.assert_allclose(scaled[name], plain[name] * scale, rtol=1e-9)
        np.testing.assert_allclose(shuffled[name], plain[name], rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 3, 1023, 1024, 5000, 5001])
@pytest.mark.parametrize("is_sorted", [False, True])
def test_medians_are_exact(n: int, is_sorted: bool) -> None:
    rows = abs(np.random.default_rng(n).standard_normal((20, n))).astype(np.float32)
    rows[5:10] = np.round(rows[5:10])  # ties
    rows[10] = 0
    rows[11, ::4] = 100  # numbers of a sample that is not typical
    rows = np.sort(rows, axis=1) if is_sorted else rows
    np.testing.assert_array_equal(_medians(rows), np.median(rows.astype(np.float64), axis=1))
