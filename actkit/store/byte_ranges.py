"""Ranges of bytes of the files of a cube, wherever they are stored."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ..regular_files import open_descriptor, open_regular


class ByteRanges(Protocol):
    """Files of a cube, read by range; a key is a path in the cube.

    Missing files raise FileNotFoundError, and those that cannot be read any other OSError.
    """

    request_bytes: int  # longer ranges are divided into several requests
    inline_bytes: int  # a smaller result is not worth waiting for other threads
    threads: int  # number of concurrent requests

    def size(self, key: str) -> int:
        """Return the size of a file in bytes."""

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)`` of a file; fewer if it is shorter."""


class LocalRanges:
    """Files in a folder; links, FIFOs, devices and files that are too large are refused.

    Parameters
    ----------
    root
        The cube.
    limits
        Maximum size in bytes of a file of each array, by path of the array.
    """

    request_bytes = 2**20  # small enough that memory is reused and every thread has work
    inline_bytes = 2**20
    threads = min(os.cpu_count() or 1, 16)

    def __init__(self, root: Path, limits: Mapping[str, int]) -> None:
        self._root, self._limits = root, limits

    def size(self, key: str) -> int:
        """Return the size of a file in bytes."""
        limit = self._limits[key.rpartition("/")[0]]
        with open_regular(self._root / key, limit, follow=False) as file:
            return os.fstat(file.fileno()).st_size

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Return the bytes ``[start, stop)`` of a file; fewer if it is shorter."""
        descriptor = open_descriptor(self._root / key)
        try:
            content = os.pread(descriptor, stop - start, start)
            while len(content) < stop - start:  # Linux returns 2 GiB at most
                more = os.pread(descriptor, stop - start - len(content), start + len(content))
                if not more:
                    break
                content += more
            return content
        finally:
            os.close(descriptor)
