"""Ridge-regression probes of a numeric label, tested on held-out samples: R² and Spearman's correlation."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t
from sklearn.model_selection import GroupKFold

from .blas_threads import one_thread
from .covariates import Covariates
from .fold_ridge import (
    FoldRidge,
    Prediction,
    TextRidge,
    column_blocks,
    fold_ridges,
    mean_of_defined,
    rounded,
    text_ridges,
)
from .probes import Fold
from .rank_correlation import column_spearman, spearman_gradient, spearman_influence

_LEVEL = 0.05


def regression_folds(groups: np.ndarray, *, folds: int, seeds: int) -> list[Fold]:
    """Divide samples into folds of whole clusters, dealt at random, with seeds from 0."""
    return [
        cut
        for seed in range(seeds)
        for cut in GroupKFold(folds, shuffle=True, random_state=seed).split(groups, groups=groups)
    ]


@dataclass(frozen=True)
class HeldOutValues:
    """Predictions of a numeric label in each fold, and the part that each training sample has in them.

    Parameters
    ----------
    scores
        What the vectors predict, dims ``(fold, sample)``; NaN for samples that the fold does not test, and if
        values are not finite.
    remainders
        Label minus its mean in training, or minus what the covariates predict, dims ``(fold, sample)``, in
        standard deviations of the label.
    error_effects, remainder_effects
        The change of the fold's sums of squared errors and of squared remainders if a training sample is
        added, to first order, dims ``(fold, sample)``.
    spearman_effects
        That of the fold's Spearman correlation.
    """

    scores: np.ndarray
    remainders: np.ndarray
    error_effects: np.ndarray
    remainder_effects: np.ndarray
    spearman_effects: np.ndarray

    @classmethod
    def undefined(cls, n_folds: int, n_samples: int) -> "HeldOutValues":
        """Return scores that are all NaN."""
        missing = [np.full((n_folds, n_samples), np.nan) for _ in range(2)]
        return cls(*missing, *(np.zeros((n_folds, n_samples)) for _ in range(3)))

    def record(self, number: int, fold: FoldRidge | TextRidge, prediction: Prediction) -> None:
        """Store the predictions of the label in one fold.

        Parameters
        ----------
        number, fold
            The fold.
        prediction
            Of the label alone.
        """
        scores, remainders = rounded(prediction.scores[:, 0]), prediction.remainders[:, 0]
        trained, errors = prediction.trained[:, 0], remainders - scores
        self.scores[number, fold.test], self.remainders[number, fold.test] = scores, remainders

        def effects(gradient_of_scores: np.ndarray, gradient_of_remainders: np.ndarray) -> np.ndarray:
            of_scores = fold.effects(prediction, 0, gradient_of_scores)
            return np.asarray(of_scores - fold.basis.effects(gradient_of_remainders) * trained)

        self.error_effects[number, fold.train] = effects(-2 * errors, 2 * errors)
        self.remainder_effects[number, fold.train] = -2 * fold.basis.effects(remainders) * trained
        self.spearman_effects[number, fold.train] = effects(
            spearman_gradient(scores, remainders), spearman_gradient(remainders, scores)
        )


@one_thread()
def regression_probe(
    vectors: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[Fold],
    *,
    permuted: np.ndarray | None = None,
    covariates: Covariates | None = None,
) -> tuple[HeldOutValues, np.ndarray, np.ndarray]:
    """Return the held-out scores of a ridge regression, and its R² and correlation for permuted labels.

    Parameters
    ----------
    vectors
        Dims ``(sample, hidden)``; standardised in each training part.
    labels
        Dims ``(sample,)``; not constant.
    folds
        From :func:`regression_folds`.
    permuted
        Labels permuted under the null hypothesis, dims ``(permutation, sample)``; none by default.
    covariates
        What to remove from the vectors and the labels.

    Returns
    -------
    tuple
        Held-out scores, and for the permutations R² and the mean Spearman correlation over folds, each with
        dims ``(permutation,)``; NaN if a value is not finite.
    """
    drawn = np.empty((0, len(labels))) if permuted is None else permuted
    held_out = HeldOutValues.undefined(len(folds), len(labels))
    squares, correlations = np.zeros((2, len(drawn))), np.full((len(folds), len(drawn)), np.nan)
    if not np.isfinite(vectors).all():
        return held_out, correlations[0], correlations[0]
    targets = _standardized(np.vstack([labels, drawn]), labels).T
    for number, fold in enumerate(fold_ridges(vectors, folds, covariates)):
        held_out.record(number, fold, fold.predict(targets[:, :1]))
        for block in column_blocks(len(drawn), 1):
            prediction = fold.predict(targets[:, 1:][:, block])
            squares[0, block] += np.square(prediction.remainders - prediction.scores).sum(axis=0)
            squares[1, block] += np.square(prediction.remainders).sum(axis=0)
            correlations[number, block] = column_spearman(rounded(prediction.scores), prediction.remainders)
    return held_out, 1 - squares[0] / squares[1], mean_of_defined(correlations.T)


def regression_text_probe(texts: Sequence[str], labels: np.ndarray, folds: Sequence[Fold]) -> HeldOutValues:
    """Return the held-out scores of a ridge regression on TF-IDF features; NaN if all texts are empty.

    Parameters
    ----------
    texts
        Dims ``(sample,)``.
    labels, folds
        As for :func:`regression_probe`.
    """
    held_out = HeldOutValues.undefined(len(folds), len(labels))
    if any(text.strip() for text in texts):
        for number, fold in enumerate(text_ridges(texts, folds)):
            held_out.record(number, fold, fold.predict(_standardized(labels, labels)[:, None]))
    return held_out


def _standardized(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.asarray((values - labels.mean()) / labels.std())


Measure = tuple[np.ndarray, ...]  # value, ends of its interval, influence of clusters


def r_squared(held_out: HeldOutValues, groups: np.ndarray) -> Measure:
    """Return R² with the ends of its 95% interval and the influence of each cluster.

    Parameters
    ----------
    held_out
        From :func:`regression_probe`.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``.

    Returns
    -------
    tuple
        R², its interval, and the influence, dims ``(role, cluster)``, where the roles are testing and
        training.

    Notes
    -----
    The interval is a t interval of the logarithm of 1 - R², with one degree of freedom less than there are
    clusters.
    """
    total = float(np.nansum(np.square(held_out.remainders)))
    if not total:
        return _undefined(int(groups.max()) + 1)
    squares = np.square(held_out.remainders - held_out.scores)
    ratio = float(np.nansum(squares)) / total
    each = np.nansum(squares - ratio * np.square(held_out.remainders), axis=0)
    effects = (held_out.error_effects - ratio * held_out.remainder_effects).sum(axis=0)
    n_clusters = int(groups.max()) + 1
    testing, training = (-np.bincount(groups, weights=part) / total for part in (each, effects))
    influence = np.stack([testing * np.sqrt(n_clusters / (n_clusters - 1)), training - training.mean()])
    half = _half_width(influence) / ratio if ratio > 0 else float("nan")
    ends = 1 - ratio * np.exp(half), 1 - ratio * np.exp(-half)
    return (*map(np.asarray, (1 - ratio, *ends)), influence)


def spearman(held_out: HeldOutValues, groups: np.ndarray) -> Measure:
    """Return the mean Spearman correlation over folds, with its interval and influence as for R².

    Notes
    -----
    The interval is a t interval of Fisher's z.
    """
    n_clusters, values = int(groups.max()) + 1, []
    testing = np.zeros(n_clusters)
    for scores, remainders in zip(held_out.scores, held_out.remainders, strict=True):
        tested = np.flatnonzero(~np.isnan(scores))
        if not len(tested) or np.ptp(remainders[tested]) == 0:
            continue
        values.append(column_spearman(scores[tested, None], remainders[tested, None]).item())
        if np.ptp(scores[tested]) > 0:
            present = len(np.unique(groups[tested]))
            correction = np.sqrt(present / (present - 1)) if present > 1 else np.nan
            deviations = correction * spearman_influence(scores[tested], remainders[tested])
            np.add.at(testing, groups[tested], deviations)
    if not values:
        return _undefined(n_clusters)
    training = np.bincount(groups, weights=held_out.spearman_effects.sum(axis=0), minlength=n_clusters)
    influence, value = np.stack([testing, training - training.mean()]) / len(values), float(np.mean(values))
    if abs(value) == 1:
        return (*map(np.asarray, (value, np.nan, np.nan)), influence)
    z, half = np.arctanh(value), _half_width(influence) / (1 - value**2)
    return (*map(np.asarray, (value, np.tanh(z - half), np.tanh(z + half))), influence)


def _undefined(n_clusters: int) -> Measure:
    missing = np.asarray(np.nan)
    return missing, missing, missing, np.full((2, n_clusters), np.nan)


def _half_width(influence: np.ndarray) -> float:
    """Return half the width of a 95% interval."""
    return float(t.ppf(1 - _LEVEL / 2, influence.shape[-1] - 1) * np.sqrt(np.square(influence).sum()))
