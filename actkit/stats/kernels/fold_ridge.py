"""Ridge regression of labels on vectors or texts in one fold, with the effect of each training sample."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve
from scipy.sparse import csr_matrix

from .covariates import Basis, Covariates
from .probe_fit import FittedProbe
from .probes import Fold, standardized
from .ridge import RidgeSystem
from .text_features import ngram_counts, tfidf

_COLUMNS = 2000  # targets that are fitted at once
_DECIMALS = 10  # of scores, so that those that differ by rounding errors are ties


@dataclass(frozen=True)
class Prediction:
    """Predictions of the targets of test samples.

    Parameters
    ----------
    scores
        What the vectors predict, dims ``(test sample, target)``.
    remainders
        Targets minus their mean in training, or minus what the covariates predict, dims
        ``(test sample, target)``.
    trained
        The same for training samples, dims ``(training sample, target)``.
    weights, intercepts
        Dims ``(hidden, target)`` and ``(target,)``.
    """

    scores: np.ndarray
    remainders: np.ndarray
    trained: np.ndarray
    weights: np.ndarray
    intercepts: np.ndarray


@dataclass(frozen=True)
class FoldRidge:
    """A ridge regression on vectors in one fold, for any number of targets.

    Parameters
    ----------
    train, test
        Indices of the training and the test samples.
    x, tested
        Their vectors without what the covariates predict, standardised, dims ``(sample, hidden)``.
    system
        The factorised equations.
    basis
        Functions of the covariates; a constant without covariates.
    """

    train: np.ndarray
    test: np.ndarray
    x: np.ndarray
    tested: np.ndarray
    system: RidgeSystem
    basis: Basis

    def predict(self, targets: np.ndarray) -> Prediction:
        """Fit and predict targets, dims ``(sample, target)``."""
        trained, remainders = self.basis.residuals(targets[self.train], targets[self.test])
        weights = self.system.weights(trained)
        return Prediction(self.tested @ weights, remainders, trained, weights, np.zeros(targets.shape[1]))

    def effects(self, prediction: Prediction, target: int, gradient: np.ndarray) -> np.ndarray:
        """Return how much each training sample changes the scores of one target, to first order.

        Parameters
        ----------
        prediction
            From :meth:`predict`.
        target
            Index of the target.
        gradient
            Weight of the score of each test sample, dims ``(test sample,)``.

        Returns
        -------
        numpy.ndarray
            Dims ``(training sample,)``: the effect through the weights, and that through the regression on
            the covariates.
        """
        probe, fitted = _fitted(self.x, self.system, prediction, target)
        return np.asarray(probe.effects(self.tested.T @ gradient) - self.basis.effects(gradient) * fitted)


@dataclass(frozen=True)
class TextRidge:
    """A ridge regression on TF-IDF features in one fold.

    Parameters
    ----------
    train, test
        Indices of the training and the test samples.
    x, tested
        Their features, dims ``(sample, n-gram)``.
    system
        The factorised equations.
    """

    train: np.ndarray
    test: np.ndarray
    x: csr_matrix
    tested: csr_matrix
    system: RidgeSystem

    @property
    def basis(self) -> Basis:
        """A constant."""
        return Basis.constant(len(self.train), len(self.test))

    def predict(self, targets: np.ndarray) -> Prediction:
        """Fit and predict targets, dims ``(sample, target)``; the intercept has no penalty."""
        trained, remainders = self.basis.residuals(targets[self.train], targets[self.test])
        ones = np.ones((len(trained), 1))
        solved, solved_ones = (cho_solve(self.system.factor, sides) for sides in (trained, ones))
        intercepts = solved.sum(axis=0) / solved_ones.sum()
        weights = np.asarray(self.x.T @ (solved - solved_ones * intercepts))
        return Prediction(self.tested @ weights + intercepts, remainders, trained, weights, intercepts)

    def effects(self, prediction: Prediction, target: int, gradient: np.ndarray) -> np.ndarray:
        """Return how much each training sample changes the scores, as :meth:`FoldRidge.effects`."""
        probe, fitted = _fitted(self.x, self.system, prediction, target)
        centre = np.asarray(self.x.mean(axis=0)).ravel()
        along = self.tested.T @ gradient - centre * gradient.sum()
        return np.asarray(probe.effects(along) - self.basis.effects(gradient) * fitted)


def fold_ridges(
    vectors: np.ndarray, folds: Sequence[Fold], covariates: Covariates | None = None
) -> Iterator[FoldRidge]:
    """Yield the ridge regression of each fold.

    Parameters
    ----------
    vectors
        Finite, dims ``(sample, hidden)``.
    folds
        Indices of the training and the test samples.
    covariates
        What to remove from the vectors, by a regression in each training part.
    """
    exact = vectors.astype(np.float64)
    exact -= exact.mean(axis=0)  # changes nothing but rounding errors
    for train, test in folds:
        basis = Basis.constant(len(train), len(test)) if covariates is None else covariates.basis(train, test)
        x, tested = exact[train], exact[test]
        if covariates is not None:
            x, tested = basis.residuals(x, tested)
        x, tested = standardized(x, tested)
        yield FoldRidge(train, test, x, tested, RidgeSystem.of(x), basis)


def text_ridges(texts: Sequence[str], folds: Sequence[Fold]) -> Iterator[TextRidge]:
    """Yield the ridge regression of each fold on the texts, of which one is not empty."""
    counts = ngram_counts(texts)
    for train, test in folds:
        x, tested = tfidf(counts[train], counts[test])
        yield TextRidge(train, test, x, tested, RidgeSystem.of_sparse(x))


def column_blocks(count: int, width: int) -> Iterator[slice]:
    """Yield slices of permutations with up to 2,000 targets, each permutation having `width` of them."""
    step = max(_COLUMNS // width, 1)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def rounded(scores: np.ndarray) -> np.ndarray:
    """Return scores without rounding errors, so that those that differ by them are ties."""
    return np.round(scores, _DECIMALS)


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last dimension, without NaN; NaN if there is nothing else."""
    counts = np.isfinite(values).sum(axis=-1)
    return np.asarray(np.nansum(values, axis=-1) / np.where(counts, counts, np.nan))


def _fitted(
    x: np.ndarray | csr_matrix, system: RidgeSystem, prediction: Prediction, target: int
) -> tuple[FittedProbe, np.ndarray]:
    """Return the probe of one target, and its scores in training."""
    fitted = np.asarray(x @ prediction.weights[:, target]) + prediction.intercepts[target]
    probe = FittedProbe(
        x,
        prediction.weights[:, [target]],
        prediction.intercepts[[target]],
        residual=prediction.trained[:, target] - fitted,
        curvature=np.ones(len(fitted)),
        solve=system.solve,
    )
    return probe, fitted
