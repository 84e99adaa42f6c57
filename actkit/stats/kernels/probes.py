"""Linear probes that predict a label from vectors, texts or lengths, tested on held-out samples."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from .auroc import auroc_gradient, column_aurocs
from .blas_threads import one_thread
from .logistic import fit_logistic, fit_sparse_logistic
from .probe_fit import FittedProbe, fit_ridge
from .shared_products import Scaling, SharedProducts
from .text_features import ngram_counts, tfidf

Fold = tuple[np.ndarray, np.ndarray]
Estimator = Literal["ridge", "logistic"]
_TEXT_PENALTY = 0.1
_DECIMALS = 10  # of scores, so that those that differ by rounding errors are ties
ESTIMATORS: tuple[str, ...] = get_args(Estimator)


def grouped_folds(
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    folds: int,
    seeds: int,
    strata: np.ndarray | None = None,
) -> list[Fold]:
    """Divide samples into stratified folds that keep clusters together.

    Parameters
    ----------
    labels
        Label of each sample, dims ``(sample,)``: booleans, or integers for several classes.
    groups
        Cluster of each sample, dims ``(sample,)``.
    folds
        Number of folds per seed.
    seeds
        Number of repetitions, with seeds from 0.
    strata
        What the folds are stratified by, dims ``(sample,)``; by default the labels.

    Returns
    -------
    list of (numpy.ndarray, numpy.ndarray)
        Indices of the training and the test samples of each fold. Folds that lack a label are omitted.
    """
    cuts, n_labels = [], len(np.unique(labels))
    strata = labels if strata is None else strata
    for seed in range(seeds):
        splitter = _Splitter(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The least populated class"
            )  # of strata; labels are checked below
            splits = list(splitter.split(np.zeros(len(labels)), strata, groups))
        for train, test in splits:
            if all(len(np.unique(labels[side])) == n_labels for side in (train, test)):
                cuts.append((train, test))
    return cuts


class _Splitter(StratifiedGroupKFold):  # type: ignore[misc]
    """scikit-learn's splitter, which compares the folds of each cluster in one step."""

    def _find_best_fold(
        self, y_counts_per_fold: np.ndarray, y_cnt: np.ndarray, group_y_counts: np.ndarray
    ) -> int | None:
        """Return the fold that a cluster goes to, with the same arithmetic as scikit-learn."""
        n_folds = len(y_counts_per_fold)
        trials = np.repeat(y_counts_per_fold[None], n_folds, axis=0)
        trials[range(n_folds), range(n_folds)] += group_y_counts
        spreads = np.std(trials / y_cnt, axis=1).mean(axis=1).tolist()
        sizes = trials[range(n_folds), range(n_folds)].sum(axis=1).tolist()
        best, least, fewest = None, np.inf, np.inf
        for fold, (spread, size) in enumerate(zip(spreads, sizes, strict=True)):
            is_close = abs(spread - least) <= 1e-8 + 1e-5 * least
            if spread < least or (is_close and size < fewest):
                best, least, fewest = fold, spread, size
        return best


def standardized(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """Return vectors with the mean of the training samples removed and their standard deviation set to 1.

    Parameters
    ----------
    train
        Training samples, dims ``(sample, hidden)``, float64.
    *others
        Further samples, which do not affect the mean and the standard deviation.

    Returns
    -------
    list of numpy.ndarray
        The training samples, then the others; dimensions that are constant in training are 0.
    """
    scaling = Scaling.of(train)
    return [scaling.apply(x) for x in (train, *others)]


def fit(x: np.ndarray, labels: np.ndarray, estimator: Estimator) -> FittedProbe:
    """Return a probe for several labellings.

    Parameters
    ----------
    x
        Standardised training samples, dims ``(sample, hidden)``.
    labels
        Boolean, dims ``(labelling, sample)``; the first labelling has both labels. Weights are NaN for others
        that lack one.
    estimator
        ``ridge`` or ``logistic``.
    """
    if estimator == "ridge":
        return fit_ridge(x, labels)
    first = fit_logistic(x, labels[0])
    weights, intercepts = np.full((x.shape[1], len(labels)), np.nan), np.full(len(labels), np.nan)
    weights[:, :1], intercepts[:1] = first.weights, first.intercepts
    for number, row in enumerate(labels[1:], start=1):
        if 0 < row.sum() < len(row):
            fitted = fit_logistic(x, row)
            weights[:, number], intercepts[number] = fitted.weights[:, 0], fitted.intercepts[0]
    return replace(first, weights=weights, intercepts=intercepts)


@dataclass(frozen=True)
class HeldOutScores:
    """Scores of test samples in each fold, and the part that each training sample has in their AUROC.

    Parameters
    ----------
    scores
        Dims ``(fold, sample)``: above 0 if the second label is predicted; NaN for samples that the fold does
        not test, and if values are not finite.
    effects
        Dims ``(fold, sample)``: the change of the fold's AUROC if a training sample is added, to first order;
        0 for other samples.
    control
        Scores for the labels of control tasks, dims ``(draw, fold, sample)``, if there are any.
    """

    scores: np.ndarray
    effects: np.ndarray
    control: np.ndarray | None = None

    @classmethod
    def undefined(cls, n_folds: int, n_samples: int, n_draws: int = 0) -> "HeldOutScores":
        """Return scores that are all NaN."""
        control = np.full((n_draws, n_folds, n_samples), np.nan) if n_draws else None
        return cls(np.full((n_folds, n_samples), np.nan), np.zeros((n_folds, n_samples)), control)


@one_thread()
def probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[Fold],
    *,
    permuted: np.ndarray | None = None,
    control: np.ndarray | None = None,
    estimator: Estimator = "ridge",
) -> tuple[HeldOutScores, np.ndarray]:
    """Return the held-out scores of a probe, and its AUROC for permuted labels.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; standardised with the mean and standard deviation of each training part.
    labels
        Boolean, dims ``(sample,)``.
    folds
        From :func:`grouped_folds`.
    permuted
        Labels permuted under the null hypothesis, dims ``(permutation, sample)``; none by default.
    control
        Labels of control tasks, dims ``(draw, sample)``; none by default.
    estimator
        ``ridge`` or ``logistic``, for all labellings.

    Returns
    -------
    tuple
        Held-out scores, and the mean AUROC over folds, dims ``(permutation,)``; NaN if a value is not finite.
    """
    labellings = np.vstack([part for part in (labels[None], permuted, control) if part is not None])
    n_draws = 0 if control is None else len(control)
    last = len(labellings) - n_draws  # the draws of the control task come after it
    held_out = HeldOutScores.undefined(len(folds), len(labels), n_draws)
    aurocs = np.full((last, len(folds)), np.nan)
    exact = vectors.astype(np.float64)
    if not np.isfinite(exact).all():
        return held_out, aurocs[1:, 0]
    exact -= exact.mean(axis=0)  # changes nothing but rounding errors
    shared = None
    if estimator == "ridge" and exact.shape[1] <= min(len(train) for train, _ in folds):
        shared = SharedProducts.of(exact, np.where(labellings, 1.0, -1.0).T)
    for number, (train, test) in enumerate(folds):
        x = exact[train]
        scaling = Scaling.of(x)
        x, tested = scaling.apply(x), scaling.apply(exact[test])
        products = None if shared is None else shared.of_training(train, scaling)
        if products is None:
            fitted = fit(x, labellings[:, train], estimator)
        else:
            fitted = fit_ridge(x, labellings[:1, train], products)
        scores = np.round(tested @ fitted.weights + fitted.intercepts, _DECIMALS)
        held_out.scores[number, test] = scores[:, 0]
        gradient = auroc_gradient(scores[:, 0], labels[test])
        held_out.effects[number, train] = fitted.effects(tested.T @ gradient)
        aurocs[1:, number] = column_aurocs(scores[:, 1:last], labellings[1:last, test].T)
        if held_out.control is not None:
            held_out.control[:, number, test] = scores[:, last:].T
    return held_out, np.asarray(np.nanmean(aurocs[1:], axis=1))


