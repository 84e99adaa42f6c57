"""Parts of shards, read with one request for the index and one for each contiguous range of chunks.

zarr makes a request for each chunk. The layers of a shard follow each other in the file, so all chunks of a
layer are a single range.
"""

import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain, product
from math import prod
from typing import Any, NamedTuple, TypeVar

import google_crc32c
import numpy as np
from numcodecs import blosc

from ..errors import CorruptError, Fault
from .byte_ranges import ByteRanges
from .chunk_selection import AxisPart, axis_parts, full_key, region
from .compression import blosc_size
from .layout import Array
from .verification import RERUN

_ABSENT = 2**64 - 1
_CHECKSUM_BYTES = 4
_BLOSC_HEADER = 16
_WHOLE_BYTES = 2**18  # files of up to this size are read with a single request
_GAP_BYTES = 2**16  # unneeded bytes that are read rather than making another request
_KEPT_BYTES = 2**23  # scratch memory that a thread keeps

_CODECS = ["bytes", "blosc", "crc32c"]
_INDEX_CODECS = ["bytes", "crc32c"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class _Chunk(NamedTuple):
    """A chunk: where it is in the file, its selected part, and where that belongs in the result."""

    start: int
    stop: int
    inside: tuple[Any, ...]
    outside: tuple[Any, ...]
    has_arrays: bool  # rather than slices alone


class _Request(NamedTuple):
    """A range of a file and the chunks in it; `content` holds the bytes if they have been read."""

    key: str
    start: int
    stop: int
    chunks: list[_Chunk]
    content: bytes | None = None


@dataclass(frozen=True)
class ShardReader:
    """Reads selections of an array of numbers whose shards are those of the cube format.

    Parameters
    ----------
    name
        Path of the array.
    shape, shard, chunk
        Lengths of the array, of a file, and of an inner chunk along each axis.
    dtype
        Data type of the array.
    fill_value
        Value of absent chunks.
    ranges
        The files.
    """

    name: str
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    fill_value: Any
    ranges: ByteRanges

    @classmethod
    def of(cls, array: Array, ranges: ByteRanges) -> "ShardReader | None":
        """Return the reader of an array; None if its layout differs, so that zarr has to read it."""
        if array.shards is None or not _is_readable(array):
            return None
        fill_value = array.metadata.fill_value
        return cls(array.path, array.shape, array.shards, array.chunks, array.dtype, fill_value, ranges)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return a selection; each axis has its own index, slice, or array of indices.

        Raises
        ------
        IndexError
            If an index is out of range.
        OSError
            If a file cannot be read.
        CorruptError
            If a file is damaged.
        """
        keys = full_key(key, len(self.shape))
        axes = [axis_parts(*axis) for axis in zip(keys, self.shape, self.chunk, strict=True)]
        out = np.empty([selected for _, selected in axes], dtype=self.dtype)
        if out.size:
            files = self._by_file([parts for parts, _ in axes])
            requests = self._concurrently(lambda file: self._locate(*file, out), files, out.nbytes)
            self._concurrently(
                lambda request: self._load(request, out), list(chain.from_iterable(requests)), out.nbytes
            )
        return out[tuple(slice(None) if isinstance(item, slice) or np.ndim(item) else 0 for item in keys)]

    def _concurrently(
        self, function: Callable[[_Item], _Result], items: Sequence[_Item], size: int
    ) -> list[_Result]:
        """Apply a function to items, in several threads if that is worth it."""
        threads = self.ranges.threads
        if len(items) < 2 or threads < 2 or size < self.ranges.inline_bytes:
            return [function(item) for item in items]
        return list(_pool(os.getpid(), threads).map(function, items))

    @cached_property
    def _chunk_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.chunk)

    @cached_property
    def _grid(self) -> tuple[int, ...]:
        """Number of chunks of a shard along each axis."""
        return tuple(whole // part for whole, part in zip(self.shard, self.chunk, strict=True))

    def _by_file(self, axes: Sequence[Sequence[AxisPart]]) -> list[tuple[str, list[list[AxisPart]]]]:
        """Return the key of each file that a selection needs, with the parts along each axis in it."""
        divided = []
        for parts, chunks in zip(axes, self._grid, strict=True):
            by_file: dict[int, list[AxisPart]] = defaultdict(list)
            for part in parts:
                by_file[part.chunk // chunks].append(part._replace(chunk=part.chunk % chunks))
            divided.append(by_file.items())
        return [
            (f"{self.name}/c.{'.'.join(str(index) for index, _ in file)}", [parts for _, parts in file])
            for file in product(*divided)
        ]

    def _locate(self, key: str, axes: list[list[AxisPart]], out: np.ndarray) -> list[_Request]:
        """Read the index of a file, fill in the absent chunks, and return the requests for the others."""
        size, index_size = self.ranges.size(key), 16 * prod(self._grid) + _CHECKSUM_BYTES
        if size < index_size:
            raise _corrupt(key, "is shorter than its index")
        content = self.ranges.read(key, 0 if size <= _WHOLE_BYTES else size - index_size, size)
        index = _checked(key, np.frombuffer(content, np.uint8)[-index_size:])
        entries = index.view("<u8").reshape(*self._grid, 2)
        selected = entries[np.ix_(*[[part.chunk for part in parts] for parts in axes])].reshape(-1, 2)
        insides = product(*[[part.inside for part in parts] for parts in axes])
        outsides = product(*[[part.outside for part in parts] for parts in axes])
        has_arrays = any(isinstance(index, np.ndarray) for parts in axes for part in parts for index in part)
        chunks = []
        for (start, length), inside, outside in zip(selected.tolist(), insides, outsides, strict=True):
            if has_arrays:
                inside, outside = region(inside), region(outside)
            if start == length == _ABSENT:
                out[outside] = self.fill_value
            elif start + length > size - index_size or length < _CHECKSUM_BYTES:
                raise _corrupt(key, "has an index that leads out of the file")
            else:
                chunks.append(_Chunk(start, start + length, inside, outside, has_arrays))
        chunks.sort(key=lambda chunk: chunk.start)
        if size <= _WHOLE_BYTES:
            return [_Request(key, 0, size, chunks, content)]
        return list(_requests(key, chunks, self.ranges.request_bytes))

    def _load(self, request: _Request, out: np.ndarray) -> None:
        """Read a range, and put its chunks into the result."""
        content = request.content
        if content is None:
            content = self.ranges.read(request.key, request.start, request.stop)
        if len(content) < request.stop - request.start:
            raise _corrupt(request.key, "is truncated")
        stored = np.frombuffer(content, np.uint8)
        for chunk in request.chunks:
            start, stop = chunk.start - request.start, chunk.stop - request.start
            self._decode(request.key, _checked(request.key, stored[start:stop]), chunk, out)

    def _decode(self, key: str, stored: np.ndarray, chunk: _Chunk, out: np.ndarray) -> None:
        """Decompress the selected part of a chunk into the result."""
        size = self._chunk_bytes
        header = stored[:_BLOSC_HEADER].tobytes()
        # blosc reads and writes as much memory as the header claims
        if len(header) < _BLOSC_HEADER or int.from_bytes(header[12:16], "little") != len(stored):
            raise _corrupt(key, "has a truncated chunk")
        if (claimed := blosc_size(header)) != size:
            raise _corrupt(key, f"has a chunk that claims to hold {claimed:,} bytes instead of {size:,}")
        if not chunk.has_arrays:
            target = out[chunk.outside]
            if target.shape == self.chunk and target.flags.c_contiguous:
                blosc.decompress(stored, target)
                return
        whole = _buffer(size).view(self.dtype).reshape(self.chunk)
        blosc.decompress(stored, whole)
        out[chunk.outside] = whole[chunk.inside]


def _is_readable(array: Array) -> bool:
    """Return whether the shards of an array have the codecs that actkit writes."""
    document: Any = array.metadata.to_dict()
    (sharding, *around), encoding = document["codecs"], document["chunk_key_encoding"]
    settings = sharding["configuration"]
    chains = [settings["codecs"], settings["index_codecs"]]
    endians = [chain[0].get("configuration", {}).get("endian", "little") for chain in chains]
    return (
        sys.byteorder == "little"
        and not around
        and [[codec["name"] for codec in chain] for chain in chains] == [_CODECS, _INDEX_CODECS]
        and endians == ["little", "little"]
        and settings["index_location"] == "end"
        and encoding == {"name": "default", "configuration": {"separator": "."}}
    )


def _corrupt(key: str, what: str) -> CorruptError:
    return CorruptError([Fault(key, what, RERUN)])


def _checked(key: str, content: np.ndarray) -> np.ndarray:
    """Return bytes without their checksum, after comparing them with it."""
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:].tobytes()
    if google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise _corrupt(key, "differs from its checksum")
    return body


def _requests(key: str, chunks: Sequence[_Chunk], most: int) -> Iterator[_Request]:
    """Combine chunks, sorted by their place in the file, to ranges."""
    first = 0
    for number in range(1, len(chunks) + 1):
        if number < len(chunks):
            gap = chunks[number].start - chunks[number - 1].stop
            if gap <= _GAP_BYTES and chunks[number].stop - chunks[first].start <= most:
                continue
        together = list(chunks[first:number])
        yield _Request(key, together[0].start, max(chunk.stop for chunk in together), together)
        first = number


_local = threading.local()


def _buffer(size: int) -> np.ndarray:
    """Return memory of this thread that the next call reuses."""
    buffer: np.ndarray | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = np.empty(size, dtype=np.uint8)
        if size <= _KEPT_BYTES:
            _local.buffer = buffer
    return buffer[:size]


@lru_cache(maxsize=2)
def _pool(_process: int, threads: int) -> ThreadPoolExecutor:
    """Return the threads of a process; a forked child has none of those of its parent."""
    return ThreadPoolExecutor(threads, "actkit-read")
