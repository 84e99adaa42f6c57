"""Gaps between groups under interventions, against plain formulas and known truths."""

import numpy as np
import pytest
from scipy import stats

from actkit.stats.kernels.gaps import GAP_SUMMARIES, gap_summaries

GAP, REMAINING, FIRST, SECOND = range(len(GAP_SUMMARIES))


def test_estimates_are_differences_of_means() -> None:
    rng = np.random.default_rng(0)
    intact, values = rng.normal(size=40), rng.normal(size=(3, 40))
    labels = np.arange(40) % 2 == 1
    estimates = gap_summaries(values, intact, labels, np.arange(40) // 2)[:, 0]
    gaps = values[:, labels].mean(axis=1) - values[:, ~labels].mean(axis=1)
    np.testing.assert_allclose(estimates[GAP], gaps, rtol=1e-12)
    intact_gap = intact[labels].mean() - intact[~labels].mean()
    np.testing.assert_allclose(estimates[REMAINING], gaps / intact_gap, rtol=1e-12)
    np.testing.assert_allclose(estimates[FIRST], (values - intact)[:, ~labels].mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(estimates[SECOND], (values - intact)[:, labels].mean(axis=1), rtol=1e-12)


def test_the_interval_of_the_gap_of_twins_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(1, 60)) + np.repeat(rng.normal(size=30), 2)
    labels = np.arange(60) % 2 == 1
    summaries = gap_summaries(values, rng.normal(size=60), labels, np.arange(60) // 2)
    expected = stats.ttest_rel(values[0, labels], values[0, ~labels]).confidence_interval(0.95)
    np.testing.assert_allclose(summaries[GAP, 1:, 0], expected, rtol=1e-10)


@pytest.mark.parametrize("twins", [True, False])
def test_intervals_cover_the_truth_with_dependent_samples(twins: bool) -> None:
    """300 trials with 60 clusters of four, which hold both groups or only one."""
    rng = np.random.default_rng(2)
    groups = np.arange(240) // 4
    labels = (np.arange(240) % 2 if twins else groups % 2) == 1
    covered = []
    for _ in range(300):
        intact = 2.0 * labels + rng.normal(size=60)[groups] + 0.5 * rng.normal(size=240)
        values = 0.5 * labels + 0.7 * rng.normal(size=60)[groups] + 0.5 * rng.normal(size=240)
        _, low, high = np.moveaxis(gap_summaries(values[None], intact, labels, groups)[..., 0], 1, 0)
        truth = [0.5, 0.25, 0.0, -1.5]
        covered.append((low <= truth) & (truth <= high))
    assert (np.abs(np.mean(covered, axis=0) - 0.95) < 0.035).all(), np.mean(covered, axis=0)


def test_a_single_cluster_has_no_interval() -> None:
    summaries = gap_summaries(np.ones((1, 4)), np.arange(4.0), np.array([0, 0, 1, 1]) == 1, np.zeros(4, int))
    assert np.isnan(summaries[:, 1:]).all()
    assert summaries[GAP, 0, 0] == 0
