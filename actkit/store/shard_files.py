"""One shard, written whole: the inner chunks of a window, one after the other, and where each lies."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc

from .layout import BLOSC_LEVEL, BLOSC_NAME, Array
from .ragged import Ragged

PARTIAL = ".partial"
_ABSENT = 2**64 - 1
_Chunk = tuple[int, int]  # which group of samples, and which tile of tokens


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

    def write(self, path: Path, array: Array, values: Ragged) -> None:
        """Put a shard in its place, safely on disk; readers see all of it or nothing.

        Parameters
        ----------
        path
            The file.
        array
            Its array, which says how shards are cut into chunks.
        values
            What the window holds.
        """
        partial = path.with_name(path.name + PARTIAL)
        try:
            with partial.open("wb") as file:
                self.write_to(file, array, values)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            with suppress(OSError):  # a full disk needs the room
                partial.unlink()
            raise

    def write_to(self, file: BinaryIO, array: Array, values: Ragged) -> int:
        """Write the bytes of a shard to an open file, and return how many they are."""
        assert array.shards is not None
        grid = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
        *layers, groups, tiles, _ = grid
        index = np.full((*layers, groups, tiles, 1, 2), _ABSENT, dtype="<u8")
        samples, tokens = array.chunks[-3:-1]
        wanted = list(_chunks_with_tokens(values.lengths, samples, tokens))
        offset = 0
        for row, layer in enumerate(values.layers):

            def compress(chunk: _Chunk, row: int = row) -> bytes:
                return self._compress(values, row, chunk, array.chunks[-3:])

            for chunk, content in zip(wanted, self._map(compress, wanted), strict=True):
                index[(*(layer for _ in layers), *chunk, 0)] = offset, len(content)
                file.write(content)
                offset += len(content)
        listed = _checked(index.tobytes())
        file.write(listed)
        return offset + len(listed)

    def _map(self, compress: Callable[[_Chunk], bytes], chunks: list[_Chunk]) -> Iterator[bytes]:
        return map(compress, chunks) if self._pool is None else self._pool.map(compress, chunks)

    def _compress(self, values: Ragged, row: int, chunk: _Chunk, shape: tuple[int, ...]) -> bytes:
        dense = getattr(self._scratch, "dense", None)
        if dense is None or dense.shape != shape:
            dense = self._scratch.dense = np.empty(shape, dtype=np.float32)
        group, tile = chunk
        samples, tokens, _ = shape
        first = group * samples
        count = min(samples, len(values.starts) - first)
        for place in range(count):
            values.read(row, first + place, tile * tokens, dense[place])
        dense[count:] = np.nan
        return _checked(self._codec.encode(dense))


def _chunks_with_tokens(lengths: np.ndarray, samples: int, tokens: int) -> Iterator[_Chunk]:
    for group, start in enumerate(range(0, len(lengths), samples)):
        for tile in range(-(-int(lengths[start : start + samples].max(initial=0)) // tokens)):
            yield group, tile


def _checked(content: bytes) -> bytes:
    """Append the checksum that zarr's `crc32c` codec expects."""
    content = bytes(content)
    return content + int(google_crc32c.value(content)).to_bytes(4, "little")
