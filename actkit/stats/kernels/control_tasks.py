"""Control tasks of probes: random labels by type, and what a probe of the real label has beyond them."""

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata, t

from .auroc import fold_aurocs
from .probes import HeldOutScores

_LEVEL = 0.05


def content_words(texts: Sequence[str], groups: np.ndarray, fewest: int) -> np.ndarray:
    """Return the most frequent word of each text that is not a function word.

    Parameters
    ----------
    texts
        Dims ``(sample,)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``.
    fewest
        Number of clusters in which the word occurs at least.

    Returns
    -------
    numpy.ndarray
        Words in lower case, "" where a text has none, dims ``(sample,)``. Function words are those that occur
        in more than a tenth of the clusters, and in more than twice ``fewest``. Of equally frequent words,
        the first in the text is taken. Words are separated by white space, and punctuation is removed.
    """
    words = [_words(text) for text in texts]
    occurrences = {
        (word, group) for found, group in zip(words, groups.tolist(), strict=True) for word in found
    }
    counts = Counter(word for word, _ in occurrences)
    most = max((groups.max() + 1) / 10, 2 * fewest)
    kept = [[word for word in found if fewest <= counts[word] <= most] for found in words]
    frequent = [max(found, key=counts.__getitem__) if found else "" for found in kept]
    return np.array(frequent, dtype=object)


def _words(text: str) -> list[str]:
    kept = "".join(
        character for character in text.casefold() if unicodedata.category(character)[0] not in "PS"
    )
    return kept.split()


def is_shared(types: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return whether the type of each sample also occurs in another cluster, dims ``(sample,)``."""
    pairs = np.unique(np.column_stack([types, groups]), axis=0)
    return np.asarray(np.bincount(pairs[:, 0], minlength=types.max() + 1)[types] > 1)


def control_labels(types: np.ndarray, n_second: int, draws: int, *, seed: int) -> np.ndarray:
    """Draw labels that are random for each type and equal for all samples of a type.

    Parameters
    ----------
    types
        Type of each sample: integers from 0, at least two of them, dims ``(sample,)``.
    n_second
        Number of samples that have the second label, as nearly as whole types allow.
    draws
        Number of labellings.
    seed
        Random seed.

    Returns
    -------
    numpy.ndarray
        Boolean, dims ``(draw, sample)``; both labels occur.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(types)
    labels = np.empty((draws, len(types)), dtype=bool)
    for row in labels:
        order = rng.permutation(len(sizes))
        distance = np.abs(np.cumsum(sizes[order]) - n_second)[:-1]
        row[:] = np.isin(types, order[: int(distance.argmin()) + 1])
    return labels


def selectivity(
    held_out: HeldOutScores,
    influence: np.ndarray,
    labels: np.ndarray,
    control: np.ndarray,
    groups: np.ndarray,
) -> tuple[float, float, float, float]:
    """Return the AUROC of control tasks, and how much higher that of the label is.

    Parameters
    ----------
    held_out
        From :func:`~actkit.stats.kernels.probes.probe`.
    influence
        Influence of each cluster on the AUROC of the label, dims ``(role, cluster)``.
    labels
        Boolean, dims ``(sample,)``.
    control
        From :func:`control_labels`, dims ``(draw, sample)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``.

    Returns
    -------
    tuple of float
        The mean AUROC over draws; the selectivity, which is the AUROC of the label minus this mean; and the
        ends of its 95% interval. NaN if scores are. Without an interval if there is no standard error, as if
        all AUROCs are 1, or if every draw has a fold in which a label occurs in one cluster only.

    Notes
    -----
    The variance is the sum over clusters of the squared difference between their influence on the AUROC of
    the label and on the mean over draws, plus the variance of the mean over draws. Influences in training on
    control tasks have random signs, which cancel over draws, and are taken to be 0.
    """
    if held_out.control is None or np.isnan(held_out.scores).all():
        return (float("nan"),) * 4
    aurocs, influences = control_influence(held_out.control, control, groups)
    mean = float(aurocs.mean())
    difference = float(fold_aurocs(held_out.scores, labels).mean()) - mean
    is_defined = np.isfinite(influences).all(axis=1)
    if not is_defined.any() or np.isnan(influence).any():
        return mean, difference, float("nan"), float("nan")
    paired = influence.copy()
    paired[0] -= influences[is_defined].mean(axis=0)
    error = np.sqrt(np.square(paired).sum() + aurocs.var(ddof=1) / len(aurocs))
    half = float(t.ppf(1 - _LEVEL / 2, influence.shape[-1] - 1) * error) if error else float("nan")
    return mean, difference, difference - half, difference + half


def control_influence(
    scores: np.ndarray, labels: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean AUROC over folds of each draw, and how much each cluster moves it in testing.

    Parameters
    ----------
    scores
        Dims ``(draw, fold, sample)``; NaN for samples that the fold does not test.
    labels
        Boolean, dims ``(draw, sample)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``.

    Returns
    -------
    tuple of numpy.ndarray
        Dims ``(draw,)`` and ``(draw, cluster)``: for each draw, what
        :func:`~actkit.stats.kernels.auroc.cluster_influence` returns, without folds that lack a label.
    """
    n_draws, n_folds, _ = scores.shape
    aurocs, total = np.full((n_draws, n_folds), np.nan), np.zeros((n_draws, groups.max() + 1))
    for fold in range(n_folds):
        tested = np.flatnonzero(np.isfinite(scores[:, fold]).any(axis=0))
        tested = tested[np.argsort(groups[tested], kind="stable")]
        starts = np.flatnonzero(np.diff(groups[tested], prepend=-1))
        each, is_second = scores[:, fold, tested], labels[:, tested]
        overall = rankdata(each, axis=1)
        valid = is_second.any(axis=1) & ~is_second.all(axis=1) & np.isfinite(each).all(axis=1)
        for chosen, sign in ((~is_second, -1), (is_second, 1)):
            count = chosen.sum(axis=1, keepdims=True)
            present = (np.add.reduceat(chosen.astype(int), starts, axis=1) > 0).sum(axis=1, keepdims=True)
            with np.errstate(invalid="ignore", divide="ignore"):
                below = (overall - rankdata(np.where(chosen, each, np.inf), axis=1)) / (len(tested) - count)
                mean = np.where(chosen, below, 0).sum(axis=1, keepdims=True) / count
                correction = np.where(present > 1, np.sqrt(present / (present - 1)), np.nan)
                deviation = np.where(chosen, below - mean, 0) * sign * correction / count
            sums = np.add.reduceat(deviation, starts, axis=1)
            total[:, groups[tested][starts]] += np.where(valid[:, None], sums, 0)
        aurocs[valid, fold] = mean[valid, 0]  # of the second label
    return np.nanmean(aurocs, axis=1), total / np.isfinite(aurocs).sum(axis=1, keepdims=True)
