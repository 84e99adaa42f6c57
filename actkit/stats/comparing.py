"""Which samples are compared: those of two labels, in groups that stay together."""

import warnings
from dataclasses import dataclass

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import parts
from .kernels import probes

FEWEST = 10  # samples of a label, below which nothing is said of it


@dataclass(frozen=True)
class Contrast:
    """Two labels, told apart in the samples of one language.

    Parameters
    ----------
    places
        Of the samples that have one of them.
    labels
        Which have the second one, dims ``(sample,)``.
    groups
        Integers from 0, dims ``(sample,)``: which samples are not independent.
    """

    places: np.ndarray
    labels: np.ndarray
    groups: np.ndarray

    @property
    def is_grouped(self) -> bool:
        """Whether any samples are not independent."""
        return bool(self.groups.max() + 1 < len(self.groups))


def contrasts_of(
    array: xr.DataArray, *, by: str, pairs: str | None, labels: tuple[str, str] | None, folds: int
) -> tuple[tuple[str, str], dict[str, Contrast]]:
    """Find the samples of two labels in each language, and check that something can be said of them.

    Parameters
    ----------
    array
        From :func:`~actkit.stats.parts.vectors`.
    by, pairs, labels, folds
        As for :func:`group_differential`.

    Returns
    -------
    tuple
        The labels, the reference first; and of each language its samples.
    """
    names, kept, is_second = two_labels(array, by, labels)
    own = None if pairs is None else parts.column(array, pairs, "pairs")
    found, faults = {}, []
    for language, places in parts.languages(array):
        chosen = places[kept[places]]
        groups = np.arange(len(chosen)) if own is None else parts.codes(own[chosen])
        found[language] = Contrast(chosen, is_second[chosen], groups)
        faults += faults_of(language, is_second[chosen], groups, names, folds)
    if faults:
        raise InputError(faults, f"cannot compare {by}")
    for language, contrast in found.items():
        if contrast.is_grouped and contrast.groups.max() < 5:
            warnings.warn(
                f"{language}: with {contrast.groups.max() + 1} groups no p can be small", stacklevel=3
            )
    return names, found


def cut_folds(
    where: str, second: np.ndarray, groups: np.ndarray, folds: int, seeds: int
) -> list[probes.Fold]:
    """Cut samples into folds, each of which has both labels; say so where some have not.

    Raises
    ------
    InputError
        Where none has.
    """
    cut = probes.grouped_folds(second, groups, folds=folds, seeds=seeds)
    lost = folds * seeds - len(cut)
    if not cut:
        what = f"no fold of whole groups has both labels, of {folds * seeds}"
        raise InputError([Fault(where, what, "choose fewer folds, or other pairs")])
    if lost:
        warnings.warn(
            f"{where}: {lost} of {folds * seeds} folds lack a label, and are left out", stacklevel=4
        )
    return cut


def two_labels(
    array: xr.DataArray, by: str, labels: tuple[str, str] | None
) -> tuple[tuple[str, str], np.ndarray, np.ndarray]:
    """Return the two labels, the reference first, and which samples have one of them, and the second.

    Raises
    ------
    InputError
        Where there are not two.
    """
    own = parts.column(array, by, "by")
    there = sorted(set(own.tolist()) - {""})
    names = tuple(there) if labels is None else tuple(labels)
    if len(names) != 2 or not set(names) <= set(there):
        shown = ", ".join(there[:10]) + (" …" if len(there) > 10 else "")
        what = f"two labels are compared, and `{by}` has {len(there)}: {shown}"
        raise InputError([Fault("labels", what, "name two of them, the reference first")])
    return (names[0], names[1]), np.isin(own, names), own == names[1]


def faults_of(
    where: str, second: np.ndarray, groups: np.ndarray, names: tuple[str, str], folds: int
) -> list[Fault]:
    """Find what keeps two labels from being compared: too few samples of one, or too few groups of them."""
    faults = []
    for name, is_own in zip(names, (~second, second), strict=True):
        count, n_groups = int(is_own.sum()), len(np.unique(groups[is_own]))
        if count < FEWEST:
            faults.append(Fault(where, f"`{name}` has {count} samples, and needs {FEWEST}", "extract more"))
        elif n_groups < folds:
            what = f"`{name}` is in {n_groups} groups, too few for {folds} folds"
            faults.append(Fault(where, what, "choose fewer folds, or other pairs"))
    return faults
