"""Compression of an array's chunks, and the size that a chunk claims to have before it is decompressed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numcodecs.zstd import Zstd
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer

COMPRESSORS = ("blosc", "zstd")
HEADER_BYTES = 64  # upper bound for the headers and checksums of a chunk
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_RATIO = 2**15  # a block of four bytes expands to 128 kB at most
_MAX_HEADER = 18
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class Compression:
    """Compression of an array's chunks.

    Parameters
    ----------
    compressor
        ``blosc``, ``zstd``, or empty if chunks are not compressed.
    chunk_bytes
        Size of a decompressed chunk; 0 if it is unknown because the chunk holds strings.
    chunks
        Number of chunks in a shard, whose index is at its end; 0 if each file is one chunk.
    strings
        Number of strings in a chunk; 0 if it holds numbers.
    checksum
        Whether a chunk ends with its CRC-32C.
    """

    compressor: str
    chunk_bytes: int
    chunks: int
    strings: int = 0
    checksum: bool = True

    def check(self, content: Buffer, byte_range: ByteRequest | None) -> None:
        """Check that no compressed chunk claims a larger size than its array allows.

        Parameters
        ----------
        content
            Bytes of a file, of one chunk of a shard, or of the index of a shard.
        byte_range
            Part of the file that was read; None for all of it.

        Raises
        ------
        ValueError
            If a chunk claims a larger size.
        """
        if not self.compressor and not self.strings:
            return
        view = memoryview(content.as_numpy_array()).cast("B")  # type: ignore[arg-type]
        if self.strings:
            self._check_strings(view)
        elif not self.chunks or isinstance(byte_range, RangeByteRequest):
            self._check(bytes(view[:_MAX_HEADER]), len(view))
        elif byte_range is None:
            for start, length in self._index(view):
                self._check(bytes(view[start : start + min(length, _MAX_HEADER)]), length)

    def _check_strings(self, chunk: memoryview) -> None:
        """Check the number of strings, for which the decoder allocates memory before it reads any."""
        if self.checksum:
            chunk = chunk[:-4]
        if self.compressor:
            self._check(bytes(chunk[:_MAX_HEADER]), len(chunk))
            chunk = memoryview(Zstd().decode(chunk))
        if (claimed := int.from_bytes(chunk[:4], "little")) != self.strings:
            raise ValueError(f"claims to hold {claimed:,} strings instead of {self.strings:,}")

    def _index(self, shard: memoryview) -> Iterator[tuple[int, int]]:
        """Yield the start and the length of each chunk of a shard."""
        size = 16 * self.chunks
        end = len(shard) - 4  # the index is followed by its checksum
        if end < size:
            raise ValueError("is shorter than its index")
        for start, length in np.frombuffer(shard[end - size : end], "<u8").reshape(-1, 2).tolist():
            if start != _ABSENT:
                yield start, length

    def _check(self, header: bytes, length: int) -> None:
        claimed = blosc_size(header) if self.compressor == "blosc" else zstd_size(header)
        limit = self.chunk_bytes + HEADER_BYTES if self.chunk_bytes else _MAX_RATIO * length
        if claimed > limit:
            raise ValueError(f"claims to hold {claimed:,} bytes in {length:,}")
        # zstd decompresses a frame without a size to any length
        if claimed == 0 and self.compressor == "zstd":
            raise ValueError("does not state its decompressed size")


def blosc_size(chunk: bytes) -> int:
    """Return the decompressed size that a Blosc chunk states, in bytes.

    Parameters
    ----------
    chunk
        At least the first 8 bytes of the chunk.
    """
    return int.from_bytes(chunk[4:8], "little")


def zstd_size(frame: bytes) -> int:
    """Return the decompressed size that a zstd frame states, in bytes; 0 if it states none.

    Parameters
    ----------
    frame
        The first 18 bytes of the frame (RFC 8878, section 3.1.1), or all of a shorter one.
    """
    if frame[:4] != _ZSTD_MAGIC or len(frame) < 5:
        return 0
    descriptor = frame[4]
    single_segment = descriptor >> 5 & 1
    width = (single_segment, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)
