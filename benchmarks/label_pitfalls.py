"""Pitfalls of probes and labels, of erasure, k-means and the intrinsic dimension; see `pitfalls`."""

import numpy as np

from actkit.stats.kernels.auroc import fold_aurocs
from actkit.stats.kernels.covariates import Covariates
from actkit.stats.kernels.erasure import Erasure, erasure
from actkit.stats.kernels.geometry import two_nn
from actkit.stats.kernels.kmeans import agreement, fit
from actkit.stats.kernels.length_strata import length_matched, length_strata
from actkit.stats.kernels.probes import Fold, grouped_folds, probe
from actkit.stats.kernels.residual_probe import residual_probe

from .pitfall import Pitfall


def label_pitfalls(trials: int) -> list[Pitfall]:
    """Simulate all pitfalls of this module; long simulations take a share of the trials."""
    few = max(3, trials // 10)
    return [
        matched_lengths(few),
        label_of_length(few),
        erased_and_probed(few),
        erasure_of_new_samples(few),
        dependent_labels_of_kmeans(few),
        error_of_dimension(few),
    ]


def _auroc(vectors: np.ndarray, labels: np.ndarray, folds: list[Fold]) -> float:
    return float(fold_aurocs(probe(vectors, labels, folds)[0].scores, labels).mean())


def matched_lengths(trials: int) -> Pitfall:
    """AUROC of the length of about 110 matched samples, which tells nothing about the label."""
    rng, aurocs = np.random.default_rng(0), np.zeros(2)
    for _ in range(trials):
        lengths = rng.integers(5, 40, 200)
        codes = (lengths + 12 * rng.standard_normal(200) > 22).astype(int)
        kept = np.flatnonzero(length_matched(codes, lengths, np.arange(200), seed=0))
        codes, lengths = codes[kept], lengths[kept]
        for at, strata in enumerate((None, length_strata(codes, lengths, 5))):
            folds = grouped_folds(codes == 1, np.arange(len(codes)), folds=5, seeds=1, strata=strata)
            aurocs[at] += _auroc(lengths[:, None].astype(float), codes == 1, folds) / trials
    return Pitfall(
        "AUROC of length after matching on it: folds by label, by label and length", 0.5, *aurocs.tolist()
    )


def label_of_length(trials: int) -> Pitfall:
    """AUROC of vectors that carry length, for a label that depends on length alone."""
    rng, aurocs = np.random.default_rng(0), np.zeros(2)
    for _ in range(trials):
        lengths = rng.integers(3, 40, 300).astype(float)
        labels = np.log(lengths) + 0.5 * rng.standard_normal(300) > np.log(15)
        vectors = rng.standard_normal((300, 16))
        vectors[:, 0] += 2 * np.log(lengths)
        vectors[:, 1] += 20 / lengths
        folds = grouped_folds(labels, np.arange(300), folds=5, seeds=1)
        aurocs[0] += _auroc(vectors, labels, folds) / trials
        covariates = Covariates(("length",), lengths, [""] * 300)
        held_out, _ = residual_probe(vectors, labels, folds, covariates=covariates)
        aurocs[1] += fold_aurocs(held_out.scores, labels).mean() / trials
    return Pitfall("AUROC of a label of length alone: vectors, residuals", 0.5, *aurocs.tolist())


def _erased(fitted: Erasure, vectors: np.ndarray) -> np.ndarray:
    return np.asarray(vectors - (vectors - fitted.mean) @ fitted.right @ fitted.left.T)


def erased_and_probed(trials: int) -> Pitfall:
    """AUROC of a cross-validated probe after erasure: on the samples of the fit, on others."""
    rng, aurocs = np.random.default_rng(0), np.zeros(2)
    for _ in range(trials):
        labels = np.tile([False, True], 400)
        vectors = rng.standard_normal((800, 6))
        vectors[:, 0] += 2 * labels
        first, second = vectors[:400], vectors[400:]
        folds = grouped_folds(labels[:400], np.arange(400), folds=5, seeds=1)
        fitted = erasure(first, labels[:400].astype(int))
        aurocs[0] += _auroc(_erased(fitted, first), labels[:400], folds) / trials
        aurocs[1] += _auroc(_erased(fitted, second), labels[400:], folds) / trials
    return Pitfall("AUROC after erasure: samples of the fit, other samples", 0.5, *aurocs.tolist())


def erasure_of_new_samples(trials: int) -> Pitfall:
    """Mean squared change of new samples, relative to their variance; the label is in one dimension."""
    rng, changes = np.random.default_rng(0), np.zeros(2)
    for _ in range(trials):
        labels = np.tile([0, 1], 150)
        vectors, fresh = rng.standard_normal((2, 300, 300))
        vectors[:, 0] += 2 * labels
        fresh[:, 0] += 2 * labels
        for at, shrink in enumerate((False, True)):
            change = _erased(erasure(vectors, labels, shrink=shrink), fresh) - fresh
            changes[at] += np.square(change).sum() / np.square(fresh - fresh.mean(axis=0)).sum() / trials
    return Pitfall(
        "change of new samples by erasure, 300 samples × 300: plain, shrunk", 1 / 300, *changes.tolist()
    )


def dependent_labels_of_kmeans(trials: int) -> Pitfall:
    """Share of p of at most 0.05, where groups of four share vector and label, which are unrelated."""
    rng, rates, groups = np.random.default_rng(2), np.zeros(2), np.repeat(np.arange(10), 4)
    trials *= 10
    for _ in range(trials):
        vectors = (rng.standard_normal((10, 3)) * [5, 1, 1])[groups] + 0.3 * rng.standard_normal((40, 3))
        labels = rng.integers(0, 2, 10)[groups]
        model = fit(vectors, 2, 0)
        assert model is not None
        for at, members in enumerate((np.arange(40), groups)):
            p = agreement(model.labels_.astype(int), labels, members, 39, 0)[0, 2]
            rates[at] += (p <= 0.05) / trials
    return Pitfall(
        "p ≤ 0.05 of k-means and an unrelated label, groups of 4: samples, groups permuted",
        0.05,
        *rates.tolist(),
    )


def error_of_dimension(trials: int) -> Pitfall:
    """Relate two standard errors of the TwoNN dimension to the spread of its estimates."""
    rng, estimates, errors = np.random.default_rng(0), [], []
    for number in range(max(4 * trials, 20)):
        sphere = rng.standard_normal((200, 3))
        sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
        found = two_nn(sphere)
        estimates.append(found.dimension)
        if number < max(trials, 5):
            left_out = [two_nn(np.delete(sphere, at, axis=0), splits=1).dimension for at in range(0, 200, 4)]
            errors.append((np.sqrt(199 * np.var(left_out)), found.se))
    naive, ours = (np.mean(errors, axis=0) / np.std(estimates, ddof=1)).tolist()
    return Pitfall(
        "standard error of the TwoNN dimension, relative to its spread: jackknife, quarters", 1, naive, ours
    )
