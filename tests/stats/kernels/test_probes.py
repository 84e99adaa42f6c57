"""Probes against scikit-learn, and against leakage between folds."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from actkit.stats.kernels.auroc import fold_aurocs
from actkit.stats.kernels.contrasts import permuted
from actkit.stats.kernels.probe_fit import fit_ridge
from actkit.stats.kernels.probes import (
    Estimator,
    Fold,
    balanced_accuracy,
    fit,
    grouped_folds,
    probe,
    probe_texts,
    standardized,
    transfer_probe,
)
from actkit.stats.kernels.shared_products import Scaling, SharedProducts


def data(shift: float = 0.8, n: int = 120, hidden: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2 == 0
    vectors = rng.standard_normal((n, hidden))
    vectors[:, 0] += np.where(labels, shift, 0)
    return vectors, labels, np.arange(n) // 2


def mean_auroc(vectors: np.ndarray, labels: np.ndarray, folds: list[Fold]) -> float:
    return float(fold_aurocs(probe(vectors, labels, folds)[0].scores, labels).mean())


def pipeline(estimator: str, hidden: int) -> Pipeline:
    """Return an independent probe, which scikit-learn fits to the exact optimum."""
    logistic = LogisticRegression(tol=1e-12, max_iter=100_000, solver="newton-cholesky")
    return make_pipeline(StandardScaler(), logistic if estimator == "logistic" else Ridge(alpha=hidden))


def reference(
    model: Pipeline, vectors: np.ndarray, labels: np.ndarray, folds: list[Fold]
) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's scores, dims (fold, sample), and AUROC in each fold."""
    scores, aurocs = np.full((len(folds), len(labels)), np.nan), []
    targets = labels if hasattr(model[-1], "decision_function") else np.where(labels, 1.0, -1.0)
    for number, (train, test) in enumerate(folds):
        fitted = model.fit(vectors[train], targets[train])
        output = fitted.decision_function if targets is labels else fitted.predict
        scores[number, test] = output(vectors[test])
        aurocs.append(roc_auc_score(labels[test], scores[number, test]))
    return scores, np.array(aurocs)


@pytest.mark.parametrize("hidden", [20, 200])
@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_the_probe_is_scikit_learns(estimator: Estimator, hidden: int) -> None:
    """Check both more samples than dimensions and fewer, at scales and offsets that differ."""
    vectors, labels, groups = data(hidden=hidden)
    vectors = vectors * np.geomspace(1, 1000, hidden) + np.arange(hidden)
    folds = grouped_folds(labels, groups, folds=5, seeds=2)
    assert len(folds) == 10
    scores = probe(vectors, labels, folds, estimator=estimator)[0].scores
    wanted, aurocs = reference(pipeline(estimator, hidden), vectors, labels, folds)
    np.testing.assert_array_equal(np.isnan(scores), np.isnan(wanted))
    np.testing.assert_allclose(fold_aurocs(scores, labels), aurocs, atol=1e-9)
    if estimator == "logistic":
        np.testing.assert_allclose(scores, wanted, atol=1e-5)
        accuracy = cross_val_score(
            pipeline(estimator, hidden), vectors, labels, cv=folds, scoring="balanced_accuracy"
        )
        assert balanced_accuracy(scores, labels) == pytest.approx(accuracy.mean())


@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_permutations_use_the_probe_of_the_curve(estimator: Estimator) -> None:
    vectors, labels, groups = data()
    folds = grouped_folds(labels, groups, folds=5, seeds=2)
    shuffled = np.vstack([labels, permuted(labels, groups, 3, seed=0)])
    _, found = probe(vectors, labels, folds, permuted=shuffled, estimator=estimator)
    model = pipeline(estimator, vectors.shape[1])
    wanted = [reference(model, vectors, row, folds)[1].mean() for row in shuffled]
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    held_out, none = probe(vectors, labels, folds, estimator=estimator)
    assert not len(none)
    assert fold_aurocs(held_out.scores, labels).mean() == pytest.approx(found[0])


def test_training_parts_that_share_products_are_fitted_exactly() -> None:
    vectors, labels, groups = data()
    vectors[:, 1] *= 1e3
    vectors[:, 2] = 5
    vectors[groups == 0, 3] = 1e8  # where it is left out, hardly any variance remains
    exact = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    targets = np.vstack([labels, permuted(labels, groups, 2, seed=0)])
    shared = SharedProducts.of(exact, np.where(targets, 1.0, -1.0).T)
    n_shared = 0
    for train, _ in grouped_folds(labels, groups, folds=5, seeds=2):
        scaling = Scaling.of(exact[train])
        x = scaling.apply(exact[train])
        products = shared.of_training(train, scaling)
        if products is not None:
            found, wanted = fit_ridge(x, targets[:1, train], products), fit_ridge(x, targets[:, train])
            np.testing.assert_allclose(found.weights, wanted.weights, rtol=1e-8, atol=1e-12)
            n_shared += 1
    assert n_shared == 8


def test_folds_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    for n_labels in (2, 3, 2, 3, 6):
        labels, groups = rng.integers(n_labels, size=150), rng.integers(60, size=150)
        for seed, folds in enumerate((4, 4)):
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
            wanted = list(splitter.split(labels, labels, groups))
            found = grouped_folds(labels, groups, folds=folds, seeds=2)[seed * folds : (seed + 1) * folds]
            for own, others in zip(found, wanted, strict=True):
                assert [part.tolist() for part in own] == [part.tolist() for part in others]


def test_held_out_samples_do_not_affect_the_scaling() -> None:
    vectors, *_ = data()
    train, held_out = standardized(vectors[:80], vectors[80:])
    np.testing.assert_allclose(train.std(axis=0), 1)
    changed = vectors[80:].copy()
    changed[0] *= 1e6
    np.testing.assert_array_equal(standardized(vectors[:80], changed)[1][1:], held_out[1:])


