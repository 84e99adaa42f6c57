"""Blocks of a cube that are read inside the dask task that uses them, so that dask does not retain them."""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed
from dask.local import get_sync

from ..regular_files import MB

HELD = 64 * MB  # of all layers, held at once by a function that needs several
READ = 16 * MB  # read at once, padding included; memory of larger arrays returns to the system after each use
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

    def layers(self) -> Iterator[np.ndarray]:
        """Yield the values of one layer, the first dimension, after the other."""
        if not dask.base.is_dask_collection(self._data):
            yield from map(np.asarray, self._data)
        elif max(self._data.chunks[0], default=1) > 1:
            for layer in self._data:
                yield np.asarray(layer.compute(scheduler="synchronous"))
        else:  # slicing would build and optimize a graph for each layer
            graph = dict(self._data.dask)
            for keys in self._data.__dask_keys__():
                yield _joined(get_sync(graph, keys))[0]


def _joined(blocks: Any) -> np.ndarray:
    """Return the array of nested tuples of blocks, one level per dimension; a single one is not copied."""
    single = blocks
    while isinstance(single, (list, tuple)) and len(single) == 1:
        single = single[0]
    if not isinstance(single, (list, tuple)):
        return np.asarray(single)
    return np.block(_lists(blocks))


def _lists(blocks: Any) -> Any:
    return [_lists(block) for block in blocks] if isinstance(blocks, (list, tuple)) else blocks


OfSamples = Callable[[Iterator[np.ndarray], np.ndarray], np.ndarray]


def apply_to_samples(
    function: OfSamples,
    array: xr.DataArray,
    mask: xr.DataArray,
    sizes: Mapping[str, int],
    *,
    layers_at_once: int = 1,
) -> xr.DataArray:
    """Apply a function to the tokens of a few samples at a time, layer by layer; lazily if they are lazy.

    Neither padding nor more than one layer of these samples is held, unless the function holds it. With one
    task per layer, dask would hold a whole layer of all samples between the tasks that use it.

    Parameters
    ----------
    function
        Takes the layers, each with dims ``(sample, token, hidden)``, and the mask of the tokens; returns an
        array with dims ``(sample, ...)``. Tokens after the last one that the mask includes are left out.
    array
        Dims ``(layer, sample, token, hidden)``.
    mask
        Boolean, dims ``(sample, token)``: the tokens included.
    sizes
        Lengths of the further dimensions of the result.
    layers_at_once
        Number of layers whose included tokens the function holds at once. If it is above 1, fewer samples are
        read at a time where these tokens would exceed 64 MB.

    Returns
    -------
    xarray.DataArray
        Dims ``(sample, ...)``.
    """
    included, bare = mask.transpose("sample", "token").values, xr.DataArray(array.variable)
    ends = np.where(included.any(axis=1), included.shape[1] - included[:, ::-1].argmax(axis=1), 1)
    of_block = delayed(_of_block, pure=False)
    parts = []
    token_bytes = array.dtype.itemsize * array.sizes["hidden"] * layers_at_once
    spans_of_chunks = _chunk_spans(bare)
    if layers_at_once > 1:
        spans_of_chunks = [part for span in spans_of_chunks for part in _parts(span, included, token_bytes)]
    for span in spans_of_chunks:
        tokens = slice(0, int(ends[span].max(initial=1)))
        block = Block(bare.isel(sample=span, token=tokens))
        shape = (span.stop - span.start, *sizes.values())
        parts.append(
            da.from_delayed(  # type: ignore[no-untyped-call]
                of_block(function, block, included[span, tokens]), shape, np.float64
            )
        )
    values = da.concatenate(parts).rechunk(-1)  # type: ignore[no-untyped-call]
    result = xr.DataArray(values, dims=["sample", *sizes])
    return result if dask.base.is_dask_collection(array) else result.compute()


def _of_block(function: OfSamples, block: Block, mask: np.ndarray) -> np.ndarray:
    return function(block.layers(), mask)


def spans(array: xr.DataArray) -> list[slice]:
    """Divide samples into slices, each read at once for one layer.

    Parameters
    ----------
    array
        Array with the dimension ``sample``, and ``layer`` unless it is a single layer.
    """
    n = array.sizes["sample"]
    item_bytes = array.dtype.itemsize * array.size // max(n * array.sizes.get("layer", 1), 1)
    return _cut(n, item_bytes, READ)


def _chunk_spans(array: xr.DataArray) -> list[slice]:
    """Divide samples as :func:`spans`, but into whole dask chunks, so that none is read twice."""
    spanned = spans(array) or [slice(0, 0)]
    if not array.chunks:
        return spanned
    edges, most = [0], spanned[0].stop
    for end in np.cumsum(array.chunksizes["sample"]).tolist():
        if len(edges) > 1 and end - edges[-2] <= most:
            edges[-1] = end
        else:
            edges.append(end)
    return [slice(*pair) for pair in pairwise(edges)]


def _parts(span: slice, included: np.ndarray, token_bytes: int) -> list[slice]:
    """Divide a slice of samples so that the included tokens of most parts are within `HELD`."""
    n = span.stop - span.start
    mean_bytes = int(included[span].sum()) * token_bytes // max(n, 1)
    return [slice(span.start + part.start, span.start + part.stop) for part in _cut(n, mean_bytes, HELD)]


def slabs(values: np.ndarray) -> list[slice]:
    """Divide samples, the first dimension, into slices small enough to convert to float64."""
    return _cut(len(values), values.nbytes // max(len(values), 1), SLAB)


def _cut(n: int, item_bytes: int, max_bytes: int) -> list[slice]:
    most = max(max_bytes // max(item_bytes, 1), 1)
    step = 1 << (most.bit_length() - 1)  # a power of two, so that few slices end within a chunk
    return [slice(*edges) for edges in pairwise([*range(0, n, step), n])]
