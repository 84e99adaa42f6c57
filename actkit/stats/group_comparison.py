"""Select and check the samples of two groups to compare, with clusters kept together."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .kernels import probes
from .length_matches import MatchedOn, check_matched_on, matched

FEWEST = 10  # samples required of each label


@dataclass(frozen=True)
class Contrast:
    """The samples of two labels in one language.

    Parameters
    ----------
    places
        Indices of the samples that have one of the two labels, dims ``(sample,)``.
    labels
        Whether each sample has the second label, dims ``(sample,)``.
    groups
        Cluster of each sample: integers from 0, dims ``(sample,)``.
    shared
        Cluster of each sample, numbered alike in all languages, dims ``(sample,)``. Without a cluster label,
        translations share theirs.
    n_unmatched
        Number of samples that matching left out.
    strata
        Strata of length and label by which folds are drawn, dims ``(sample,)``; None without matching.
    """

    places: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    shared: np.ndarray
    n_unmatched: int = 0
    strata: np.ndarray | None = None

    @property
    def is_grouped(self) -> bool:
        """Whether any cluster has several samples."""
        return self.n_clusters < len(self.groups)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.groups.max()) + 1


def contrasts_of(
    array: xr.DataArray,
    *,
    by: str,
    cluster: str | None,
    between: tuple[Any, Any] | None,
    folds: int,
    matched_on: MatchedOn | None = None,
    seed: int = 0,
) -> tuple[tuple[str, str], dict[str, Contrast]]:
    """Return the samples of two labels in each language, and check that there are enough of them.

    Parameters
    ----------
    array
        From :func:`~actkit.stats.selection.vectors`.
    by, between, folds, matched_on, seed
        As for :func:`group_differential`.
    cluster
        The label that dependent samples share; None if all are independent.

    Returns
    -------
    tuple
        The labels, the reference first; and the contrast of each language.

    Raises
    ------
    InputError
        If a label has too few samples or clusters in a language.

    Warns
    -----
    UserWarning
        If there are too few clusters for a small p-value.
    """
    check_matched_on(matched_on)
    labels, kept, is_second = two_labels(array, by, between)
    cluster_ids = None if cluster is None else selection.clusters(array, cluster)
    shared = selection.codes(_sample_ids(array)) if cluster_ids is None else selection.codes(cluster_ids)
    contrasts, faults = {}, []
    for language, samples in selection.languages(array):
        labelled = samples[kept[samples]]
        chosen, strata = labelled, None
        if matched_on is not None:
            ids = None if cluster_ids is None else cluster_ids[labelled]
            chosen, strata = matched(array, labelled, is_second[labelled], ids, folds=folds, seed=seed)
        groups = np.arange(len(chosen)) if cluster_ids is None else selection.codes(cluster_ids[chosen])
        n_unmatched = len(labelled) - len(chosen)
        contrasts[language] = Contrast(chosen, is_second[chosen], groups, shared[chosen], n_unmatched, strata)
        faults += faults_of(language, is_second[chosen], groups, labels, folds)
    if faults:
        raise InputError(faults, f"cannot compare {by}")
    for language, contrast in contrasts.items():
        if contrast.is_grouped and contrast.groups.max() < 5:
            warnings.warn(
                f"{language}: with only {contrast.groups.max() + 1} clusters, no p-value can be small",
                stacklevel=3,
            )
    return labels, contrasts


def _sample_ids(array: xr.DataArray) -> np.ndarray:
    """Return what translations of a sample share."""
    if "sample_id" in array.coords:
        return np.asarray(array.sample_id.values.astype(str))
    return np.arange(array.sizes["sample"])


def cut_folds(
    where: str,
    is_second: np.ndarray,
    groups: np.ndarray,
    folds: int,
    seeds: int,
    strata: np.ndarray | None = None,
) -> list[probes.Fold]:
    """Divide samples into folds that contain both labels, stratified by label unless strata are given.

    Raises
    ------
    InputError
        If no fold contains both labels.

    Warns
    -----
    UserWarning
        If some folds lack a label.
    """
    splits = probes.grouped_folds(is_second, groups, folds=folds, seeds=seeds, strata=strata)
    lost = folds * seeds - len(splits)
    if not splits:
        problem = f"none of {folds * seeds} folds of whole clusters contains both labels"
        raise InputError([Fault(where, problem, "choose fewer folds or another cluster label")])
    if lost:
        warnings.warn(f"{where}: {lost} of {folds * seeds} folds lack a label and are omitted", stacklevel=4)
    return splits


def two_labels(
    array: xr.DataArray, by: str, between: tuple[Any, Any] | None
) -> tuple[tuple[str, str], np.ndarray, np.ndarray]:
    """Return the two labels as text, the reference first, and masks of either label and of the second.

    Raises
    ------
    InputError
        If there are not exactly two labels.
    """
    groups = selection.column(array, by, "by")
    texts = groups.texts
    if not texts:
        raise InputError([Fault("by", f"no sample has a value of `{by}`", "choose another label")])
    codes = [groups.find(name) for name in between] if between is not None else list(range(len(texts)))
    if len(set(codes)) != 2 or None in codes:
        shown = ", ".join(texts[:10]) + (" …" if len(texts) > 10 else "")
        problem = f"two labels are compared, but `{by}` has {len(texts)}: {shown}"
        hint = "name two of them, the reference first"
        if between is None and len(texts) > 2:
            hint += ", or probe all of them with actkit.classification_probe"
            if groups.values.dtype.kind in "iuf":
                hint += " or, as numbers, with actkit.regression_probe"
        raise InputError([Fault("between", problem, hint)])
    first, second = (place for place in codes if place is not None)
    return (texts[first], texts[second]), np.isin(groups.codes, [first, second]), groups.codes == second


def faults_of(
    where: str, is_second: np.ndarray, groups: np.ndarray, names: tuple[str, str], folds: int
) -> list[Fault]:
    """Return a fault for each label that has too few samples or clusters to be compared."""
    faults = []
    for name, has_label in zip(names, (~is_second, is_second), strict=True):
        count, n_groups = int(has_label.sum()), len(np.unique(groups[has_label]))
        if count < FEWEST:
            faults.append(Fault(where, f"`{name}` has {count} samples but needs {FEWEST}", "extract more"))
        elif n_groups < folds:
            problem = f"`{name}` occurs in {n_groups} clusters, too few for {folds} folds"
            faults.append(Fault(where, problem, "choose fewer folds or another cluster label"))
    return faults
