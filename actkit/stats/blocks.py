"""Parts of a cube that are read in the task that uses them: dask then holds none of them."""

from itertools import pairwise

import dask.base
import numpy as np
import xarray as xr

from ..config import MB

READ = 32 * MB  # at once, pads included
SLAB = 8 * MB  # of these in float64 at once, which takes twice as much, a few times over


class Block:
    """An array that is read where it is used; no collection, so that dask does not look into it.

    As the result of a task of its own, it would be held until all that use it are done.
    """

    def __init__(self, array: xr.DataArray) -> None:
        data = array.data
        self._data = dask.base.optimize(data)[0] if dask.base.is_dask_collection(data) else data  # type: ignore[no-untyped-call]

    def read(self) -> np.ndarray:
        """Return its values."""
        if dask.base.is_dask_collection(self._data):
            return np.asarray(self._data.compute(scheduler="synchronous"))
        return np.asarray(self._data)


def spans(array: xr.DataArray) -> list[slice]:
    """Cut samples into parts that are read at once, each of one layer.

    Parameters
    ----------
    array
        With ``sample``; and with ``layer``, or of one layer.
    """
    n = array.sizes["sample"]
    return _cut(n, array.dtype.itemsize * array.size // max(n * array.sizes.get("layer", 1), 1), READ)


def slabs(values: np.ndarray) -> list[slice]:
    """Cut what was read into parts that are few enough for float64; samples come first."""
    return _cut(len(values), values.nbytes // max(len(values), 1), SLAB)


def _cut(n: int, each: int, most: int) -> list[slice]:
    return [slice(*edges) for edges in pairwise([*range(0, n, max(most // max(each, 1), 1)), n])]
