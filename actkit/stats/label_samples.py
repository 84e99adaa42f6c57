"""Select and check the samples of a label with several classes, or of a numeric label."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .group_comparison import FEWEST
from .kernels.covariates import COVARIATES, Covariates
from .kernels.probes import Fold, grouped_folds
from .length_matches import MatchedOn, check_matched_on, matched

_FEWEST_NUMBERS = 20  # samples required of a numeric label
_SHOWN = 5


@dataclass(frozen=True)
class LabelSamples:
    """The samples of one language that have a label.

    Parameters
    ----------
    places
        Indices of the samples, dims ``(sample,)``.
    values
        Index of the class of each sample, or its number, dims ``(sample,)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``.
    n_unmatched
        Number of samples that matching left out.
    strata
        Strata of length and class by which folds are drawn, dims ``(sample,)``; None without matching.
    """

    places: np.ndarray
    values: np.ndarray
    groups: np.ndarray
    n_unmatched: int = 0
    strata: np.ndarray | None = None

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.groups.max()) + 1


def covariates_of(vectors: xr.DataArray, names: tuple[str, ...]) -> Covariates | None:
    """Return the covariates of samples; None without names.

    Parameters
    ----------
    vectors
        Vectors of the samples, with the coordinates ``text`` and ``n_tokens``.
    names
        From :func:`covariate_names`.
    """
    if not names:
        return None
    lengths = np.asarray(vectors.n_tokens.values, dtype=np.float64)
    return Covariates(names, lengths, [str(text) for text in vectors.text.values])


def covariate_names(residualized_on: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of covariates, without repetition.

    Raises
    ------
    InputError
        If a name is unknown.
    """
    names = (residualized_on,) if isinstance(residualized_on, str) else tuple(residualized_on or ())
    for name in names:
        if name not in COVARIATES:
            problem = f"{name!r} is unknown"
            raise InputError([Fault("residualized_on", problem, f"one or more of {', '.join(COVARIATES)}")])
    return tuple(dict.fromkeys(names))


def class_samples(
    array: xr.DataArray,
    *,
    by: str,
    cluster: str | None,
    classes: Sequence[Any] | None,
    folds: int,
    matched_on: MatchedOn | None,
    seed: int,
) -> tuple[np.ndarray, dict[str, LabelSamples]]:
    """Return the values of a label, and the samples of each language that have one of them.

    Parameters
    ----------
    array
        From :func:`~actkit.stats.selection.vectors`.
    by, classes, folds, matched_on, seed
        As for :func:`actkit.classification_probe`.
    cluster
        The label that dependent samples share; None if all are independent.

    Raises
    ------
    InputError
        If there are fewer than two classes, or one has too few samples or clusters in a language.
    """
    check_matched_on(matched_on)
    values, codes = _chosen(array, by, classes)
    cluster_ids = None if cluster is None else selection.clusters(array, cluster)
    samples, faults = {}, []
    for language, places in selection.languages(array):
        labelled = places[codes[places] >= 0]
        chosen, strata = labelled, None
        if matched_on is not None:
            ids = None if cluster_ids is None else cluster_ids[labelled]
            chosen, strata = matched(array, labelled, codes[labelled], ids, folds=folds, seed=seed)
        groups, n_unmatched = _groups(cluster_ids, chosen), len(labelled) - len(chosen)
        samples[language] = LabelSamples(chosen, codes[chosen], groups, n_unmatched, strata)
        faults += _faults(language, samples[language], values, folds, matched_on)
    if faults:
        raise InputError(faults, f"cannot probe {by}")
    _warn_of_few_clusters(samples)
    return values, samples


def number_samples(
    array: xr.DataArray, *, by: str, cluster: str | None, folds: int
) -> dict[str, LabelSamples]:
    """Return the samples of each language that have a number.

    Parameters
    ----------
    array
        From :func:`~actkit.stats.selection.vectors`.
    by, folds
        As for :func:`actkit.regression_probe`.
    cluster
        The label that dependent samples share; None if all are independent.

    Raises
    ------
    InputError
        If the label holds anything but finite numbers, is constant in a language, or there are too few
        samples or clusters.
    """
    groups_of_label = selection.column(array, by, "by")
    numbers = groups_of_label.values
    if not len(numbers):
        raise InputError([Fault("by", f"no sample has a value of `{by}`", "choose another label")])
    if numbers.dtype.kind not in "iuf":
        problem = f"`{by}` does not hold numbers but values such as {groups_of_label.texts[0]}"
        raise InputError([Fault("by", problem, "probe its classes with actkit.classification_probe")])
    numbers = numbers.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise InputError([Fault("by", f"`{by}` holds an infinite number", "remove it from the data")])
    cluster_ids = None if cluster is None else selection.clusters(array, cluster)
    samples, faults = {}, []
    for language, places in selection.languages(array):
        chosen = places[groups_of_label.codes[places] >= 0]
        values = numbers[groups_of_label.codes[chosen]]
        samples[language] = LabelSamples(chosen, values, _groups(cluster_ids, chosen))
        n_clusters = len(np.unique(samples[language].groups))
        if len(chosen) < _FEWEST_NUMBERS:
            problem = f"{len(chosen)} samples have a value of `{by}`, but {_FEWEST_NUMBERS} are needed"
            faults.append(Fault(language, problem, "extract more"))
        elif n_clusters < folds:
            problem = f"there are {n_clusters} clusters, too few for {folds} folds"
            faults.append(Fault(language, problem, "choose fewer folds or another cluster label"))
        elif np.ptp(values) == 0:
            faults.append(Fault(language, f"all values of `{by}` are equal", "choose another label"))
    if faults:
        raise InputError(faults, f"cannot probe {by}")
    _warn_of_few_clusters(samples)
    return samples


