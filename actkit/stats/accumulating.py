"""The moments of one layer of a cube, block after block."""

import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import Fault, InputError
from . import parts
from .kernels.moments import Moments

_AT_ONCE = 64  # samples of a cube that is in memory already


def layer_vectors(
    cube: xr.Dataset, layer: int, language: str | None, values: str
) -> tuple[xr.Dataset, xr.DataArray, np.ndarray]:
    """Return the samples, their vectors with ``hidden`` as the last dimension, and which of these count."""
    if values not in ("tokens", *parts.POOLINGS):
        known = ", ".join(("tokens", *parts.POOLINGS))
        raise InputError([Fault("values", f"{values!r} is not one of {known}")])
    name = "residual" if values == "tokens" else values
    parts.require(cube, name)
    own = parts.captured(cube)
    if layer not in own.layer.values:
        raise InputError([Fault("layer", f"the cube lacks {layer}", f"it has {own.layer.values.tolist()}")])
    if language is not None:
        places = np.flatnonzero(own.language.values.astype(str) == language)
        if not len(places):
            known = ", ".join(sorted(set(own.language.values.astype(str))))
            raise InputError([Fault("language", f"the cube has no {language}", f"it has {known}")])
        own = own.isel(sample=places)
    mask = parts.token_mask(own)
    if values != "tokens":
        mask = mask.any("token")
    dims = ("sample", "token", "hidden") if values == "tokens" else ("sample", "hidden")
    return own, own[name].sel(layer=layer).transpose(*dims), mask.values


def accumulate(moments: Moments | None, array: xr.DataArray, mask: np.ndarray, fresh: np.ndarray) -> Moments:
    """Add the vectors of some samples to moments, block after block.

    Parameters
    ----------
    moments
        Those before; None where there are none.
    array, mask
        From :func:`layer_vectors`.
    fresh
        Places of the samples.
    """
    if not len(fresh):
        return moments or Moments.nothing(array.sizes["hidden"])
    part = array.isel(sample=fresh)
    whole = dict.fromkeys(set(part.dims) - {"sample"}, -1)
    part = (
        part.chunk(whole) if dask.base.is_dask_collection(part) else part.chunk({**whole, "sample": _AT_ONCE})
    )
    blocks = part.data.to_delayed().reshape(-1)
    edges = np.cumsum([0, *part.data.chunks[0]])
    add, total = delayed(_add, pure=True), moments
    for block, begin, end in zip(blocks, edges[:-1], edges[1:], strict=True):
        total = add(total, block, mask[fresh[begin:end]])
    (found,) = dask.base.compute(total)  # type: ignore[no-untyped-call]
    return found  # type: ignore[no-any-return]


def _add(total: Moments | None, block: np.ndarray, mask: np.ndarray) -> Moments:
    found = Moments.of(block[mask])
    return found if total is None else total.merge(found)
