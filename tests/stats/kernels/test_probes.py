"""Probes against scikit-learn, and against leakage between folds."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from actkit.stats.kernels.probes import grouped_folds, probe, probe_texts, ridge_scores, transfer_probe


def data(shift: float = 0.8, n: int = 120, hidden: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2 == 0
    vectors = rng.standard_normal((n, hidden))
    vectors[:, 0] += np.where(labels, shift, 0)
    return vectors, labels, np.arange(n) // 2


@pytest.mark.slow
def test_the_probe_is_scikit_learns() -> None:
    vectors, labels, groups = data()
    folds = grouped_folds(labels, groups, folds=5, seeds=2)
    assert len(folds) == 10
    auroc, accuracy = probe(vectors, labels, folds)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    for seed in (0, 1):
        cut = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for found, metric in ((auroc, "roc_auc"), (accuracy, "balanced_accuracy")):
            wanted = cross_val_score(pipeline, vectors, labels, groups=groups, cv=cut, scoring=metric)
            np.testing.assert_allclose(found[5 * seed : 5 * seed + 5], wanted, atol=1e-9)


def test_clusters_are_never_split_between_training_and_test() -> None:
    _, labels, groups = data()
    for train, test in grouped_folds(labels, groups, folds=5, seeds=3):
        assert not set(groups[train]) & set(groups[test])
        assert sorted([*train, *test]) == list(range(120))


def test_features_shared_by_twins_do_not_leak() -> None:
    """Clusters with one label and a unique mark are separable only if the mark leaks into training."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(30), 4)
    labels = groups % 2 == 0
    vectors = rng.standard_normal((30, 40))[groups] + 0.1 * rng.standard_normal((120, 40))
    leaking = probe(vectors, labels, grouped_folds(labels, np.arange(120), folds=5, seeds=3))[0].mean()
    honest = probe(vectors, labels, grouped_folds(labels, groups, folds=5, seeds=3))[0].mean()
    assert leaking > 0.95
    assert abs(honest - 0.5) < 0.2


def test_values_that_are_not_finite_give_nan() -> None:
    vectors, labels, groups = data()
    vectors[3, 4] = np.inf
    folds = grouped_folds(labels, groups, folds=5, seeds=1)
    assert np.isnan(probe(vectors, labels, folds)).all()
    assert np.isnan(ridge_scores(vectors, labels[None], folds)).all()
    assert np.isnan(transfer_probe(vectors, labels, np.zeros(120, int), folds)).all()


@pytest.mark.parametrize("hidden", [20, 200])
def test_ridge_scores_equal_separate_ridge_regressions(hidden: int) -> None:
    """Check both more samples than dimensions and fewer."""
    vectors, labels, groups = data(hidden=hidden)
    folds = grouped_folds(labels, groups, folds=5, seeds=1)
    labellings = np.stack([labels, np.random.default_rng(1).permutation(labels)])
    found = ridge_scores(vectors, labellings, folds)
    scaled = StandardScaler().fit_transform(vectors)
    for own, score in zip(labellings, found, strict=True):
        each = []
        for train, test in folds:
            penalty = np.square(scaled[train]).sum() / len(train)
            fitted = Ridge(alpha=penalty, fit_intercept=False).fit(
                scaled[train], np.where(own, 1.0, -1.0)[train] - np.where(own, 1.0, -1.0)[train].mean()
            )
            each.append(roc_auc_score(own[test], fitted.predict(scaled[test])))
        assert score == pytest.approx(np.mean(each), abs=1e-9)


def test_text_probe_uses_characters() -> None:
    labels = np.arange(60) % 2 == 0
    texts = [f"{'she' if label else 'he'} walks {i % 7} times" for i, label in enumerate(labels)]
    folds = grouped_folds(labels, np.arange(60), folds=3, seeds=1)
    assert probe_texts(texts, labels, folds)[0].mean() > 0.99
    same = [f"they walk {i % 7} times" for i in range(60)]
    assert abs(probe_texts(same, labels, folds)[0].mean() - 0.5) < 0.25
    assert np.isnan(probe_texts([""] * 60, labels, folds)).all()


def test_transfer_trains_on_one_side_and_tests_on_held_out_groups_of_each() -> None:
    vectors, labels, groups = data(shift=3)
    sides = np.zeros(120, dtype=int)
    both = np.concatenate([vectors, -vectors]), np.tile(labels, 2), np.concatenate([sides, sides + 1])
    own = np.tile(groups, 2)
    found = transfer_probe(*both, grouped_folds(both[1], own, folds=5, seeds=1)).mean(axis=2)
    assert found[0, 0] > 0.9
    assert found[1, 1] > 0.9
    # the other domain is its mirror image
    assert found[0, 1] < 0.1
    assert found[1, 0] < 0.1


@pytest.mark.slow
def test_probes_side_by_side_leave_blas_its_threads() -> None:
    """Each uses one thread, and the last to finish restores the limits."""
    vectors, labels, groups = data()
    folds = grouped_folds(labels, groups, folds=5, seeds=1)
    wanted = probe(vectors, labels, folds)

    def threads() -> list[int]:
        return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]

    before = threads()
    seen: list[list[int]] = []
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(probe, vectors, labels, folds) for _ in range(40)]
        while not all(future.done() for future in futures):
            seen.append(threads())
        for future in futures:
            np.testing.assert_array_equal(future.result(), wanted)
    assert [1] * len(before) in seen
    assert threads() == before
