"""Linear probes that predict a label from vectors, texts or lengths, tested on held-out samples."""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from .blas_threads import one_thread

Fold = tuple[np.ndarray, np.ndarray]


def grouped_folds(labels: np.ndarray, groups: np.ndarray, *, folds: int, seeds: int) -> list[Fold]:
    """Divide samples into stratified folds that keep clusters together.

    Parameters
    ----------
    labels
        Boolean, dims ``(sample,)``.
    groups
        Cluster of each sample, dims ``(sample,)``.
    folds
        Number of folds per seed.
    seeds
        Number of repetitions, with seeds from 0.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Indices of the training and the test samples of each fold. Folds that lack a label are omitted.
    """
    cuts = []
    for seed in range(seeds):
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for train, test in splitter.split(np.zeros(len(labels)), labels, groups):
            if all(0 < labels[side].sum() < len(side) for side in (train, test)):
                cuts.append((train, test))
    return cuts


def linear_probe() -> Pipeline:
    """Return the probe: standardisation on the training samples, then L2-penalised logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


@one_thread()
def probe(vectors: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Return the cross-validated scores of the probe.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(sample,)``.
    folds
        From :func:`grouped_folds`.

    Returns
    -------
    numpy.ndarray
        AUROC and balanced accuracy, dims ``(2, fold)``; NaN if a value is not finite.
    """
    exact = vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        return np.full((2, len(folds)), np.nan)
    return _scores(lambda train: linear_probe().fit(exact[train], labels[train]), exact, labels, folds)


def probe_texts(texts: Sequence[str], labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Return the scores of :func:`probe` for TF-IDF features of character n-grams, a text-only baseline.

    NaN if all texts are empty.
    """
    array = np.array(texts, dtype=object)
    if not any(text.strip() for text in texts):
        return np.full((2, len(folds)), np.nan)

    def fit(train: np.ndarray) -> Pipeline:
        counts = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True)
        return make_pipeline(counts, LogisticRegression(max_iter=1000, C=10)).fit(array[train], labels[train])

    return _scores(fit, array, labels, folds)


@one_thread()
def transfer_probe(
    vectors: np.ndarray, labels: np.ndarray, sides: np.ndarray, folds: Sequence[Fold]
) -> np.ndarray:
    """Return the AUROC of probes trained on one domain and tested on each.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(sample,)``.
    sides
        Domain of each sample, such as its language: integers from 0, dims ``(sample,)``.
    folds
        From :func:`grouped_folds`, over all domains: no domain trains on a test cluster.

    Returns
    -------
    numpy.ndarray
        AUROC, dims ``(train, test, fold)``; NaN if a domain lacks a label.
    """
    exact = vectors.astype(np.float64)
    count = int(sides.max()) + 1
    aurocs = np.full((count, count, len(folds)), np.nan)
    if not np.isfinite(exact).all():
        return aurocs
    for fold, (train, test) in enumerate(folds):
        for source in range(count):
            own_train = train[sides[train] == source]
            if not 0 < labels[own_train].sum() < len(own_train):
                continue
            fitted = linear_probe().fit(exact[own_train], labels[own_train])
            for target in range(count):
                own_test = test[sides[test] == target]
                if 0 < labels[own_test].sum() < len(own_test):
                    scores = fitted.decision_function(exact[own_test])
                    aurocs[source, target, fold] = roc_auc_score(labels[own_test], scores)
    return aurocs


@one_thread()
def ridge_scores(vectors: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Return the AUROC of a ridge-regression probe for many permutations of the labels at once.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; standardised over all samples, which uses no labels.
    labels
        Boolean, dims ``(permutation, sample)``.
    folds
        From :func:`grouped_folds`.

    Returns
    -------
    numpy.ndarray
        Mean over folds, dims ``(permutation,)``; NaN if a value is not finite.

    Notes
    -----
    With labels -1 and 1, ridge regression finds the direction of a regularised linear discriminant (Hastie,
    Tibshirani, Friedman, The elements of statistical learning, Springer 2009, exercise 4.2). One
    factorisation per fold serves all permutations. The penalty is the mean eigenvalue of the Gram matrix of
    the samples.
    """
    exact = vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        return np.full(len(labels), np.nan)
    scaled = StandardScaler().fit_transform(exact)
    targets = np.where(labels, 1.0, -1.0).T
    aurocs = []
    for train, test in folds:
        x, centred = scaled[train], targets[train] - targets[train].mean(axis=0)
        penalty = max(np.square(x).sum() / len(x), 1e-12)
        is_wide = x.shape[1] > len(x)  # primal and dual give the same weights; solve the smaller system
        gram = x @ x.T if is_wide else x.T @ x
        gram[np.diag_indices_from(gram)] += penalty
        coefficients = cho_solve(cho_factor(gram, overwrite_a=True), centred if is_wide else x.T @ centred)
        weights = x.T @ coefficients if is_wide else coefficients
        aurocs.append(_aurocs(scaled[test] @ weights, labels[:, test].T))
    return np.asarray(np.nanmean(aurocs, axis=0))


def _aurocs(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUROC of each column: the Mann-Whitney U statistic over the number of pairs."""
    ranks = rankdata(scores, axis=0)
    positive = labels.sum(axis=0)
    negative = len(labels) - positive
    with np.errstate(invalid="ignore", divide="ignore"):
        above = (ranks * labels).sum(axis=0) - positive * (positive + 1) / 2
        return np.asarray(above / (positive * negative))


def _scores(fit, inputs: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return the AUROC and balanced accuracy of the model fitted in each fold."""

    def tested() -> Iterator[tuple[float, float]]:
        for train, test in folds:
            scores = fit(train).decision_function(inputs[test])
            yield roc_auc_score(labels[test], scores), balanced_accuracy_score(labels[test], scores > 0)

    return np.array(list(tested())).T.reshape(2, len(folds))