@pytest.mark.parametrize("offset", [0, 0.1, 1e4])
def test_constant_dimensions_are_ignored(offset: float) -> None:
    vectors, labels, groups = data()
    vectors[:, 5] = offset
    folds = grouped_folds(labels, groups, folds=5, seeds=1)
    wanted, _ = probe(np.delete(vectors, 5, axis=1), labels, folds)
    np.testing.assert_allclose(probe(vectors, labels, folds)[0].scores, wanted.scores, atol=1e-9)


@pytest.mark.parametrize("hidden", [10, 300])
@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_effects_are_those_of_leaving_samples_out(estimator: Estimator, hidden: int) -> None:
    vectors, labels, _ = data(hidden=hidden)
    (x,) = standardized(vectors)
    direction = np.random.default_rng(1).standard_normal(hidden)
    fitted = fit(x, labels[None], estimator)
    wanted = []
    for left_out in range(120):
        kept = np.arange(120) != left_out
        weights = fit(x[kept], labels[None, kept], estimator).weights
        wanted.append((direction @ (fitted.weights - weights)).item())
    found = fitted.effects(direction)
    assert np.corrcoef(found, wanted)[0, 1] > 0.95
    # where all samples are fitted, those that are left out change the curvature of the logistic loss
    tolerance = 0.45 if (estimator, hidden) == ("logistic", 300) else 0.15
    assert np.polyfit(wanted, found, 1)[0] == pytest.approx(1, abs=tolerance)


def test_scores_that_differ_by_rounding_errors_are_ties() -> None:
    _, labels, groups = data()
    lengths = np.random.default_rng(0).integers(3, 6, 120).astype(float)
    folds = grouped_folds(labels, groups, folds=5, seeds=1)
    copies = np.tile(lengths[:, None], 12) * np.geomspace(1, 7, 12)
    assert mean_auroc(copies, labels, folds) == mean_auroc(lengths[:, None], labels, folds)


def test_the_boundary_of_ridge_regression_is_halfway_between_the_groups() -> None:
    vectors, labels, _ = data(n=100, shift=2)
    kept = np.flatnonzero(labels | (np.arange(100) < 20))  # groups of 50 and 10
    (x,) = standardized(vectors[kept])
    fitted = fit_ridge(x, labels[None, kept])
    scores = (x @ fitted.weights + fitted.intercepts)[:, 0]
    assert scores[labels[kept]].mean() == pytest.approx(-scores[~labels[kept]].mean())


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
    leaking, honest = (
        mean_auroc(vectors, labels, grouped_folds(labels, clusters, folds=5, seeds=3))
        for clusters in (np.arange(120), groups)
    )
    assert leaking > 0.95
    assert abs(honest - 0.5) < 0.2


def test_values_that_are_not_finite_give_nan() -> None:
    vectors, labels, groups = data()
    vectors[3, 4] = np.inf
    folds = grouped_folds(labels, groups, folds=5, seeds=1)
    held_out, draws = probe(vectors, labels, folds, permuted=labels[None])
    assert np.isnan(held_out.scores).all()
    assert np.isnan(draws).all()
    ((across,),) = transfer_probe(vectors, labels, np.zeros(120, int), folds)
    assert np.isnan(across.scores).all()


def test_text_probe_uses_characters() -> None:
    labels = np.arange(60) % 2 == 0
    texts = [f"{'she' if label else 'he'} walks {i % 7} times" for i, label in enumerate(labels)]
    folds = grouped_folds(labels, np.arange(60), folds=3, seeds=1)
    for copies in (1, 20):  # with 20 of each word, the scores of the labels are far apart
        scores = probe_texts([text + f" {text}" * copies for text in texts], labels, folds).scores
        assert fold_aurocs(scores, labels).mean() > 0.99
    same = [f"they walk {i % 7} times" for i in range(60)]
    assert abs(fold_aurocs(probe_texts(same, labels, folds).scores, labels).mean() - 0.5) < 0.25
    assert np.isnan(probe_texts([""] * 60, labels, folds).scores).all()


def test_text_probe_knows_only_the_training_vocabulary() -> None:
    labels = np.arange(40) % 2 == 0
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["she", "he", "reads", "a", "book", f"{i}"], 6)) for i in range(40)]
    folds = grouped_folds(labels, np.arange(40), folds=4, seeds=1)
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True)
    model = make_pipeline(features, LogisticRegression(C=10, tol=1e-12, max_iter=100_000))
    wanted, aurocs = reference(model, np.array(texts, dtype=object), labels, folds)
    found = probe_texts(texts, labels, folds).scores
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(fold_aurocs(found, labels), aurocs, atol=1e-4)


def test_transfer_trains_on_one_side_and_tests_on_held_out_groups_of_each() -> None:
    vectors, labels, groups = data(shift=3)
    sides = np.zeros(120, dtype=int)
    both = np.concatenate([vectors, -vectors]), np.tile(labels, 2), np.concatenate([sides, sides + 1])
    own = np.tile(groups, 2)
    results = transfer_probe(*both, grouped_folds(both[1], own, folds=5, seeds=1))
    found = np.array([[fold_aurocs(pair.scores, both[1]).mean() for pair in row] for row in results])
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
    wanted, _ = probe(vectors, labels, folds)

    def threads() -> list[int]:
        return [found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"]

    before = threads()
    seen: list[list[int]] = []
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(probe, vectors, labels, folds) for _ in range(40)]
        while not all(future.done() for future in futures):
            seen.append(threads())
        for future in futures:
            np.testing.assert_array_equal(future.result()[0].scores, wanted.scores)
    assert [1] * len(before) in seen
    assert threads() == before
