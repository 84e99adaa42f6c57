"""CKA of all pairs of layers: the intermediate result that several statistics share."""

from functools import partial

import numpy as np
import xarray as xr

from . import selection
from .kernels.cka import align
from .kernels.hsic import FEWEST

_OUT = [["layer", "layer_2"], ["layer", "layer_2"], ["layer", "layer_2"], ["layer"]]
_LEFT_OUT = ["cluster", "layer", "layer_2"]


def layer_alignment(vectors: xr.DataArray, groups: np.ndarray | None) -> xr.Dataset:
    """Return the CKA of every pair of layers; statistics that are computed together share the work.

    Parameters
    ----------
    vectors
        Vectors of one language, dims ``(layer, sample, hidden)``.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``; None if samples are independent.

    Returns
    -------
    xarray.Dataset
        Dims ``(layer, layer_2)``: ``cka``, ``se`` and ``cka_biased``; ``participation_ratio``, dims
        ``(layer,)``; and ``left_out``, the CKA without one cluster at a time, dims
        ``(cluster, layer, layer_2)``, a single NaN if there are too few. Without coordinates.
    """
    n = vectors.sizes["sample"] if groups is None else len(np.unique(groups))
    outputs = selection.apply(
        partial(_tables, groups=groups),
        vectors,
        core=[["layer", "sample", "hidden"]],
        out=[*_OUT, _LEFT_OUT],
        sizes={"layer_2": vectors.sizes["layer"], "cluster": n if n >= FEWEST else 1},
        each=False,
    )
    names = ("cka", "se", "cka_biased", "participation_ratio", "left_out")
    return xr.Dataset(dict(zip(names, outputs, strict=True))).drop_vars("layer", errors="ignore")


def superdiagonal(tables: xr.Dataset) -> xr.Dataset:
    """Return the values of adjacent layers, with ``layer`` the lower of the two."""
    lower = xr.DataArray(np.arange(tables.sizes["layer"] - 1), dims="lower")
    return tables.isel(layer=lower, layer_2=lower + 1).rename(lower="layer")


def _tables(x: np.ndarray, *, groups: np.ndarray | None) -> tuple[np.ndarray, ...]:
    aligned = align(x, groups)
    left_out = aligned.left_out
    if not len(left_out):  # of which dask can make no chunks
        left_out = np.full((1, len(x), len(x)), np.nan)
    return aligned.cka, aligned.se, aligned.biased, aligned.participation, left_out
