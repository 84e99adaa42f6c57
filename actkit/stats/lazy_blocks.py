"""Blocks of a cube that are read inside the dask task that uses them, so that dask does not retain them."""

from itertools import pairwise

import dask.base
import numpy as np
import xarray as xr

from ..regular_files import MB

READ = 32 * MB  # read at once, padding included
SLAB = 8 * MB  # converted to float64 at once, which needs several times this amount


class Block:
    """An array that is read where it is used. It is not a dask collection, so dask does not traverse it.

    As the result of a separate task, it would be kept until every task that uses it is done.
    """

    def __init__(self, array: xr.DataArray) -> None:
        data = array.data
        self._data = dask.base.optimize(data)[0] if dask.base.is_dask_collection(data) else data  # type: ignore[no-untyped-call]

    def read(self) -> np.ndarray:
        """Return the values."""
        if dask.base.is_dask_collection(self._data):
            return np.asarray(self._data.compute(scheduler="synchronous"))
        return np.asarray(self._data)


def spans(array: xr.DataArray, *, layers_at_once: int = 1) -> list[slice]:
    """Divide samples into slices, each read at once for one layer, or for several.

    Parameters
    ----------
    array
        Array with the dimension ``sample``, and ``layer`` unless it is a single layer.
    layers_at_once
        Number of layers read at once.
    """
    n = array.sizes["sample"]
    item_bytes = array.dtype.itemsize * array.size // max(n * array.sizes.get("layer", 1), 1)
    return _cut(n, item_bytes * layers_at_once, READ)


def slabs(values: np.ndarray) -> list[slice]:
    """Divide samples, the first dimension, into slices small enough to convert to float64."""
    return _cut(len(values), values.nbytes // max(len(values), 1), SLAB)


def _cut(n: int, item_bytes: int, max_bytes: int) -> list[slice]:
    return [slice(*edges) for edges in pairwise([*range(0, n, max(max_bytes // max(item_bytes, 1), 1)), n])]
