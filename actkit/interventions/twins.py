"""Pairs of prompts that differ in one respect, and which of their tokens correspond."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from ..stats import selection
from ..stats.group_comparison import two_labels


@dataclass(frozen=True)
class Twins:
    """Pairs of prompts, one of each group.

    Parameters
    ----------
    base, twin
        Indices of the samples in the cube, dims ``(pair,)``; `base` belongs to the first group.
    names
        Value of the pairing label, dims ``(pair,)``.
    clusters
        Cluster of each pair, integers from 0, dims ``(pair,)``.
    groups
        The two labels, that of `base` first.
    n_incomplete
        Number of values of the pairing label without a sample of either group.
    """

    base: np.ndarray
    twin: np.ndarray
    names: np.ndarray
    clusters: np.ndarray
    groups: tuple[str, str]
    n_incomplete: int


def find_twins(
    cube: xr.Dataset,
    *,
    paired_by: str,
    by: str,
    between: tuple[Any, Any] | None,
    cluster: str | None = None,
    where: Mapping[str, Any] | None = None,
) -> Twins:
    """Pair the samples that share a label and a language, and differ in another label.

    Parameters
    ----------
    cube
        The cube.
    paired_by
        Label that both prompts of a pair share.
    by
        Label in which they differ.
    between
        Its two values, that of the prompts that are edited first.
    cluster
        Label that dependent pairs share; by default, `paired_by`.
    where
        Required value of each label given.

    Raises
    ------
    InputError
        If a pair has several samples of a group, or no pair is complete.
    """
    groups, kept, is_second = two_labels(cube["sample_id"], by, between)
    kept = kept.copy()
    for name, value in (where or {}).items():
        column = selection.column(cube, name, "where")
        kept &= column.codes == column.find(value)
    paired = selection.column(cube, paired_by, "paired_by")
    texts = paired.cell_texts()
    languages = cube.language.values.astype(str)
    members: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
    for row in np.flatnonzero(kept & (paired.codes >= 0)).tolist():
        members.setdefault((texts[row], languages[row]), ([], []))[int(is_second[row])].append(row)
    faults = [
        Fault(
            f"{paired_by} {name}",
            f"has {len(side)} samples of {group}",
            "pairs need one sample of each group",
        )
        for (name, _), sides in members.items()
        for group, side in zip(groups, sides, strict=True)
        if len(side) > 1
    ]
    complete = {key: sides for key, sides in members.items() if all(sides)}
    if not complete and not faults:
        hint = "choose another label, or other values of `where`"
        faults.append(
            Fault("paired_by", f"no value of `{paired_by}` has a sample of {' and '.join(groups)}", hint)
        )
    if faults:
        raise InputError(faults, "cannot pair the prompts")
    base, twin = (np.array([sides[at][0] for sides in complete.values()]) for at in (0, 1))
    return Twins(
        base,
        twin,
        np.array([name for name, _ in complete], dtype=object),
        selection.codes(selection.clusters(cube.isel(sample=base), cluster or paired_by)),
        groups,
        len(members) - len(complete),
    )


def aligned(base: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Find the token of a source that corresponds to each token of a base.

    Parameters
    ----------
    base, source
        Token ids of two prompts.

    Returns
    -------
    tuple of numpy.ndarray, int and int
        For each token of the base, the index of the corresponding one, or -1; the length of the common
        prefix; and that of the common suffix, which does not overlap the prefix in either prompt.

    Notes
    -----
    Prompts of equal length correspond token by token. Otherwise only the common prefix, counted from the
    start, and the common suffix, counted from the end, correspond.

    Examples
    --------
    >>> aligned(np.array([5, 1, 7, 8]), np.array([5, 2, 3, 7, 8]))
    (array([ 0, -1,  3,  4]), 1, 2)
    """
    shortest = min(len(base), len(source))
    differs = np.flatnonzero(base[:shortest] != source[:shortest])
    prefix = int(differs[0]) if len(differs) else shortest
    left = shortest - prefix
    differs = np.flatnonzero(base[::-1][:left] != source[::-1][:left])
    suffix = int(differs[0]) if len(differs) else left
    if len(base) == len(source):
        return np.arange(len(base)), prefix, suffix
    places = np.full(len(base), -1)
    places[:prefix] = np.arange(prefix)
    places[len(base) - suffix :] = np.arange(len(source) - suffix, len(source))
    return places, prefix, suffix
