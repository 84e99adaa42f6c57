"""Moments of one layer of a cube, accumulated block by block."""

from typing import Any

import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import Fault, InputError
from . import selection
from .finiteness import check_values
from .kernels.moments import Moments
from .lazy_blocks import Block, slabs, spans


def layer_vectors(
    cube: xr.Dataset, layer: int, language: str | None, kind: selection.Vectors
) -> tuple[xr.DataArray, np.ndarray]:
    """Return the vectors of a layer, ``hidden`` as the last dimension, and the mask of those included."""
    if kind not in ("tokens", *selection.POOLINGS):
        known = ", ".join(("tokens", *selection.POOLINGS))
        raise InputError([Fault("vectors", f"{kind!r} is not one of {known}")])
    name = "residual" if kind == "tokens" else kind
    if kind == "tokens":
        selection.require(cube, "residual")
    else:
        cube = selection.with_pooling(cube, kind)
    available = selection.captured(cube)
    if layer not in available.layer.values:
        raise InputError(
            [Fault("layer", f"the cube lacks {layer}", f"it has {available.layer.values.tolist()}")]
        )
    mask: np.ndarray = selection.token_mask(available).values
    if kind == "tokens":
        selection.has_content(available, mask)
    else:
        mask = selection.with_vectors(available, kind)
    if language is not None:
        chosen = available.language.values.astype(str) == language
        if not chosen.any():
            known = ", ".join(sorted(set(available.language.values.astype(str))))
            raise InputError([Fault("language", f"the cube has no {language}", f"it has {known}")])
        mask = mask & chosen.reshape(-1, *[1] * (mask.ndim - 1))
    dims = ("sample", "token", "hidden") if kind == "tokens" else ("sample", "hidden")
    return available[name].sel(layer=layer).transpose(*dims), mask


def accumulate(moments: Moments | None, vectors: xr.DataArray, mask: np.ndarray) -> Moments:
    """Add vectors to moments, block by block.

    Parameters
    ----------
    moments
        Moments to add to; None to start anew.
    vectors, mask
        From :func:`layer_vectors`.
    """
    total: Any = moments or Moments.nothing(vectors.sizes["hidden"])
    add = delayed(_add, pure=False)
    for span in spans(vectors):
        if mask[span].any():
            total = add(total, Block(vectors[span]), mask[span], str(vectors.name))
    (result,) = dask.base.compute(total)  # type: ignore[no-untyped-call]
    return result  # type: ignore[no-any-return]


def _add(total: Moments, block: Block, mask: np.ndarray, name: str) -> Moments:
    values = block.read()
    for rows in slabs(values):
        chosen = values[rows][mask[rows]]
        check_values(chosen, name)
        total = total.merge(Moments.of(chosen))
    return total
