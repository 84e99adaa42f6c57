"""Ranges of remote objects that were read, kept on the local disk."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import google_crc32c

_CHECKSUM_BYTES = 4


class RangeCache:
    """Ranges of bytes by object, entity tag and position; nothing is ever removed from it.

    Parameters
    ----------
    folder
        Folder of the cache; created when the first range is kept.
    url
        The ``.zarr`` folder that the objects belong to.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url = folder, url

    def get(self, key: str, tag: str, start: int, stop: int) -> bytes | None:
        """Return a range; None if it is not kept, or was damaged."""
        try:
            content = self._path(key, tag, start, stop).read_bytes()
        except OSError:
            return None
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        return body if len(body) == stop - start and _checksum(body) == checksum else None

    def put(self, key: str, tag: str, start: int, stop: int, content: bytes) -> None:
        """Keep a range; a full or read-only disk keeps nothing."""
        if not tag:  # another object of this name could not be told from this one
            return
        path = self._path(key, tag, start, stop)
        partial = path.with_name(f"{path.name}.{uuid4().hex}")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(content + _checksum(content))
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)

    def _path(self, key: str, tag: str, start: int, stop: int) -> Path:
        name = hashlib.sha256(f"{self._url}\n{key}\n{tag}\n{start}-{stop}".encode()).hexdigest()
        return self._folder / name[:2] / name[2:]


def _checksum(content: bytes) -> bytes:
    return int(google_crc32c.value(content)).to_bytes(_CHECKSUM_BYTES, "little")
