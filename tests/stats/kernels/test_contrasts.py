"""Permutations that respect clusters, unbiased effect sizes and Cohen's d."""

import numpy as np
import pytest

from actkit.stats.kernels.contrasts import (
    cohens_d,
    contrast,
    largest_d,
    permuted,
    squared_smd,
    squared_smd_error,
)


def test_labels_swap_within_mixed_clusters_and_between_pure_ones() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 3, 3, 4])
    labels = np.array([True, False, False, True, True, True, True, False, False, False])
    drawn = permuted(labels, groups, 200, seed=0)
    assert drawn.shape == (200, 10)
    # each pair keeps one of each label
    for twins in (0, 1):
        assert (drawn[:, groups == twins].sum(axis=1) == 1).all()
    # pure groups stay pure, and one of the three has the positive label
    pure = [drawn[:, groups == group] for group in (2, 3, 4)]
    assert all((part == part[:, :1]).all() for part in pure)
    assert (sum(part[:, 0].astype(int) for part in pure) == 1).all()
    # and every outcome occurs
    assert {tuple(row) for row in drawn[:, [0, 2]].tolist()} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    assert len({tuple(row) for row in drawn.tolist()}) == 4 * 3


def test_permutations_do_not_depend_on_their_number_or_on_cluster_ids() -> None:
    labels = np.arange(20) % 2 == 0
    alone = permuted(labels, np.arange(20), 50, seed=1)
    assert (alone.sum(axis=1) == 10).all()
    assert len({tuple(row) for row in alone.tolist()}) > 45
    assert (permuted(labels, np.arange(20), 50, seed=1) == alone).all()


def test_effect_size_is_unbiased_under_the_null() -> None:
    rng = np.random.default_rng(0)
    result, plain = [], []
    for _ in range(300):
        vectors = rng.standard_normal((40, 30)) * 3
        labels = np.arange(40) < 15
        result.append(squared_smd(vectors, labels))
        plain.append(np.square(vectors[labels].mean(axis=0) - vectors[~labels].mean(axis=0)).sum() / 270)
    assert abs(np.mean(result)) < 3 * np.std(result) / np.sqrt(300)
    assert np.mean(plain) > 0.09


def test_the_effect_is_the_distance_over_the_variance_within() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(4000) % 2 == 0
    shift = np.array([3.0, 0, 4.0, 0, 0])
    vectors = rng.standard_normal((4000, 5)) * 2 + np.where(labels[:, None], shift, 0)
    assert squared_smd(vectors, labels) == pytest.approx(25 / 20, rel=0.05)


@pytest.mark.slow
def test_twins_that_vary_together_make_the_effect_more_certain_and_without_bias() -> None:
    rng = np.random.default_rng(0)
    labels, groups = np.arange(60) % 2 == 0, np.arange(60) // 2
    result, naive, errors = [], [], []
    for _ in range(200):
        shared = np.repeat(rng.standard_normal((30, 10)), 2, axis=0) * 5
        vectors = shared + rng.standard_normal((60, 10)) * 0.3 + np.where(labels[:, None], 0.2, 0)
        result.append(squared_smd(vectors, labels, groups))
        naive.append(squared_smd(vectors, labels))
        errors.append(squared_smd_error(vectors, labels, groups, seed=0))
    truth = 10 * 0.04 / (10 * (25 + 0.09))
    assert np.mean(result) == pytest.approx(truth, rel=0.1)
    # treated as independent, their effect size would be biased below 0
    assert np.mean(naive) < 0
    assert np.mean(errors) == pytest.approx(np.std(result), rel=0.3)


def test_d_equals_cohens_d() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((30, 4)), np.arange(30) < 12
    one, two = vectors[labels], vectors[~labels]
    pooled = np.sqrt((11 * one.var(axis=0, ddof=1) + 17 * two.var(axis=0, ddof=1)) / 28)
    wanted = (one.mean(axis=0) - two.mean(axis=0)) / pooled
    np.testing.assert_allclose(cohens_d(vectors + 1e4, labels), wanted, rtol=1e-8)
    drawn = permuted(labels, np.arange(30), 20, seed=0)
    each = np.array([np.abs(cohens_d(vectors, row)).max() for row in drawn])
    np.testing.assert_allclose(largest_d(vectors, drawn), each, rtol=1e-12)
    assert (cohens_d(np.ones((30, 2)), labels) == 0).all()


def test_difference_weights_sum_to_one_and_minus_one() -> None:
    labels = np.arange(40) % 3 == 0
    np.testing.assert_allclose((contrast(labels) * labels).sum(), 1)
    np.testing.assert_allclose((contrast(labels) * ~labels).sum(), -1)


CLUSTER_SIZES = {
    "few large clusters in one class": ([1, 2, 3] * 10, [4, 6, 8, 2]),
    "very unequal": ([20, 1, 1, 1, 1, 1, 5, 5], [10, 1, 1, 1, 2, 3]),
    "two clusters": ([4, 4], [4] * 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CLUSTER_SIZES)
@pytest.mark.parametrize("is_mixed", [False, True])
def test_the_effect_of_clusters_of_any_size_is_unbiased(kind: str, is_mixed: bool) -> None:
    sizes = [np.array(part) for part in CLUSTER_SIZES[kind]]
    groups = np.repeat(np.arange(len(sizes[0]) + len(sizes[1])), np.concatenate(sizes))
    rng = np.random.default_rng(0)
    effects = []
    for _ in range(500):
        labels = rng.random(len(groups)) < 0.4 if is_mixed else groups >= len(sizes[0])
        vectors = 1.5 * rng.standard_normal((groups.max() + 1, 10))[groups]
        vectors += rng.standard_normal((len(groups), 10))
        effects.append(squared_smd(vectors, labels, groups))
    assert abs(np.mean(effects)) < 3 * np.std(effects, ddof=1) / np.sqrt(500)


def test_one_cluster_says_nothing_about_a_difference() -> None:
    vectors, groups = np.random.default_rng(0).standard_normal((12, 3)), np.repeat([0, 1, 2], 4)
    assert np.isnan(squared_smd(vectors, groups == 0, groups))


def test_clusters_of_one_are_independent_samples() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((30, 4)), np.arange(30) < 11
    alone = squared_smd(vectors, labels, rng.permutation(30))
    assert alone == pytest.approx(squared_smd(vectors, labels), rel=1e-12)
    traces = [np.trace(np.cov(vectors[side].T)) / side.sum() for side in (labels, ~labels)]
    difference = vectors[labels].mean(axis=0) - vectors[~labels].mean(axis=0)
    scatter = sum(
        (side.sum() - 1) * side.sum() * t for side, t in zip((labels, ~labels), traces, strict=True)
    )
    assert alone == pytest.approx((difference @ difference - sum(traces)) / (scatter / 28), rel=1e-12)
