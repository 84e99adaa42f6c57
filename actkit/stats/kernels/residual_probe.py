"""Probe of two labels on vectors without what covariates predict of them, tested on held-out samples."""

from collections.abc import Sequence

import numpy as np

from .auroc import auroc_gradient, column_aurocs
from .blas_threads import one_thread
from .covariates import Covariates
from .fold_ridge import column_blocks, fold_ridges, mean_of_defined, rounded
from .probes import Fold, HeldOutScores


@one_thread()
def residual_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[Fold],
    *,
    covariates: Covariates,
    permuted: np.ndarray | None = None,
    control: np.ndarray | None = None,
) -> tuple[HeldOutScores, np.ndarray]:
    """Return the held-out scores of a ridge-regression probe, and its AUROC for permuted labels.

    Parameters
    ----------
    vectors, labels, folds, control
        As for :func:`~actkit.stats.kernels.probes.probe`.
    covariates
        What to remove from the vectors and the labels, by a regression in each training part.
    permuted
        Labels permuted given the covariates, dims ``(permutation, sample)``; none by default.

    Returns
    -------
    tuple
        As for :func:`~actkit.stats.kernels.probes.probe`.
    """
    n_draws = 0 if control is None else len(control)
    permuted = np.empty((0, len(labels)), dtype=bool) if permuted is None else permuted
    held_out = HeldOutScores.undefined(len(folds), len(labels), n_draws)
    aurocs = np.full((len(permuted), len(folds)), np.nan)
    if not np.isfinite(vectors).all():
        return held_out, np.full(len(permuted), np.nan)
    targets = np.where(np.vstack([labels[None], *([] if control is None else [control])]), 1.0, -1.0).T
    for number, fold in enumerate(fold_ridges(vectors, folds, covariates)):
        prediction = fold.predict(targets)
        # the mean of the labels in training sets the threshold for accuracy, as in a plain probe
        scores = rounded(prediction.scores + targets[fold.train].mean(axis=0))
        held_out.scores[number, fold.test] = scores[:, 0]
        gradient = auroc_gradient(scores[:, 0], labels[fold.test])
        held_out.effects[number, fold.train] = fold.effects(prediction, 0, gradient)
        if held_out.control is not None:
            held_out.control[:, number, fold.test] = scores[:, 1:].T
        for block in column_blocks(len(permuted), 1):
            drawn = permuted[block].T
            values = rounded(fold.predict(np.where(drawn, 1.0, -1.0)).scores)
            aurocs[block, number] = column_aurocs(values, drawn[fold.test])
    return held_out, mean_of_defined(aurocs)
