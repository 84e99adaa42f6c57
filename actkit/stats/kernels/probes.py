"""Linear probes: how well a label can be told from vectors, from texts, or from their lengths."""

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

from .threads import one_thread

Fold = tuple[np.ndarray, np.ndarray]


def grouped_folds(labels: np.ndarray, groups: np.ndarray, *, folds: int, seeds: int) -> list[Fold]:
    """Cut samples into folds for training and testing, each group in one of them.

    Parameters
    ----------
    labels
        Boolean, dims ``(sample,)``.
    groups
        Dims ``(sample,)``.
    folds
        How many, of each seed.
    seeds
        How often it is done, with the seeds from 0.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Places of the samples to train on, and to test on. Those in which a label is missing are left out.
    """
    found = []
    for seed in range(seeds):
        cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        for train, test in cut.split(np.zeros(len(labels)), labels, groups):
            if all(0 < labels[part].sum() < len(part) for part in (train, test)):
                found.append((train, test))
    return found


def linear_probe() -> Pipeline:
    """Return the probe: features scaled by those it is trained on, then L2-penalised logistic regression."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


@one_thread()
def probe(vectors: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Train and test the probe.

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
        Dims ``(2, fold)``: AUROC, and balanced accuracy. NaN where a value is not finite.
    """
    exact = vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        return np.full((2, len(folds)), np.nan)
    return _scores(lambda train: linear_probe().fit(exact[train], labels[train]), exact, labels, folds)


def probe_texts(texts: Sequence[str], labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Do as :func:`probe`, from how often characters stand together: what the words alone tell.

    NaN where no text has any.
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
    """Train on the samples of one side, and test on those of each.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(sample,)``.
    sides
        Integers from 0, dims ``(sample,)``.
    folds
        From :func:`grouped_folds`, of all sides: what is tested was trained on by none.

    Returns
    -------
    numpy.ndarray
        AUROC, dims ``(train, test, fold)``; NaN where a label is missing on a side.
    """
    exact = vectors.astype(np.float64)
    count = int(sides.max()) + 1
    found = np.full((count, count, len(folds)), np.nan)
    if not np.isfinite(exact).all():
        return found
    for fold, (train, test) in enumerate(folds):
        for one in range(count):
            own = train[sides[train] == one]
            if not 0 < labels[own].sum() < len(own):
                continue
            fitted = linear_probe().fit(exact[own], labels[own])
            for two in range(count):
                other = test[sides[test] == two]
                if 0 < labels[other].sum() < len(other):
                    scores = fitted.decision_function(exact[other])
                    found[one, two, fold] = roc_auc_score(labels[other], scores)
    return found


@one_thread()
def ridge_scores(vectors: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:
    """Return the AUROC of a least-squares probe for many labellings at once.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; scaled as a whole, since that knows no label.
    labels
        Boolean, dims ``(permutation, sample)``.
    folds
        From :func:`grouped_folds`.

    Returns
    -------
    numpy.ndarray
        Mean over folds, dims ``(permutation,)``; NaN where a value is not finite.

    Notes
    -----
    With labels of -1 and 1, ridge regression finds the direction of a linear discriminant; its one
    factorisation in each fold serves all labellings. The penalty is the mean of the eigenvalues.
    """
    exact = vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        return np.full(len(labels), np.nan)
    scaled = StandardScaler().fit_transform(exact)
    targets = np.where(labels, 1.0, -1.0).T
    found = []
    for train, test in folds:
        x, centred = scaled[train], targets[train] - targets[train].mean(axis=0)
        penalty = max(np.square(x).sum() / len(x), 1e-12)
        is_wide = x.shape[1] > len(x)  # the same weights from either side; the smaller one is solved
        gram = x @ x.T if is_wide else x.T @ x
        gram[np.diag_indices_from(gram)] += penalty
        solved = cho_solve(cho_factor(gram, overwrite_a=True), centred if is_wide else x.T @ centred)
        weights = x.T @ solved if is_wide else solved
        found.append(_areas(scaled[test] @ weights, labels[:, test].T))
    return np.asarray(np.nanmean(found, axis=0))


def _areas(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUROC of each column: the Mann-Whitney statistic as a part of all pairs."""
    ranks = rankdata(scores, axis=0)
    positive = labels.sum(axis=0)
    negative = len(labels) - positive
    with np.errstate(invalid="ignore", divide="ignore"):
        above = (ranks * labels).sum(axis=0) - positive * (positive + 1) / 2
        return np.asarray(above / (positive * negative))


def _scores(fit, inputs: np.ndarray, labels: np.ndarray, folds: Sequence[Fold]) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Return AUROC and balanced accuracy of what is fitted in each fold."""

    def tested() -> Iterator[tuple[float, float]]:
        for train, test in folds:
            scores = fit(train).decision_function(inputs[test])
            yield roc_auc_score(labels[test], scores), balanced_accuracy_score(labels[test], scores > 0)

    return np.array(list(tested())).T.reshape(2, len(folds))
