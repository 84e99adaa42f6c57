"""One shard, written whole: the inner chunks of a window, one after the other, and where each lies."""

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

# a user may have set another one for reading; zarrs leaves out empty chunks
PIPELINE = {"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"}
_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4


class Writable(Protocol):
    """Whatever takes bytes."""

    def write(self, content: bytes, /) -> int:  # noqa: D102
        ...


class _Tile(NamedTuple):
    """A chunk of one layer: its place among them, the positions that fill its cells, and its empty cells."""

    place: tuple[int, int]
    positions: np.ndarray
    empty: np.ndarray


class ShardWriter:
    """Writes the shards of variables that have tokens and hidden.

    Parameters
    ----------
    threads
        How many chunks are compressed at once.

    Notes
    -----
    The format is that of the `sharding_indexed` codec of zarr v3, index at the end, with the inner
    codecs that `layout.create_array` names; a chunk without any token is left out, and reads as NaN.
    """

    def __init__(self, threads: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, "actkit-compress") if threads > 1 else None
        self._scratch = threading.local()
        self._codec = Blosc(BLOSC_NAME, BLOSC_LEVEL, BITSHUFFLE)

    def close(self) -> None:
        """End its threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def write_to(self, file: Writable, array: Array, values: Ragged) -> int:
        """Write the bytes of a shard to an open file, and return how many they are.

        Parameters
        ----------
        file
            The file.
        array
            Its array, which says how shards are cut into chunks.
        values
            What the window holds.
        """
        assert array.shards is not None
        grid = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
        *layers, groups, tiles, _ = grid
        index = np.full((*layers, groups, tiles, 1, 2), _ABSENT, dtype="<u8")
        tiles_held = list(_tiles(values, *array.chunks[-3:-1]))
        offset = 0
        for row, layer in enumerate(values.layers):

            def compress(tile: _Tile, row: int = row) -> bytes:
                return self._compress(values, row, tile, array.chunks[-1])

            for tile, content in zip(tiles_held, self._map(compress, tiles_held), strict=True):
                index[(*(layer for _ in layers), *tile.place, 0)] = offset, len(content) + _CHECKSUM_BYTES
                offset += _write_checked(file, content)
        return offset + _write_checked(file, index.tobytes())

    def _map(self, compress: Callable[[_Tile], bytes], tiles: list[_Tile]) -> Iterator[bytes]:
        return map(compress, tiles) if self._pool is None else self._pool.map(compress, tiles)

    def _compress(self, values: Ragged, row: int, tile: _Tile, hidden: int) -> bytes:
        dense = getattr(self._scratch, "dense", None)
        if dense is None or dense.shape != (len(tile.positions), hidden):
            dense = self._scratch.dense = np.empty((len(tile.positions), hidden), dtype=np.float32)
        values.take(row, tile.positions, dense)
        dense[tile.empty] = np.nan
        return bytes(self._codec.encode(dense))


def _tiles(values: Ragged, samples: int, tokens: int) -> Iterator[_Tile]:
    """Yield the chunks of a layer that hold any token."""
    for group, first in enumerate(range(0, len(values.lengths), samples)):
        starts, lengths = np.zeros((2, samples), dtype=np.int64)
        own = values.lengths[first : first + samples]
        starts[: len(own)], lengths[: len(own)] = values.starts[first : first + samples], own
        for number in range(-(-int(lengths.max()) // tokens)):
            offsets = np.arange(number * tokens, (number + 1) * tokens)
            positions = (starts[:, None] + offsets).ravel()
            yield _Tile((group, number), positions, np.flatnonzero(offsets >= lengths[:, None]))


def _write_checked(file: Writable, content: bytes) -> int:
    """Write bytes and the checksum that zarr's `crc32c` codec expects, and return how many they are."""
    file.write(content)
    file.write(int(google_crc32c.value(content)).to_bytes(_CHECKSUM_BYTES, "little"))
    return len(content) + _CHECKSUM_BYTES


def in_memory(array: Array) -> tuple[Array, dict[str, Buffer]]:
    """Return an array of the same metadata that holds nothing, and the dict that its files go to, by key."""
    stored: dict[str, Buffer] = {}
    with zarr.config.set(PIPELINE):
        empty = zarr.Array.from_dict(StorePath(MemoryStore(stored)), array.metadata.to_dict())
        # this setting is not stored: without it, a shard of zeros would be no file at all
        return empty.with_config(ArrayConfig.from_dict({"write_empty_chunks": True})), stored  # type: ignore[return-value]


def encoded(array: Array, window: int, values: np.ndarray) -> bytes:
    """Return the bytes of one file of an array, as zarr writes them."""
    twin, stored = in_memory(array)
    twin[shard_region(array, window)] = storable(values)
    (content,) = stored.values()
    return content.to_bytes()


def storable(array: np.ndarray) -> Any:
    """Return an array as zarr takes it: strings of any length are no objects."""
    return array.astype(np.dtypes.StringDType()) if array.dtype == object else array
