"""Values of stored arrays that are read on use: dask arrays, or the lazily indexed arrays of xarray."""

from typing import Any, Protocol

import dask.array as da
import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing


class Stored(Protocol):
    """An array that reads a selection when it is indexed; the indices of each axis apply independently."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    ndim: int

    def __getitem__(self, key: Any, /) -> np.ndarray: ...


def dask_values(stored: Stored, chunks: tuple[Any, ...], **options: Any) -> da.Array:
    """Return a dask array whose tasks read only the used part of a chunk.

    Parameters
    ----------
    stored
        The array.
    chunks
        Sizes of the chunks along each axis.
    **options
        Options of :func:`dask.array.from_array`.
    """
    values: da.Array = da.from_array(  # type: ignore[no-untyped-call]
        stored,
        chunks=chunks,
        fancy=True,  # otherwise dask would read whole chunks and slice them
        meta=np.empty((0,) * stored.ndim, dtype=stored.dtype),
        **options,
    )
    return values


def indexed_values(stored: Stored) -> Any:
    """Return values that xarray reads when they are used, without dask."""
    return indexing.LazilyIndexedArray(_Indexed(stored))


class _Indexed(BackendArray):
    def __init__(self, stored: Stored) -> None:
        self.shape, self.dtype = stored.shape, stored.dtype
        self._stored = stored

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self._stored.__getitem__)
