"""AUROC and its sampling error against scikit-learn, DeLong's formula and a jackknife over clusters."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from actkit.stats.kernels.auroc import (
    auroc_gradient,
    auroc_interval,
    cluster_influence,
    column_aurocs,
    fewest_clusters,
    fold_aurocs,
    holm,
    paired_difference,
)


def draw(n: int = 200, n_folds: int = 4, size: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return held-out scores with ties, labels, and clusters of a size within folds."""
    rng = np.random.default_rng(n + size)
    groups = np.arange(n) // size
    labels = rng.random(n) < 0.4
    values = np.round(rng.standard_normal(n) + labels + rng.standard_normal(n)[groups], 1)
    scores = np.full((n_folds, n), np.nan)
    scores[groups % n_folds, np.arange(n)] = values
    return scores, labels, groups


def influence_of(scores: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the influence of clusters in testing."""
    testing, training = cluster_influence(scores, np.zeros(scores.shape), labels, groups)
    assert not training.any()
    return testing


def test_columns_with_ties_nan_or_one_label() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal((50, 4)), rng.random((50, 4)) < 0.4
    scores[:, 1] = np.round(scores[:, 1])
    scores[3, 2], labels[:, 3] = np.nan, True
    wanted = [roc_auc_score(labels[:, column], scores[:, column]) for column in (0, 1)]
    np.testing.assert_allclose(column_aurocs(scores, labels), [*wanted, np.nan, np.nan])


def test_aurocs_are_scikit_learns() -> None:
    scores, labels, _ = draw()
    for row, found in zip(scores, fold_aurocs(scores, labels), strict=True):
        tested = ~np.isnan(row)
        assert found == pytest.approx(roc_auc_score(labels[tested], row[tested]))
    columns = np.column_stack([labels, ~labels])
    values = np.nan_to_num(scores).sum(axis=0)
    (first, second) = column_aurocs(np.column_stack([values, values]), columns)
    assert first == pytest.approx(roc_auc_score(labels, values))
    assert first + second == pytest.approx(1)


def test_undefined_scores_and_a_missing_label_give_nan() -> None:
    scores, labels, groups = draw()
    assert np.isnan(fold_aurocs(np.full_like(scores, np.nan), labels)).all()
    assert np.isnan(fold_aurocs(scores, np.ones(200, dtype=bool))).all()
    undefined = np.full_like(scores, np.nan)
    assert np.isnan(cluster_influence(undefined, 0 * scores, labels, groups)).all()
    assert np.isnan(auroc_interval(np.nan, np.zeros(4), 4)).all()
    assert np.isnan(paired_difference((np.nan, 0.5), (np.zeros(4), np.zeros(4)), 4)).all()


def test_independent_samples_in_one_fold_have_delongs_variance() -> None:
    scores, labels, groups = draw(n_folds=1)
    positive, negative = scores[0, labels], scores[0, ~labels]
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
    wanted = wins.mean(axis=1).var(ddof=1) / len(positive) + wins.mean(axis=0).var(ddof=1) / len(negative)
    assert np.square(influence_of(scores, labels, groups)).sum() == pytest.approx(wanted)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_influences_add_up_to_the_jackknife_over_clusters(size: int) -> None:
    scores, labels, groups = draw(n=1000, n_folds=1, size=size)
    estimates = []
    for cluster in range(groups.max() + 1):
        kept = groups != cluster
        estimates.append(fold_aurocs(scores[:, kept], labels[kept]).mean())
    n = len(estimates)
    wanted = (n - 1) / n * np.square(estimates - np.mean(estimates)).sum()
    found = np.square(influence_of(scores, labels, groups)).sum()
    assert found == pytest.approx(wanted, rel=0.02)
    # the repetition of folds with the same scores adds no information
    twice = influence_of(np.vstack([scores, scores]), labels, groups)
    assert np.square(twice).sum() == pytest.approx(found)


def test_a_fold_with_one_cluster_of_a_label_has_no_error() -> None:
    scores, _, groups = draw(n=160, size=10)
    labels = groups < 4
    found = cluster_influence(scores, 0 * scores, labels, groups)[0]
    np.testing.assert_array_equal(np.isnan(found), np.arange(16) < 4)


def test_effects_in_training_are_summed_by_cluster() -> None:
    scores, labels, groups = draw(size=2)
    effects = np.random.default_rng(0).standard_normal(scores.shape)
    _, training = cluster_influence(scores, effects, labels, groups)
    wanted = effects.sum(axis=0).reshape(-1, 2).sum(axis=1) / len(scores)
    np.testing.assert_allclose(training, wanted - wanted.mean())


def test_the_gradient_is_that_of_the_auroc() -> None:
    """Moving all scores of a label by a small step changes the AUROC as predicted."""
    scores, labels, _ = draw(n=2000, n_folds=1)
    (row,) = scores
    row = row + 0.05 * np.random.default_rng(0).standard_normal(2000)
    gradient = auroc_gradient(row, labels)
    assert gradient[labels].sum() == pytest.approx(-gradient[~labels].sum())
    moved = [column_aurocs((row + step * labels)[:, None], labels[:, None])[0] for step in (-0.1, 0.1)]
    assert gradient[labels].sum() == pytest.approx((moved[1] - moved[0]) / 0.2, rel=0.1)
    assert gradient @ row == pytest.approx(0, abs=1e-12)  # the scale of the scores has no effect
    assert not auroc_gradient(np.zeros(4), np.arange(4) < 2).any()


def test_dependence_within_clusters_makes_the_error_larger() -> None:
    scores, _, groups = draw(n=1000, size=10)
    labels = groups // 4 % 2 == 0
    independent = np.square(influence_of(scores, labels, np.arange(1000))).sum()
    assert np.square(influence_of(scores, labels, groups)).sum() > 3 * independent


def test_an_interval_stays_between_0_and_1() -> None:
    influence = np.full(100, 0.003)
    low, high = auroc_interval(0.98, influence, 50)
    assert 0 < low < 0.98 < high < 1
    assert high - 0.98 < 0.98 - low
    wide = auroc_interval(0.5, influence, 50)
    assert wide[1] - wide[0] == pytest.approx(2 * 1.984 * 0.03, rel=0.01)
    assert wide[0] + wide[1] == pytest.approx(1)


def test_an_auroc_of_1_has_a_lower_bound() -> None:
    """With a true AUROC at the bound, all of the disjoint pairs are ranked correctly 2.5% of the time."""
    low, high = auroc_interval(1.0, np.zeros(60), 30)
    assert high == 1
    assert low**30 == pytest.approx(0.025)
    assert auroc_interval(0.0, np.zeros(60), 30) == pytest.approx((0, 1 - low))


def test_paired_differences_use_the_correlation() -> None:
    rng = np.random.default_rng(0)
    shared = rng.standard_normal(100) / 1000
    first, second = shared + rng.standard_normal(100) / 10_000, shared
    difference, low, high, p = paired_difference((0.8, 0.79), (first, second), 50)
    assert difference == pytest.approx(0.01)
    error = np.sqrt(np.square(first - second).sum())
    assert (high - low) / 2 == pytest.approx(1.984 * error, rel=1e-3)
    assert p == pytest.approx(2 * norm.sf(0.01 / error), abs=1e-4)
    assert paired_difference((0.79, 0.8), (second, first), 50)[0] == -difference


def test_two_perfect_probes_do_not_differ() -> None:
    zero = np.zeros(20)
    bound = 1 - 0.025**0.1
    assert paired_difference((1.0, 1.0), (zero, zero), 10) == pytest.approx((0, -bound, bound, 1))
    assert paired_difference((1.0, 0.5), (zero, zero), 10) == pytest.approx((0.5, 0.5 - bound, 0.5, 2 / 1024))
    # training influences are tiny, not 0
    assert paired_difference((1.0, 0.5), (zero + 1e-9, zero), 10)[3] == pytest.approx(2 / 1024)
    assert paired_difference((0.0, 0.5), (zero, zero), 10, limits=()) == pytest.approx(
        (-0.5, -0.5, -0.5, 2 / 1024)
    )


def test_holm_multiplies_the_smallest_by_the_number_of_tests() -> None:
    assert holm(np.array([0.04, 0.01, np.nan, 0.03])) == pytest.approx(
        [0.06, 0.03, np.nan, 0.06], nan_ok=True
    )
    assert holm(np.array([0.9, 0.8])).tolist() == [1, 1]


def test_the_rarer_label_determines_the_number_of_clusters() -> None:
    assert fewest_clusters(np.array([True, True, False, False, False]), np.array([0, 0, 1, 2, 0])) == 1


def test_gradients_of_many_samples_take_little_memory() -> None:
    """Pairs are counted in blocks: all at once would take 800 MB per array."""
    rng = np.random.default_rng(0)
    scores, labels = rng.standard_normal(20_000), rng.random(20_000) < 0.5
    tracemalloc.start()
    gradient = auroc_gradient(scores, labels)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    part = rng.permutation(20_000)
    np.testing.assert_allclose(auroc_gradient(scores[part], labels[part]), gradient[part], atol=1e-15)
