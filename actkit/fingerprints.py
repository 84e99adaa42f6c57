"""Hashes that identify rows and files: of ids, of the used parts of a row, of the content of a file."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from .sources import Row


class Keys:
    """Set of 16-byte keys and the row of each, in 24 bytes per key.

    Parameters
    ----------
    recent
        Number of keys to hold before they are merged into the sorted array.
    """

    def __init__(self, recent: int = 4096) -> None:
        self._most = recent
        self._recent: dict[bytes, int] = {}
        self._sorted, self._rows = np.empty(0, dtype="S16"), np.empty(0, dtype=np.int64)

    def add(self, key: bytes, row: int) -> None:
        """Add a key that is not yet in the set."""
        self._recent[key] = row
        if len(self._recent) > max(self._most, len(self._sorted) // 16):
            recent = np.array(list(self._recent), dtype="S16")
            order = np.argsort(recent)
            places = np.searchsorted(self._sorted, recent[order])
            self._sorted = np.insert(self._sorted, places, recent[order])
            self._rows = np.insert(self._rows, places, np.array(list(self._recent.values()))[order])
            self._recent.clear()

    def find(self, key: bytes) -> int | None:
        """Return the row of a key; None if it is not in the set."""
        if key in self._recent:
            return self._recent[key]
        place = int(np.searchsorted(self._sorted, np.bytes_(key)))
        # NumPy strips trailing zeros from its strings
        if place < len(self._sorted) and self._sorted[place] == key.rstrip(b"\0"):
            return int(self._rows[place])
        return None


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(row: Row) -> bytes:
    """Return the digest of a row's id and language, which must be unique."""
    return hashlib.blake2b(_bytes((str(row.sample_id), str(row.language))), digest_size=16).digest()


def content_of(row: Row) -> bytes:
    """Return the parts of a row that go into a cube, as bytes."""
    return _bytes((row.sample_id, row.language, row.text, row.image, row.labels))


def _bytes(value: Any) -> bytes:
    """Return bytes that differ whenever values or their types differ."""
    match value:
        case str():
            kind, content = "str", value.encode(errors="surrogatepass")
        case bytes():
            kind, content = "bytes", value
        case list() | tuple():
            kind, content = "list", b"".join(map(_bytes, value))
        case dict():
            kind, content = "dict", b"".join(_bytes(key) + _bytes(cell) for key, cell in value.items())
        case _:
            kind, content = type(value).__name__, repr(value).encode()
    return f"{kind} {len(content)} ".encode() + content


def check_of(content: bytes) -> int:
    """Return an 8-byte hash."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
