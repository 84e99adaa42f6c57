"""Shards written at once: the inner chunks of a window, followed by the index of their offsets."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
import zarr
from numcodecs.blosc import BITSHUFFLE, Blosc
from zarr.core.array_spec import ArrayConfig
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, StorePath

from .bfloat16_codec import Bfloat16Codec, bits_of
from .layout import BLOSC_LEVEL, BLOSC_NAME, Array, shard_region
from .ragged import Ragged

# a user may have configured another pipeline for reading; that of zarrs omits empty chunks
PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4
_BLOCK_BYTES = 2**16  # Blosc never divides so few bytes
_TASK_BYTES = (
    2**21
)  # of float32 values that one task compresses; a task of one chunk would cost as much again


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


_Chunk = tuple[int, _Tile]  # a layer, by its index in the values, and the tile
_Encoded = tuple[bytes, list[int]]  # chunks one after the other, and the length of each


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
        self._ahead = 2 * threads  # tasks whose results wait to be written
        self._codec = Blosc(BLOSC_NAME, BLOSC_LEVEL, BITSHUFFLE)
        self._bfloat16_codec = Bfloat16Codec(BLOSC_NAME, BLOSC_LEVEL)

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
        cells = _Cells(array.chunks[-1], array.dtype, array.metadata.fill_value)
        tasks = _tasks(values, *array.chunks[-3:])
        contents = self._map(partial(self._encode, values, cells), tasks)
        offset = 0
        for task, (content, lengths) in zip(tasks, contents, strict=True):
            file.write(content)
            for (row, tile), length in zip(task, lengths, strict=True):
                layer = values.layers[row]
                index[(*(layer for _ in layers), *tile.place, 0)] = offset, length
                offset += length
        content = b"".join(_checked(index.tobytes()))
        file.write(content)
        return offset + len(content)

    def _map(
        self, encode: Callable[[list[_Chunk]], _Encoded], tasks: list[list[_Chunk]]
    ) -> Iterator[_Encoded]:
        """Yield the results of tasks in order, while the next ones are computed."""
        if self._pool is None:
            yield from map(encode, tasks)
            return
        under_way: deque[Future[_Encoded]] = deque()
        for task in tasks:
            under_way.append(self._pool.submit(encode, task))
            if len(under_way) > self._ahead:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _encode(self, values: Ragged, cells: _Cells, chunks: list[_Chunk]) -> _Encoded:
        """Return the bytes of chunks, one after the other, and the length of each."""
        parts = [part for row, tile in chunks for part in _checked(self._compress(values, row, tile, cells))]
        return b"".join(parts), [len(chunk) + _CHECKSUM_BYTES for chunk in parts[::2]]

    def _compress(self, values: Ragged, row: int, tile: _Tile, cells: _Cells) -> bytes:
        shape = len(tile.positions), cells.length
        if values.values.dtype == np.uint16 and cells.dtype == np.float32:
            bits = self._scratch_of(shape, np.dtype(np.uint16))
            values.take_bits(row, tile.positions, bits)
            bits[tile.empty] = bits_of(cells.fill)
            return self._bfloat16_codec.encode(bits)
        dense = self._scratch_of(shape, cells.dtype)
        values.take(row, tile.positions, dense)
        dense[tile.empty] = cells.fill
        return bytes(self._codec.encode(dense))

    def _scratch_of(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> np.ndarray:
        """Return memory of this thread for one chunk."""
        scratch: np.ndarray | None = getattr(self._scratch, "chunk", None)
        if scratch is None or (scratch.shape, scratch.dtype) != (shape, dtype):
            scratch = self._scratch.chunk = np.empty(shape, dtype=dtype)
        return scratch


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


def _tasks(values: Ragged, samples: int, tokens: int, length: int) -> list[list[_Chunk]]:
    """Return the chunks with tokens of all layers, several of them per task."""
    in_layer = list(_tiles(values, samples, tokens))
    chunks = [(row, tile) for row in range(len(values.layers)) for tile in in_layer]
    size = max(1, _TASK_BYTES // (4 * samples * tokens * length))
    return [chunks[first : first + size] for first in range(0, len(chunks), size)]


def _checked(content: bytes) -> tuple[bytes, bytes]:
    """Return bytes, and the checksum that zarr's `crc32c` codec expects after them."""
    return content, int(google_crc32c.value(content)).to_bytes(_CHECKSUM_BYTES, "little")


def in_memory(array: Array) -> tuple[Array, dict[str, Buffer]]:
    """Return an empty array in memory with the same metadata, and the dict that receives its files by key."""
    stored: dict[str, Buffer] = {}
    with zarr.config.set(PIPELINE):
        empty = zarr.Array.from_dict(StorePath(MemoryStore(stored)), array.metadata.to_dict())
        # this setting is not stored in the metadata; without it, a shard of zeros would not be written
        return empty.with_config(ArrayConfig.from_dict({"write_empty_chunks": True})), stored  # type: ignore[return-value]


def encoded(array: Array, window: int, values: np.ndarray) -> bytes:
    """Return the bytes of one file of an array, as zarr encodes them."""
    if _is_simple(array, window, values):
        return _simple_shard(array, values)
    twin, stored = in_memory(array)
    twin[shard_region(array, window)] = storable(values)
    (content,) = stored.values()
    return content.to_bytes()


def _is_simple(array: Array, window: int, values: np.ndarray) -> bool:
    """Return whether values are numbers, stored in chunks of whole layers whose bytes are determined."""
    if array.shards is None or array.dtype.kind not in "iuf" or array.chunks[1:] != array.shards[1:]:
        return False
    if values.shape != tuple(part.stop - part.start for part in shard_region(array, window)):
        return False
    # in the main thread, numcodecs compresses the blocks of large chunks concurrently, in any order
    is_block = math.prod(array.chunks) * array.dtype.itemsize <= _BLOCK_BYTES
    return is_block or threading.current_thread() is not threading.main_thread()


def _simple_shard(array: Array, values: np.ndarray) -> bytes:
    """Return a shard of chunks of whole layers, without the overhead of zarr for each chunk."""
    assert array.shards is not None
    dense = np.full(array.shards, array.metadata.fill_value, dtype=array.dtype)
    dense[tuple(slice(length) for length in values.shape)] = values
    codec = Blosc(BLOSC_NAME, BLOSC_LEVEL, BITSHUFFLE)
    rows = array.chunks[0]
    frames = [bytes(codec.encode(dense[row : row + rows])) for row in range(0, len(dense), rows)]
    lengths = np.array([len(frame) + _CHECKSUM_BYTES for frame in frames], dtype="<u8")
    index = np.stack([np.cumsum(lengths) - lengths, lengths], axis=-1)
    return b"".join(part for content in (*frames, index.tobytes()) for part in _checked(content))


def storable(array: np.ndarray) -> Any:
    """Return an array as zarr stores it, with Python strings in NumPy's string type."""
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array
