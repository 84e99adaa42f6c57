"""What tells rows apart: hashes of their ids and of all that is used of them."""

import hashlib
from typing import Any

import numpy as np

from .sources import Row


class Keys:
    """Which keys of 16 bytes were there, and in which row: 24 bytes each.

    Parameters
    ----------
    recent
        How many to hold before they are sorted in.
    """

    def __init__(self, recent: int = 4096) -> None:
        self._most = recent
        self._recent: dict[bytes, int] = {}
        self._sorted, self._rows = np.empty(0, dtype="S16"), np.empty(0, dtype=np.int64)

    def add(self, key: bytes, row: int) -> None:
        """Remember a key that :meth:`find` does not find."""
        self._recent[key] = row
        if len(self._recent) > max(self._most, len(self._sorted) // 16):
            recent = np.array(list(self._recent), dtype="S16")
            order = np.argsort(recent)
            places = np.searchsorted(self._sorted, recent[order])
            self._sorted = np.insert(self._sorted, places, recent[order])
            self._rows = np.insert(self._rows, places, np.array(list(self._recent.values()))[order])
            self._recent.clear()

    def find(self, key: bytes) -> int | None:
        """Return the row of a key; None where it was not there."""
        if key in self._recent:
            return self._recent[key]
        place = int(np.searchsorted(self._sorted, np.bytes_(key)))
        # NumPy drops the zeros at the end of its strings
        if place < len(self._sorted) and self._sorted[place] == key.rstrip(b"\0"):
            return int(self._rows[place])
        return None


def key_of(row: Row) -> bytes:
    """Return what no other row may have: the digest of its id and language."""
    return hashlib.blake2b(_bytes((str(row.sample_id), str(row.language))), digest_size=16).digest()


def content_of(row: Row) -> bytes:
    """Return all of a row that a cube is made of."""
    return _bytes((row.sample_id, row.language, row.text, row.image, row.labels))


def _bytes(value: Any) -> bytes:
    """Return bytes that differ wherever values or their types do."""
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
    """Return a hash of 8 bytes."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
