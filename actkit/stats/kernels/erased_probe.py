"""Probe before and after the erasure of its label, with an eraser fitted on other clusters."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .auroc import auroc_gradient
from .blas_threads import one_thread
from .erasure import erasure
from .probe_fit import fit_ridge
from .probes import Fold, HeldOutScores, grouped_folds, standardized

_DECIMALS = 10  # of scores, so that those that differ by rounding errors are ties


@dataclass(frozen=True)
class Half:
    """The samples by which an eraser is fitted, and the folds of all others.

    Parameters
    ----------
    fitted
        Indices of samples.
    folds
        Training and test samples of each fold, none of whose clusters is among those of ``fitted``.
    """

    fitted: np.ndarray
    folds: list[Fold]


def halves(labels: np.ndarray, groups: np.ndarray, *, folds: int, seeds: int) -> Iterator[Half]:
    """Yield both halves of the clusters in turn, stratified by label, with the folds of the other half.

    Parameters
    ----------
    labels
        Boolean, dims ``(sample,)``.
    groups
        Cluster of each sample, dims ``(sample,)``.
    folds, seeds
        Number of folds within a half, and of divisions into halves.
    """
    for fitted, others in grouped_folds(labels, groups, folds=2, seeds=seeds):
        within = grouped_folds(labels[others], groups[others], folds=folds, seeds=1)
        yield Half(fitted, [(others[train], others[test]) for train, test in within])


@one_thread()
def erased_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    divided: list[Half],
    *,
    shrink: bool,
) -> tuple[HeldOutScores, HeldOutScores]:
    """Return the held-out scores of a ridge-regression probe before and after the label is erased.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; standardised in each training part.
    labels, groups
        As for :func:`halves`.
    divided
        From :func:`halves`.
    shrink
        Whether the eraser shrinks the covariance towards a multiple of the identity.

    Returns
    -------
    tuple of HeldOutScores
        Before, and after; in the same folds. The effects of samples are those on the probe, not on the
        eraser. NaN if a value is not finite.
    """
    n_folds = sum(len(half.folds) for half in divided)
    before, after = (HeldOutScores.undefined(n_folds, len(labels)) for _ in range(2))
    if not np.isfinite(vectors).all():
        return before, after
    exact, number = vectors.astype(np.float64), 0
    for half in divided:
        members = groups[half.fitted]
        fit = erasure(exact[half.fitted], labels[half.fitted].astype(np.int64), members, shrink=shrink)
        erased = exact - (exact - fit.mean) @ fit.right @ fit.left.T
        for fold in half.folds:
            for scores, x in ((before, exact), (after, erased)):
                _record(scores, number, x, labels, fold)
            number += 1
    return before, after


def _record(held_out: HeldOutScores, number: int, x: np.ndarray, labels: np.ndarray, fold: Fold) -> None:
    train, test = fold
    trained, tested = standardized(x[train], x[test])
    fitted = fit_ridge(trained, labels[None, train])
    scores = np.round(tested @ fitted.weights + fitted.intercepts, _DECIMALS)[:, 0]
    held_out.scores[number, test] = scores
    held_out.effects[number, train] = fitted.effects(tested.T @ auroc_gradient(scores, labels[test]))
