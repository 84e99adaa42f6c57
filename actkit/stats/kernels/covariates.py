"""Covariates whose linear prediction is removed from vectors: functions of length, components of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from scipy.sparse.linalg import svds

from .text_features import NgramCounts, ngram_counts, tfidf

Covariate = Literal["length", "tfidf"]
COVARIATES: tuple[str, ...] = get_args(Covariate)
N_COMPONENTS = 10  # of TF-IDF
_KNOTS = 5
_SMALLEST = 1e-10  # singular value of a basis, relative to the largest
_SMALLEST_COMPONENT = 1e-7  # singular value of TF-IDF; ARPACK finds it as a square root


@dataclass(frozen=True)
class Basis:
    """Functions of covariates with a constant among them, and the least-squares regression on them.

    Parameters
    ----------
    train, test
        Dims ``(sample, function)``.
    """

    train: np.ndarray
    test: np.ndarray

    @classmethod
    def constant(cls, n_train: int, n_test: int) -> "Basis":
        """Return the basis without covariates."""
        return cls(np.ones((n_train, 1)), np.ones((n_test, 1)))

    @cached_property
    def inverse(self) -> np.ndarray:
        """The pseudoinverse of the training part, dims ``(function, sample)``."""
        return np.asarray(np.linalg.pinv(self.train, rcond=_SMALLEST))

    def residuals(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what a regression fitted in training leaves of training and test values.

        Parameters
        ----------
        train, test
            Dims ``(sample, variable)``.
        """
        coefficients = self.inverse @ train
        return train - self.train @ coefficients, test - self.test @ coefficients

    def effects(self, gradient: np.ndarray) -> np.ndarray:
        """Return how much the fitted values of test samples change with each training value.

        Parameters
        ----------
        gradient
            Weight of each test sample, dims ``(test sample,)``.

        Returns
        -------
        numpy.ndarray
            Dims ``(training sample,)``.
        """
        return np.asarray(gradient @ self.test @ self.inverse)


@dataclass(frozen=True)
class Covariates:
    """Covariates of samples.

    Parameters
    ----------
    names
        ``length``, ``tfidf`` or both.
    lengths
        Number of tokens, dims ``(sample,)``.
    texts
        Dims ``(sample,)``.
    """

    names: tuple[str, ...]
    lengths: np.ndarray
    texts: Sequence[str]

    def basis(self, train: np.ndarray, test: np.ndarray) -> Basis:
        """Return the functions of the covariates, chosen by the training samples alone.

        Parameters
        ----------
        train, test
            Indices of samples.
        """
        parts = [(np.ones((len(train), 1)), np.ones((len(test), 1)))]
        if "length" in self.names:
            parts.append(natural_spline(np.log(self.lengths[train]), np.log(self.lengths[test])))
        if "tfidf" in self.names and any(text.strip() for text in self.texts):
            parts.append(self._components(train, test))
        return Basis(*(np.hstack(side) for side in zip(*parts, strict=True)))

    @cached_property
    def _counts(self) -> NgramCounts:
        return ngram_counts(self.texts)

    def _components(self, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the coordinates of texts along the leading right singular vectors of their TF-IDF."""
        x, tested = tfidf(self._counts[train], self._counts[test])
        k = min(N_COMPONENTS, len(train) - 1)
        if k < 1:
            return np.zeros((len(train), 0)), np.zeros((len(test), 0))
        if k < x.shape[1]:
            _, sizes, right = svds(x, k=k, v0=np.ones(min(x.shape)), return_singular_vectors="vh")
        else:
            _, sizes, right = np.linalg.svd(x.toarray(), full_matrices=False)
        # texts of few words have a low rank, beyond which the components are arbitrary
        right = right[sizes > _SMALLEST_COMPONENT * sizes.max()].T
        return x @ right, tested @ right


def natural_spline(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a basis of natural cubic splines without the constant, which are linear beyond their knots.

    Parameters
    ----------
    train, test
        Values of a covariate, dims ``(sample,)``; the knots are quantiles of the distinct training values.

    Returns
    -------
    tuple of numpy.ndarray
        Dims ``(sample, function)``: one function fewer than there are knots, of which there are 5 at most.

    Notes
    -----
    Hastie, Tibshirani, Friedman, The elements of statistical learning, Springer 2009, section 5.2.1.
    """
    distinct = np.unique(train)
    knots = np.quantile(distinct, np.linspace(0, 1, min(_KNOTS, len(distinct))))
    low, width = knots[0], np.ptp(knots) or 1.0
    places = (knots - low) / width

    def functions(values: np.ndarray) -> np.ndarray:
        scaled = (values - low) / width
        cubes = np.clip(scaled[:, None] - places, 0, None) ** 3
        slopes = (cubes[:, :-1] - cubes[:, -1:]) / np.where(len(places) > 1, places[-1] - places[:-1], 1)
        return np.column_stack([scaled, slopes[:, :-1] - slopes[:, -1:]])

    if len(knots) == 1:
        return np.zeros((len(train), 0)), np.zeros((len(test), 0))
    return functions(train), functions(test)
