"""Tests of many features: statistics and p-values against SciPy and against all sign flips."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_array

from actkit.stats.kernels import cluster_intervals
from actkit.stats.kernels.feature_tests import (
    best_features,
    family_p,
    label_test,
    paired_test,
    welch,
)
from actkit.stats.kernels.multiple_tests import false_discovery_q
from actkit.stats.kernels.sparse_features import active_tokens, averages, sample_features


def values(n_units: int, n_features: int, seed: int = 0, density: float = 0.6) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.exponential(size=(n_units, n_features)) * (rng.random((n_units, n_features)) < density)


def test_samples_have_the_mean_the_largest_or_any() -> None:
    rng = np.random.default_rng(0)
    dense = values(6 * 5, 9).reshape(6, 5, 9)
    order = np.argsort(dense == 0, axis=-1, kind="stable")
    mask = rng.random((6, 5)) < 0.7
    mask[:, 0] = True
    arguments = order, np.take_along_axis(dense, order, -1), mask, 9
    shown = dense * mask[..., None]
    wanted = {
        "mean": shown.sum(1) / mask.sum(1)[:, None],
        "max": shown.max(1),
        "any": (shown > 0).any(1).astype(float),
    }
    for summary, expected in wanted.items():
        np.testing.assert_allclose(sample_features(*arguments, summary).toarray(), expected)  # type: ignore[arg-type]
    np.testing.assert_array_equal(active_tokens(*arguments).toarray(), (shown > 0).sum(1))


def test_averages_are_means_of_groups() -> None:
    groups, kept = np.array([2, 0, 0, 2, 2]), np.array([True, True, True, False, True])
    x = np.arange(10.0).reshape(5, 2)
    expected = [x[[1, 2]].mean(0), [0, 0], x[[0, 4]].mean(0)]
    np.testing.assert_allclose(averages(groups, kept, 3) @ x, expected)


def test_pairs_have_the_t_of_scipy() -> None:
    first, second = values(30, 8), values(30, 8, 1) + 0.2
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (99, 30))
    found = paired_test(csr_array(first), csr_array(second), signs)
    wanted = stats.ttest_rel(second, first)
    np.testing.assert_allclose(found.t, wanted.statistic)
    np.testing.assert_allclose(found.t, stats.ttest_1samp(second - first, 0).statistic)
    np.testing.assert_allclose(found.difference, (second - first).mean(0))
    pooled = np.sqrt((first.var(0, ddof=1) + second.var(0, ddof=1)) / 2)
    np.testing.assert_allclose(found.effect, found.difference / pooled)


def test_p_of_pairs_is_that_of_all_sign_flips_or_above() -> None:
    """The Monte Carlo p is within its error, and the bound, used below it, exceeds the exact p."""
    rng = np.random.default_rng(3)
    differences = rng.standard_normal((12, 200)) + np.linspace(0, 3, 200)
    every = np.array(list(product([-1.0, 1.0], repeat=12)))
    sums = np.abs(every @ differences)
    exact = (sums >= np.abs(differences.sum(0)) * (1 - 1e-9)).mean(0)
    signs = rng.choice([-1.0, 1.0], (999, 12))
    found = paired_test(csr_array(np.zeros_like(differences)), csr_array(differences), signs)
    bounded = found.p < 1 / 1000
    assert (found.p[bounded] >= exact[bounded]).all()
    assert np.abs(found.p - exact)[~bounded].max() < 0.05
    scipy = stats.permutation_test(
        (differences[:, 40],), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert exact[40] == pytest.approx(scipy.pvalue)
    strong = rng.standard_normal((60, 1)) + 1.5
    signs = rng.choice([-1.0, 1.0], (999, 60))
    p = paired_test(csr_array(np.zeros_like(strong)), csr_array(strong), signs).p[0]
    t = strong.sum() / np.sqrt((strong**2).sum())
    assert stats.norm.sf(t) * 2 < p < stats.norm.sf(t) * 6.4  # no lower limit of 1 in 1,000


def test_the_bound_replaces_only_the_smallest_p() -> None:
    """Drawn flips that include the observed signs reach the statistic, whatever the bound."""
    strong = np.random.default_rng(0).exponential(size=(40, 1)) + 1
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (99, 40))
    zeros = csr_array((40, 1))
    assert paired_test(zeros, csr_array(strong), signs).p < 1e-6
    signs[:3] = 1
    assert paired_test(zeros, csr_array(strong), signs).p == 4 / 100


def test_units_have_the_t_of_scipy_and_the_p_of_permutations() -> None:
    x = values(40, 8)
    labels = np.arange(40) % 3 == 0
    x[labels] *= 1.5
    rng = np.random.default_rng(0)
    permuted = rng.permuted(np.tile(labels, (499, 1)), axis=1)
    found = label_test(csr_array(x), labels, permuted)
    wanted = stats.ttest_ind(x[labels], x[~labels], equal_var=False)
    np.testing.assert_allclose(found.t, wanted.statistic)
    each = np.abs([stats.ttest_ind(x[row], x[~row], equal_var=False).statistic for row in permuted])
    expected = (1 + (each >= np.abs(found.t) * (1 - 1e-9)).sum(0)) / 500
    np.testing.assert_allclose(found.p, expected)
    np.testing.assert_allclose(found.largest, each.max(1))
    clear = x + 3 * labels[:, None]
    refined = label_test(csr_array(clear), labels, permuted, seed=1).p
    assert refined.min() == pytest.approx(1 / 49_901)
    counted = np.arange(40) < 30
    part = welch(x, labels[None], counted[None])[0]
    again = stats.ttest_ind(x[:30][labels[:30]], x[:30][~labels[:30]], equal_var=False)
    np.testing.assert_allclose(part, again.statistic)


def test_the_permuted_maximum_corrects_over_layers() -> None:
    rng = np.random.default_rng(0)
    extremeness, largest = rng.random((3, 5)) * 2, rng.random(99) * 2
    extremeness[1, 2] = np.nan
    expected = (1 + (largest[:, None, None] >= extremeness).sum(0)) / 100
    found = family_p(extremeness, largest)
    assert np.isnan(found[1, 2])
    known = ~np.isnan(extremeness)
    np.testing.assert_allclose(found[known], expected[known])


def test_q_is_that_of_scipy() -> None:
    p = np.random.default_rng(0).random((4, 6)) ** 2
    p[2, 3] = np.nan
    known = ~np.isnan(p)
    np.testing.assert_allclose(false_discovery_q(p)[known], stats.false_discovery_control(p[known]))
    assert np.isnan(false_discovery_q(np.full(3, np.nan))).all()


def test_rare_and_equal_features_are_not_tested() -> None:
    x = np.zeros((40, 4))
    x[:9, 0], x[:10, 1], x[:, 2], x[::2, 3] = 1, 1, 1, 1
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (99, 40))
    pairs = paired_test(csr_array(np.zeros_like(x)), csr_array(x), signs)
    assert pairs.live.tolist() == [False, True, True, True]
    assert np.isnan(pairs.p[0])
    assert pairs.t[2] == np.inf  # all differences are 1
    assert 0 < pairs.p[2] < 1e-8
    same = paired_test(csr_array(x), csr_array(x), signs)
    assert not same.live.any()
    assert (same.largest == 0).all()
    labels = np.arange(40) < 20
    permuted = np.random.default_rng(0).permuted(np.tile(labels, (99, 1)), axis=1)
    units = label_test(csr_array(x), labels, permuted)
    assert units.live.tolist() == [False, True, False, True]
    assert np.isnan(units.t[[0, 2]]).all()
    assert units.t[3] == 0


def test_effects_of_perfect_separation_are_infinite() -> None:
    labels = np.arange(40) < 20
    x = np.stack([labels * 1.0, ~labels * 1.0, np.full(40, 0.1), np.zeros(40)], axis=1)
    units = label_test(csr_array(x), labels, np.tile(labels, (9, 1)))
    pairs = paired_test(csr_array(x[20:]), csr_array(x[:20]), np.ones((9, 20)))
    for found in (units, pairs):
        np.testing.assert_array_equal(found.effect, [np.inf, -np.inf, np.nan, np.nan])


def test_averages_of_equal_values_are_equal() -> None:
    """The average of six ones is 1 - 1e-16, that of five ones is 1."""
    sizes = np.where(np.arange(40) < 20, 6, 5)
    samples = np.repeat(np.arange(40), sizes)
    x = averages(samples, np.ones(len(samples), dtype=bool), 40) @ csr_array(np.ones((len(samples), 1)))
    labels = np.arange(40) < 20
    assert np.ptp(x.toarray()) > 0
    rng = np.random.default_rng(0)
    units = label_test(x, labels, rng.permuted(np.tile(labels, (99, 1)), axis=1))
    pairs = paired_test(x[:20], x[20:], rng.choice([-1.0, 1.0], (99, 20)))
    assert not units.live.any()
    assert not pairs.live.any()
    assert pairs.difference == 0
    chosen, statistic = best_features(x, labels, np.ones((1, 40), dtype=bool))
    assert (chosen, statistic) == (-1, 0)


def test_the_best_feature_is_that_with_the_largest_t() -> None:
    x = values(60, 12)
    x[:30, 4] += 0.3
    train = np.random.default_rng(0).random((3, 60)) < 0.6
    labels = np.arange(60) < 30
    chosen, statistic = best_features(csr_array(x), labels, train)
    for row, at, score in zip(train, chosen, statistic, strict=True):
        t = stats.ttest_ind(x[row & labels], x[row & ~labels], equal_var=False).statistic
        assert at == np.abs(t).argmax()
        assert np.sign(score) == np.sign(t[at])
    nothing, zero = best_features(csr_array((60, 12)), labels, train)
    assert (nothing == -1).all()
    assert (zero == 0).all()


def test_intervals_of_independent_samples_are_the_usual_ones() -> None:
    x = (values(80, 5) > 0).astype(float)
    share, variance = cluster_intervals.ratio(csr_array(x), np.ones(80))
    np.testing.assert_allclose(share, x.mean(0))
    np.testing.assert_allclose(variance, x.var(0, ddof=1) / 80)
    low, high = cluster_intervals.share_interval(share, variance, 80)
    for at in range(5):
        wilson = stats.binomtest(int(x[:, at].sum()), 80).proportion_ci(method="wilson")
        assert (low[at], high[at]) == pytest.approx((wilson.low, wilson.high), abs=0.006)
    y = values(80, 5)
    mean, variance = cluster_intervals.ratio(csr_array(y), np.ones(80))
    found = cluster_intervals.mean_interval(mean, variance, 80)
    wanted = stats.t.interval(0.95, 79, y.mean(0), stats.sem(y))
    np.testing.assert_allclose(found, wanted)
    never = cluster_intervals.share_interval(np.array([0.0, 1.0]), np.zeros(2), 30)
    assert never[0][0] == 0
    assert 0.05 < never[1][0] < 0.15
    assert never[1][1] == 1
