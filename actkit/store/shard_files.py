"""Shards written at once: the inner chunks of a window, followed by the index of their offsets."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import BITSHUFFLE, Blosc
from zarr.core.array_spec import ArrayConfig
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, StorePath

from .layout import BLOSC_LEVEL, BLOSC_NAME, Array, shard_region
from .ragged import Ragged

# a user may have configured another pipeline for reading; that of zarrs omits empty chunks
PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4


class Writable(Protocol):
    """An object to which bytes can be written."""

    def write(self, content: bytes, /) -> int:  # noqa: D102
        ...


class _Tile(NamedTuple):
    """A chunk of one layer: its index in the grid, the positions that fill its cells, and its empty cells."""

    place: tuple[int, int]
    positions: np.ndarray
    empty: np.ndarray


class _Cells(NamedTuple):
    """The entries of each token in a chunk: their number, dtype, and value where there is no token."""

    length: int
    dtype: np.dtype[Any]
    fill: Any


class ShardWriter:
    """Writes the shards of variables with a vector, or entries of one, for each token.

    Parameters
    ----------
    threads
        Number of chunks compressed concurrently.

    Notes
    -----
    The format is that of the `sharding_indexed` codec of zarr v3 with the index at the end and the inner
    codecs of `layout.create_array`. Chunks without tokens are omitted and read as the fill value.
    """

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, "actkit-compress") if threads > 1 else None
        self._scratch = threading.local()
        self._codec = Blosc(BLOSC_NAME, BLOSC_LEVEL, BITSHUFFLE)

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def write_to(self, file: Writable, array: Array, values: Ragged) -> int:
        """Write a shard to an open file, and return its size in bytes.

        Parameters
        ----------
        file
            The open file.
        array
            Array of the shard, which determines the sizes of shards and chunks.
        values
            Values of the window.
        """
        assert array.shards is not None
        grid = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
        *layers, groups, tiles, _ = grid
        index = np.full((*layers, groups, tiles, 1, 2), _ABSENT, dtype="<u8")
        layer_tiles = list(_tiles(values, *array.chunks[-3:-1]))
        cells = _Cells(array.chunks[-1], array.dtype, array.metadata.fill_value)
        offset = 0
        for row, layer in enumerate(values.layers):

            def compress(tile: _Tile, row: int = row) -> bytes:
                return self._compress(values, row, tile, cells)

            for tile, content in zip(layer_tiles, self._map(compress, layer_tiles), strict=True):
                index[(*(layer for _ in layers), *tile.place, 0)] = offset, len(content) + _CHECKSUM_BYTES
                offset += _write_checked(file, content)
        return offset + _write_checked(file, index.tobytes())

    def _map(self, compress: Callable[[_Tile], bytes], tiles: list[_Tile]) -> Iterator[bytes]:
        return map(compress, tiles) if self._pool is None else self._pool.map(compress, tiles)

    def _compress(self, values: Ragged, row: int, tile: _Tile, cells: _Cells) -> bytes:
        dense, shape = getattr(self._scratch, "dense", None), (len(tile.positions), cells.length)
        if dense is None or dense.shape != shape or dense.dtype != cells.dtype:
            dense = self._scratch.dense = np.empty(shape, dtype=cells.dtype)
        values.take(row, tile.positions, dense)
        dense[tile.empty] = cells.fill
        return bytes(self._codec.encode(dense))


def _tiles(values: Ragged, samples: int, tokens: int) -> Iterator[_Tile]:
    """Yield the chunks of a layer that contain tokens."""
    for group, first in enumerate(range(0, len(values.lengths), samples)):
        starts, lengths = np.zeros((2, samples), dtype=np.int64)
        count = len(values.lengths[first : first + samples])
        starts[:count] = values.starts[first : first + samples]
        lengths[:count] = values.lengths[first : first + samples]
        for number in range(-(-int(lengths.max()) // tokens)):
            offsets = np.arange(number * tokens, (number + 1) * tokens)
            positions = (starts[:, None] + offsets).ravel()
            yield _Tile((group, number), positions, np.flatnonzero(offsets >= lengths[:, None]))


def _write_checked(file: Writable, content: bytes) -> int:
    """Write bytes and the checksum that zarr's `crc32c` codec expects; return the number of bytes written."""
    file.write(content)
    file.write(int(google_crc32c.value(content)).to_bytes(_CHECKSUM_BYTES, "little"))
    return len(content) + _CHECKSUM_BYTES


def in_memory(array: Array) -> tuple[Array, dict[str, Buffer]]:
    """Return an empty array in memory with the same metadata, and the dict that receives its files by key."""
    stored: dict[str, Buffer] = {}
    with zarr.config.set(PIPELINE):
        empty = zarr.Array.from_dict(StorePath(MemoryStore(stored)), array.metadata.to_dict())
        # this setting is not stored in the metadata; without it, a shard of zeros would not be written
        return empty.with_config(ArrayConfig.from_dict({"write_empty_chunks": True})), stored  # type: ignore[return-value]


def encoded(array: Array, window: int, values: np.ndarray) -> bytes:
    """Return the bytes of one file of an array, as zarr encodes them."""
    twin, stored = in_memory(array)
    twin[shard_region(array, window)] = storable(values)
    (content,) = stored.values()
    return content.to_bytes()


def storable(array: np.ndarray) -> Any:
    """Return an array as zarr stores it, with Python strings in NumPy's string type."""
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array
