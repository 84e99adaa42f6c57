"""One-vs-rest probes of a label with several classes, tested on held-out samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .auroc import (
    auroc_gradient,
    auroc_interval,
    cluster_influence,
    column_aurocs,
    fewest_clusters,
    fold_aurocs,
)
from .blas_threads import one_thread
from .covariates import Covariates
from .fold_ridge import (
    FoldRidge,
    TextRidge,
    column_blocks,
    fold_ridges,
    mean_of_defined,
    rounded,
    text_ridges,
)
from .probes import Fold, HeldOutScores


def one_hot(codes: np.ndarray, n_classes: int) -> np.ndarray:
    """Return whether each sample is in each class, boolean, dims ``(..., class)``."""
    return np.asarray(codes[..., None] == np.arange(n_classes))


@one_thread()
def class_probe(
    vectors: np.ndarray,
    codes: np.ndarray,
    folds: Sequence[Fold],
    *,
    permuted: np.ndarray | None = None,
    covariates: Covariates | None = None,
) -> tuple[list[HeldOutScores], np.ndarray]:
    """Return the held-out scores of a ridge-regression probe of each class against the rest.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; standardised in each training part.
    codes
        Class of each sample, integers from 0, dims ``(sample,)``.
    folds
        From :func:`~actkit.stats.kernels.probes.grouped_folds`.
    permuted
        Classes permuted under the null hypothesis, dims ``(permutation, sample)``; none by default.
    covariates
        What to remove from the vectors.

    Returns
    -------
    tuple
        Scores for each class, and the mean AUROC over folds, dims ``(permutation, class)``; NaN if a value is
        not finite.
    """
    n_classes = int(codes.max()) + 1
    permuted = np.empty((0, len(codes)), dtype=codes.dtype) if permuted is None else permuted
    held_out = [HeldOutScores.undefined(len(folds), len(codes)) for _ in range(n_classes)]
    aurocs = np.full((len(permuted), n_classes, len(folds)), np.nan)
    if not np.isfinite(vectors).all():
        return held_out, aurocs[..., 0]
    members = one_hot(codes, n_classes)
    for number, fold in enumerate(fold_ridges(vectors, folds, covariates)):
        _record(held_out, number, fold, members)
        for block in column_blocks(len(permuted), n_classes):
            drawn = np.moveaxis(one_hot(permuted[block], n_classes), 1, 0).reshape(len(codes), -1)
            scores = rounded(fold.predict(np.where(drawn, 1.0, -1.0)).scores)
            values = column_aurocs(scores, drawn[fold.test])
            aurocs[block, :, number] = values.reshape(-1, n_classes)
    return held_out, mean_of_defined(aurocs)


def class_text_probe(texts: Sequence[str], codes: np.ndarray, folds: Sequence[Fold]) -> list[HeldOutScores]:
    """Return the held-out scores of a ridge regression of each class on TF-IDF features.

    Parameters
    ----------
    texts
        Dims ``(sample,)``; scores are NaN if all are empty.
    codes, folds
        As for :func:`class_probe`.
    """
    members = one_hot(codes, int(codes.max()) + 1)
    held_out = [HeldOutScores.undefined(len(folds), len(codes)) for _ in members.T]
    if any(text.strip() for text in texts):
        for number, fold in enumerate(text_ridges(texts, folds)):
            _record(held_out, number, fold, members)
    return held_out


def _record(
    held_out: Sequence[HeldOutScores], number: int, fold: FoldRidge | TextRidge, members: np.ndarray
) -> None:
    """Store the scores of each class in one fold, and the effects of its training samples."""
    prediction = fold.predict(np.where(members, 1.0, -1.0))
    scores = rounded(prediction.scores)
    for place, each in enumerate(held_out):
        each.scores[number, fold.test] = scores[:, place]
        gradient = auroc_gradient(scores[:, place], members[fold.test, place])
        each.effects[number, fold.train] = fold.effects(prediction, place, gradient)


@dataclass(frozen=True)
class ClassAurocs:
    """AUROC of each class against the rest, and their unweighted mean.

    Parameters
    ----------
    each
        Means over folds and the ends of their 95% intervals, dims ``(class,)``.
    macro
        The mean over classes, the ends of its 95% interval, and the influence of each cluster, dims
        ``(role, cluster)``.
    """

    each: tuple[np.ndarray, np.ndarray, np.ndarray]
    macro: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, held_out: Sequence[HeldOutScores], codes: np.ndarray, groups: np.ndarray) -> "ClassAurocs":
        """Summarise held-out scores.

        Parameters
        ----------
        held_out
            Scores for each class.
        codes, groups
            Class and cluster of each sample, integers from 0, dims ``(sample,)``.
        """
        rows, influences, fewest = [], [], []
        for each, members in zip(held_out, one_hot(codes, len(held_out)).T, strict=True):
            auroc = float(fold_aurocs(each.scores, members).mean())
            influence = cluster_influence(each.scores, each.effects, members, groups)
            fewest.append(fewest_clusters(members, groups))
            influences.append(influence)
            rows.append((auroc, *auroc_interval(auroc, influence, fewest[-1])))
        values, low, high = np.array(rows).T
        mean, influence = float(values.mean()), np.mean(influences, axis=0)
        macro = (mean, *auroc_interval(mean, influence, min(fewest)), influence)
        return cls((values, low, high), tuple(map(np.asarray, macro)))
