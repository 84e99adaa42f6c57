"""How the chunks of an array are compressed, and how much they claim to hold before they are decompressed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numcodecs.zstd import Zstd
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer

COMPRESSORS = ("blosc", "zstd")
HEADER_BYTES = 64  # more than the headers and checksums of a chunk take
_ZSTD = b"\x28\xb5\x2f\xfd"
_RATIO = 2**15  # a block of four bytes stands for 128 kB at most
_HEADER = 18
_ABSENT = 2**64 - 1


@dataclass(frozen=True)
class Compression:
    """How the chunks of an array are compressed.

    Parameters
    ----------
    compressor
        ``blosc``, ``zstd``, or empty where chunks are not compressed.
    chunk_bytes
        Size of a chunk once it is unpacked; 0 where that is not known before, because it holds strings.
    chunks
        Number of chunks in a shard, whose index is at its end; 0 where each file is one chunk.
    strings
        Number of strings in a chunk; 0 where it holds numbers.
    checksum
        Whether a chunk ends with its CRC-32C.
    """

    compressor: str
    chunk_bytes: int
    chunks: int
    strings: int = 0
    checksum: bool = True

    def check(self, content: Buffer, byte_range: ByteRequest | None) -> None:
        """Compare what compressed chunks claim to hold with what they can hold.

        Parameters
        ----------
        content
            What was read: a file, one chunk of a shard, or the index of a shard.
        byte_range
            The part of the file that this is; None for all of it.

        Raises
        ------
        ValueError
            Where a chunk claims more.
        """
        if not self.compressor and not self.strings:
            return
        view = memoryview(content.as_numpy_array()).cast("B")  # type: ignore[arg-type]
        if self.strings:
            self._check_strings(view)
        elif not self.chunks or isinstance(byte_range, RangeByteRequest):
            self._check(bytes(view[:_HEADER]), len(view))
        elif byte_range is None:
            for start, length in self._index(view):
                self._check(bytes(view[start : start + min(length, _HEADER)]), length)

    def _check_strings(self, chunk: memoryview) -> None:
        """Compare the number of strings, for which memory is allocated before any is read."""
        if self.checksum:
            chunk = chunk[:-4]
        if self.compressor:
            self._check(bytes(chunk[:_HEADER]), len(chunk))
            chunk = memoryview(Zstd().decode(chunk))
        if (claimed := int.from_bytes(chunk[:4], "little")) != self.strings:
            raise ValueError(f"claims to hold {claimed:,} strings instead of {self.strings:,}")

    def _index(self, shard: memoryview) -> Iterator[tuple[int, int]]:
        """Yield where each chunk of a shard starts, and how long it is."""
        size = 16 * self.chunks
        end = len(shard) - 4  # of the index, before its checksum
        if end < size:
            raise ValueError("is shorter than its index")
        for start, length in np.frombuffer(shard[end - size : end], "<u8").reshape(-1, 2).tolist():
            if start != _ABSENT:
                yield start, length

    def _check(self, header: bytes, length: int) -> None:
        claimed = blosc_size(header) if self.compressor == "blosc" else zstd_size(header)
        most = self.chunk_bytes + HEADER_BYTES if self.chunk_bytes else _RATIO * length
        if claimed > most:
            raise ValueError(f"claims to hold {claimed:,} bytes in {length:,}")
        # a frame of zstd without a size is unpacked for as long as it goes on
        if claimed == 0 and self.compressor == "zstd":
            raise ValueError("does not say how many bytes it holds")


def blosc_size(chunk: bytes) -> int:
    """Return how many bytes a chunk of Blosc says that it holds.

    Parameters
    ----------
    chunk
        Its first 8 bytes, or more.
    """
    return int.from_bytes(chunk[4:8], "little")


def zstd_size(frame: bytes) -> int:
    """Return how many bytes a frame of zstd says that it holds; 0 where it does not.

    Parameters
    ----------
    frame
        Its first 18 bytes, as RFC 8878 describes them in 3.1.1, or all of a shorter one.
    """
    if frame[:4] != _ZSTD or len(frame) < 5:
        return 0
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(frame[start : start + width], "little") + (256 if width == 2 else 0)
