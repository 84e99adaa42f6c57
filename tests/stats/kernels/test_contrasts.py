"""Permutations that respect clusters, unbiased effect sizes, Cohen's d and split-halves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.stats.kernels.contrasts import (
    cohens_d,
    contrast,
    cosines,
    halves,
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


@given(st.integers(0, 2**31))
def test_halves_share_no_group_and_make_differences_of_means(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = np.sort(rng.integers(0, 12, 40))
    groups = np.unique(groups, return_inverse=True)[1]
    labels = rng.random(40) < 0.5
    weights = halves(labels, groups, 5, seed=seed)
    for split in range(5):
        one, two = (weights[half, split] != 0 for half in (0, 1))
        assert not (set(groups[one]) & set(groups[two]))
        assert (one | two).all()
    np.testing.assert_allclose((contrast(labels) * labels).sum(), 1)
    np.testing.assert_allclose((contrast(labels) * ~labels).sum(), -1)


def test_cosines() -> None:
    one, two = np.array([[1.0, 0], [1, 1], [0, 0]]), np.array([[0.0, 2], [3, 3], [1, 1]])
    np.testing.assert_allclose(cosines(one, two), [0, 1, np.nan])
