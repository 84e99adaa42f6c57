"""Control tasks: types, random labels, and the selectivity of probes against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from actkit.stats.kernels.auroc import cluster_influence, fold_aurocs
from actkit.stats.kernels.control_tasks import (
    content_words,
    control_influence,
    control_labels,
    is_shared,
    selectivity,
)
from actkit.stats.kernels.probes import Estimator, grouped_folds, probe


def test_the_word_is_the_most_frequent_that_recurs_but_not_everywhere() -> None:
    texts = ["The baker sings.", "the BAKER, again", "The nurse «sings»", "the nurse", "the x", ""] * 2
    groups = np.arange(12) % 6 + np.repeat([0, 6], 6)
    words = content_words(texts, groups, 3)
    # "the" occurs in 10 clusters, more than twice 3; "x" in 2, fewer than 3; "sings" and "baker" in 4
    assert words.tolist() == ["baker", "baker", "nurse", "nurse", "", ""] * 2
    assert content_words(["a"] * 4, np.zeros(4, dtype=int), 2).tolist() == [""] * 4  # one cluster
    assert content_words(["مئزرًا أبيض", "مئزرًا"], np.arange(2), 2).tolist() == ["مئزرًا"] * 2


def test_samples_of_a_type_share_a_random_label() -> None:
    types = np.repeat(np.arange(10), np.arange(1, 11))
    labels = control_labels(types, 20, 200, seed=0)
    for kind in range(10):
        rows = labels[:, types == kind]
        assert (rows == rows[:, :1]).all()
        assert 0.2 < rows[:, 0].mean() < 0.6
    assert (labels.any(axis=1) & ~labels.all(axis=1)).all()
    assert abs(labels.sum(axis=1).mean() - 20) < 2
    np.testing.assert_array_equal(labels, control_labels(types, 20, 200, seed=0))
    assert (control_labels(np.array([0, 1, 1]), 3, 5, seed=0).sum(axis=1) % 3 > 0).all()


def test_types_are_shared_by_clusters() -> None:
    types, groups = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 2, 3])
    assert is_shared(types, groups).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_control_aurocs_are_scikit_learns(estimator: Estimator) -> None:
    rng = np.random.default_rng(0)
    groups, types = np.arange(120) // 2, np.arange(120) // 2 % 12
    labels = np.arange(120) % 2 == 0
    vectors = rng.standard_normal((12, 8))[types] + rng.standard_normal((120, 8))
    control = control_labels(types, 60, 6, seed=1)
    folds = grouped_folds(labels, groups, folds=4, seeds=1)
    held_out, permuted = probe(
        vectors, labels, folds, permuted=labels[None, ::-1], control=control, estimator=estimator
    )
    assert permuted.shape == (1,)
    exact = LogisticRegression(tol=1e-12, solver="newton-cholesky")
    model = make_pipeline(StandardScaler(), exact if estimator == "logistic" else RidgeClassifier(8))
    expected = [
        np.mean(
            [
                roc_auc_score(
                    drawn[test], model.fit(vectors[train], drawn[train]).decision_function(vectors[test])
                )
                for train, test in folds
            ]
        )
        for drawn in control
    ]
    influence = cluster_influence(held_out.scores, held_out.effects, labels, groups)
    mean, difference, low, high = selectivity(held_out, influence, labels, control, groups)
    assert mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert difference == pytest.approx(fold_aurocs(held_out.scores, labels).mean() - mean)
    assert (low + high) / 2 == pytest.approx(difference)
    alone = probe(vectors, labels, folds, estimator=estimator)[0]
    np.testing.assert_allclose(alone.scores, held_out.scores)  # the label's probe is unchanged
    assert alone.control is None


def test_the_influence_is_that_of_the_aurocs_of_the_label() -> None:
    rng = np.random.default_rng(0)
    groups, labels = rng.permutation(np.arange(60) % 25), rng.random((5, 60)) < 0.4
    scores = np.full((5, 3, 60), np.nan)
    for fold in range(3):
        tested = groups % 3 == fold
        scores[:, fold, tested] = np.round(rng.standard_normal((5, tested.sum())), 1)  # with ties
    labels[0, groups % 3 == 1] = False  # a fold without the second label
    scores[1, 2] = np.nan
    aurocs, influences = control_influence(scores, labels, groups)
    for number in range(5):
        expected = cluster_influence(scores[number], np.zeros((3, 60)), labels[number], groups)[0]
        np.testing.assert_allclose(influences[number], expected, atol=1e-12)
        each = fold_aurocs(scores[number], labels[number])
        assert aurocs[number] == pytest.approx(np.nanmean(each))


def test_undefined_scores_have_no_selectivity() -> None:
    labels, groups = np.arange(40) % 2 == 0, np.arange(40)
    control = control_labels(groups % 4, 20, 3, seed=0)
    folds = grouped_folds(labels, groups, folds=2, seeds=1)
    held_out, _ = probe(np.full((40, 3), np.nan), labels, folds, control=control)
    influence = cluster_influence(held_out.scores, held_out.effects, labels, groups)
    assert np.isnan(selectivity(held_out, influence, labels, control, groups)).all()
