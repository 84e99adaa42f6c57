"""The features of a cube that `actkit.encode` writes: checks, tokens, and arrays of one layer at a time."""

import numbers
from dataclasses import dataclass

import dask.base
import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import Fault, InputError, MissingError, NonfiniteError
from . import selection
from .finiteness import finite_cube
from .token_selection import select_tokens

LAYER_CORE = [["sample", "token", "k"], ["sample", "token", "k"], ["sample", "token"]]
_DIMS = ("layer", "sample", "token", "k")


@dataclass(frozen=True)
class Features:
    """The features of samples that have a token among those included.

    Parameters
    ----------
    cube
        Canonical form of the sparse cube, without other samples.
    index, value
        Dims ``(layer, sample, token, k)``.
    mask
        Tokens included, dims ``(sample, token)``.
    n_features
        Number of features of each layer.
    """

    cube: xr.Dataset
    index: xr.DataArray
    value: xr.DataArray
    mask: xr.DataArray
    n_features: int

    def arrays(self, places: np.ndarray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
        """Return ``index``, ``value`` and ``mask`` of some samples, whose core dims are ``LAYER_CORE``."""
        index, value, mask = (array.isel(sample=places) for array in (self.index, self.value, self.mask))
        return index, value, mask


def features_of(features: Cube, tokens: selection.TokenSelection) -> Features:
    """Check a sparse cube, and return its features at some tokens.

    Parameters
    ----------
    features
        From :func:`actkit.encode`.
    tokens
        Tokens included, as for :func:`actkit.layer_norms`.

    Raises
    ------
    InputError, MissingError
        If the cube is not sparse, or lacks the tokens.
    """
    require_features(as_cube(features))
    cube = select_tokens(finite_cube(features), tokens)
    has = selection.has_content(cube, selection.token_mask(cube).values)
    cube = cube if has.all() else cube.isel(sample=np.flatnonzero(has))
    index, value = (_by_layer(cube[name]) for name in ("feature_index", "feature_value"))
    mask = selection.token_mask(cube).transpose("sample", "token").reset_coords(drop=True)
    return Features(cube, index, value, mask, int(cube.attrs["n_features"]))


def require_features(cube: xr.Dataset) -> None:
    """Check that a cube is sparse: that it holds the active features of each token.

    Raises
    ------
    MissingError
        If a variable or the number of features is missing.
    """
    for name in ("feature_index", "feature_value"):
        if name not in cube:
            remedy = "compute the features of this cube with actkit.encode"
            raise MissingError(f"the cube has no `{name}`; {remedy}")
        selection.require(cube, name)
    count = cube.attrs.get("n_features")
    if not isinstance(count, numbers.Integral) or count < 1:
        raise MissingError(
            "the cube lacks the attribute `n_features`; restore it with cube.assign_attrs(original.attrs)"
        )
    selection.require(cube, "n_tokens")


def check_layer(index: np.ndarray, value: np.ndarray, mask: np.ndarray, n_features: int) -> None:
    """Check the features of a layer, which are read when a result is computed.

    Raises
    ------
    NonfiniteError, InputError
        If a value is NaN or Inf, or an index exceeds the number of features.
    """
    if not np.isfinite(value[mask]).all():
        raise NonfiniteError("`feature_value` contains NaN or Inf values; encode the cube again")
    used = index[mask][value[mask] != 0]
    if len(used) and (used.max() >= n_features or used.min() < 0):
        problem = f"refers to feature {int(used.max())}, but `n_features` is {n_features}"
        raise InputError([Fault("feature_index", problem, "restore the attributes of the original cube")])


def _by_layer(array: xr.DataArray) -> xr.DataArray:
    """Return an array whose chunks hold one layer each, so that few layers are in memory at once."""
    ordered = array.transpose(*_DIMS)
    return ordered.chunk(layer=1) if dask.base.is_dask_collection(ordered) else ordered
