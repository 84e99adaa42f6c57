"""Keep as many samples of each class with each number of tokens."""

from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .kernels.length_strata import length_matched, length_strata

MatchedOn = Literal["length"]
_MATCHES: tuple[str, ...] = get_args(MatchedOn)


def check_matched_on(matched_on: str | None) -> None:
    """Raise InputError if samples cannot be matched on this."""
    if matched_on is not None and matched_on not in _MATCHES:
        raise InputError([Fault("matched_on", f"{matched_on!r} is unknown", f"one of {', '.join(_MATCHES)}")])


def matched(
    array: xr.DataArray,
    places: np.ndarray,
    codes: np.ndarray,
    cluster_ids: np.ndarray | None,
    *,
    folds: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples to keep, and the strata of length and class by which folds are drawn.

    Parameters
    ----------
    array
        From :func:`~actkit.stats.selection.vectors`, with the coordinate ``n_tokens``.
    places
        Indices of samples, dims ``(sample,)``.
    codes
        Class of each of them, integers from 0 or booleans, dims ``(sample,)``.
    cluster_ids
        Cluster of each of them; None if all are independent.
    folds
        Number of folds.
    seed
        Random seed of the choice among samples of one class and length.
    """
    groups = np.arange(len(codes)) if cluster_ids is None else selection.codes(cluster_ids)
    classes, lengths = codes.astype(np.int64), np.asarray(array.n_tokens.values[places])
    kept = length_matched(classes, lengths, groups, seed=seed)
    return places[kept], length_strata(classes[kept], lengths[kept], folds)
