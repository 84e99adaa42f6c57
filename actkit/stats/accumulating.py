"""The moments of one layer of a cube, block after block."""

from typing import Any

import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import Fault, InputError
from . import parts
from .blocks import Block, slabs, spans
from .kernels.moments import Moments


def layer_vectors(
    cube: xr.Dataset, layer: int, language: str | None, values: str
) -> tuple[xr.DataArray, np.ndarray]:
    """Return the vectors of all samples, with ``hidden`` as the last dimension, and which of them count."""
    if values not in ("tokens", *parts.POOLINGS):
        known = ", ".join(("tokens", *parts.POOLINGS))
        raise InputError([Fault("values", f"{values!r} is not one of {known}")])
    name = "residual" if values == "tokens" else values
    parts.require(cube, name)
    own = parts.captured(cube)
    if layer not in own.layer.values:
        raise InputError([Fault("layer", f"the cube lacks {layer}", f"it has {own.layer.values.tolist()}")])
    mask: np.ndarray = parts.token_mask(own).values
    if values != "tokens":
        mask = np.asarray(mask.any(axis=1))
    if language is not None:
        chosen = own.language.values.astype(str) == language
        if not chosen.any():
            known = ", ".join(sorted(set(own.language.values.astype(str))))
            raise InputError([Fault("language", f"the cube has no {language}", f"it has {known}")])
        mask = mask & chosen.reshape(-1, *[1] * (mask.ndim - 1))
    dims = ("sample", "token", "hidden") if values == "tokens" else ("sample", "hidden")
    return own[name].sel(layer=layer).transpose(*dims), mask


def accumulate(moments: Moments | None, vectors: xr.DataArray, mask: np.ndarray) -> Moments:
    """Add vectors to moments, block after block.

    Parameters
    ----------
    moments
        Those before; None where there are none.
    vectors, mask
        From :func:`layer_vectors`.
    """
    total: Any = moments or Moments.nothing(vectors.sizes["hidden"])
    add = delayed(_add, pure=False)
    for span in spans(vectors):
        if mask[span].any():
            total = add(total, Block(vectors[span]), mask[span])
    (found,) = dask.base.compute(total)  # type: ignore[no-untyped-call]
    return found  # type: ignore[no-any-return]


def _add(total: Moments, block: Block, mask: np.ndarray) -> Moments:
    values = block.read()
    for rows in slabs(values):
        total = total.merge(Moments.of(values[rows][mask[rows]]))
    return total
