"""Keep as many samples of each class with each number of tokens."""

from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .kernels.length_matching import length_matched

MatchedOn = Literal["length"]
_MATCHES: tuple[str, ...] = get_args(MatchedOn)


def check_matched_on(matched_on: str | None) -> None:
    """Raise InputError if samples cannot be matched on this."""
    if matched_on is not None and matched_on not in _MATCHES:
        raise InputError([Fault("matched_on", f"{matched_on!r} is unknown", f"one of {', '.join(_MATCHES)}")])


def is_matched(
    array: xr.DataArray, codes: np.ndarray, cluster_ids: np.ndarray | None, seed: int
) -> np.ndarray:
    """Return which samples to keep, dims ``(sample,)``.

    Parameters
    ----------
    array
        Vectors of the samples, with the coordinate ``n_tokens``.
    codes
        Class of each sample, integers from 0 or booleans, dims ``(sample,)``.
    cluster_ids
        Cluster of each sample; None if all are independent.
    seed
        Random seed of the choice among samples of one class and length.
    """
    groups = np.arange(len(codes)) if cluster_ids is None else selection.codes(cluster_ids)
    return length_matched(codes.astype(np.int64), array.n_tokens.values, groups, seed=seed)