def class_splits(language: str, samples: LabelSamples, folds: int, seeds: int) -> list[Fold]:
    """Divide the samples of a language into folds that contain all classes.

    Raises
    ------
    InputError
        If no fold contains all classes.

    Warns
    -----
    UserWarning
        If some folds lack a class.
    """
    codes, strata = samples.values, samples.strata
    splits = grouped_folds(codes, samples.groups, folds=folds, seeds=seeds, strata=strata)
    n_lost = folds * seeds - len(splits)
    if not splits:
        problem = f"none of {n_lost} folds of whole clusters contains all classes"
        raise InputError([Fault(language, problem, "choose fewer folds or another cluster label")])
    if n_lost:
        problem = f"{n_lost} of {folds * seeds} folds lack a class and are omitted"
        warnings.warn(f"{language}: {problem}", stacklevel=4)
    return splits


def _chosen(array: xr.DataArray, by: str, classes: Sequence[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the classes, and the index of the class of each sample, -1 for none."""
    groups = selection.column(array, by, "by")
    if not groups.texts:
        raise InputError([Fault("by", f"no sample has a value of `{by}`", "choose another label")])
    places = list(range(len(groups.texts))) if classes is None else [groups.find(name) for name in classes]
    known = [place for place in places if place is not None]
    if len(known) < len(places) or len(set(known)) < max(len(known), 2):
        shown = ", ".join(groups.texts[:10]) + (" …" if len(groups.texts) > 10 else "")
        problem = f"`{by}` has {len(groups.texts)} values: {shown}"
        raise InputError(
            [Fault("classes", problem, "name two or more different ones of a label that has them")]
        )
    code_of = np.full(len(groups.texts) + 1, -1)
    code_of[known] = np.arange(len(known))
    return groups.values[known], code_of[groups.codes]


def _groups(cluster_ids: np.ndarray | None, chosen: np.ndarray) -> np.ndarray:
    """Return the cluster of chosen samples, numbered from 0."""
    return np.arange(len(chosen)) if cluster_ids is None else selection.codes(cluster_ids[chosen])


def _faults(
    language: str, samples: LabelSamples, values: np.ndarray, folds: int, matched_on: str | None
) -> list[Fault]:
    """Return a fault for classes with too few samples, and for classes in too few clusters."""
    counts = np.bincount(samples.values, minlength=len(values))
    pairs = np.unique(np.column_stack([samples.values, samples.groups]), axis=0)
    n_clusters = np.bincount(pairs[:, 0], minlength=len(values))
    few, faults = np.flatnonzero(counts < FEWEST), []
    if len(few):
        listed = ", ".join(f"`{values[place]}` has {counts[place]}" for place in few[:_SHOWN])
        more = f" and {len(few) - _SHOWN} more classes have too few" if len(few) > _SHOWN else ""
        after = " after matching" if matched_on else ""
        problem = f"each class needs {FEWEST} samples{after}, but {listed}{more}"
        hint = "name other `classes`, extract more, or probe a number with actkit.regression_probe"
        faults.append(Fault(language, problem, hint))
    elif n_clusters.min() < folds:
        place = int(n_clusters.argmin())
        problem = f"`{values[place]}` occurs in {n_clusters[place]} clusters, too few for {folds} folds"
        faults.append(Fault(language, problem, "choose fewer folds or another cluster label"))
    return faults


def _warn_of_few_clusters(samples: dict[str, LabelSamples]) -> None:
    for language, part in samples.items():
        if part.n_clusters < len(part.groups) and part.n_clusters < 6:
            warnings.warn(
                f"{language}: with only {part.n_clusters} clusters, no p-value can be small", stacklevel=4
            )