def balanced_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the balanced accuracy of held-out scores, dims ``(fold, sample)``, averaged over folds."""
    each = []
    for row in scores:
        tested = ~np.isnan(row)
        correct = (row > 0) == labels
        each.append((correct[tested & labels].mean() + correct[tested & ~labels].mean()) / 2)
    return float(np.mean(each))


def probe_texts(texts: Sequence[str], labels: np.ndarray, folds: Sequence[Fold]) -> HeldOutScores:
    """Return the held-out scores of a text-only baseline: TF-IDF features of character n-grams.

    Parameters
    ----------
    texts
        Dims ``(sample,)``.
    labels, folds
        As for :func:`probe`.

    Returns
    -------
    HeldOutScores
        Scores of a logistic regression; NaN if all texts are empty.
    """
    held_out = HeldOutScores.undefined(len(folds), len(labels))
    if not any(text.strip() for text in texts):
        return held_out
    counts = ngram_counts(texts)
    for number, (train, test) in enumerate(folds):
        x, tested = tfidf(counts[train], counts[test])
        fitted = fit_sparse_logistic(x, labels[train], penalty=_TEXT_PENALTY)
        scores = np.round((tested @ fitted.weights + fitted.intercepts)[:, 0], _DECIMALS)
        held_out.scores[number, test] = scores
        gradient = auroc_gradient(scores, labels[test])
        held_out.effects[number, train] = fitted.effects(tested.T @ gradient)
    return held_out


@one_thread()
def transfer_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    domains: np.ndarray,
    folds: Sequence[Fold],
    *,
    estimator: Estimator = "ridge",
) -> list[list[HeldOutScores]]:
    """Return the held-out scores of probes trained on one domain and tested on each.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; standardised with the mean and standard deviation of each training part.
    labels
        Boolean, dims ``(sample,)``.
    domains
        Domain of each sample, such as its language: integers from 0, dims ``(sample,)``.
    folds
        From :func:`grouped_folds`, over all domains: no domain trains on a test cluster.
    estimator
        ``ridge`` or ``logistic``.

    Returns
    -------
    list of list of HeldOutScores
        For each training domain, and each test domain; NaN in folds in which either lacks a label.
    """
    exact = vectors.astype(np.float64)
    n_domains = int(domains.max()) + 1
    results = [
        [HeldOutScores.undefined(len(folds), len(labels)) for _ in range(n_domains)] for _ in range(n_domains)
    ]
    if not np.isfinite(exact).all():
        return results
    exact -= exact.mean(axis=0)
    for number, (train, test) in enumerate(folds):
        for source, row in enumerate(results):
            of_source = train[domains[train] == source]
            if not 0 < labels[of_source].sum() < len(of_source):
                continue
            x, tested = standardized(exact[of_source], exact[test])
            fitted = fit(x, labels[None, of_source], estimator)
            scores = np.round(tested @ fitted.weights + fitted.intercepts, _DECIMALS)[:, 0]
            for target, held_out in enumerate(row):
                of_target = np.flatnonzero(domains[test] == target)
                is_second = labels[test[of_target]]
                if 0 < is_second.sum() < len(is_second):
                    held_out.scores[number, test[of_target]] = scores[of_target]
                    gradient = auroc_gradient(scores[of_target], is_second)
                    held_out.effects[number, of_source] = fitted.effects(tested[of_target].T @ gradient)
    return results
