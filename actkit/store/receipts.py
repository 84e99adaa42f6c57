"""Receipts, which record the cube that a window or the coordinates belong to, and their files' checksums."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import google_crc32c

from ..errors import Fault

RECEIPTS = "receipts"  # attribute of a cube whose committed windows all have receipts
_LIMIT = 2**20
_AGAIN = "delete it if it exists, and rerun the extraction"


@dataclass(frozen=True)
class Receipt:
    """Record of the files written for one window, or for all coordinates.

    Parameters
    ----------
    cube
        The attribute ``metadata_sha256`` of the cube that it was written for.
    files
        Size in bytes and SHA-256 in hexadecimal digits of each file except the flags, by path in the cube.
        CRC-32C would not do: for a file whose parts end with their own CRC-32C, it depends only on the
        lengths of the parts.
    """

    cube: str
    files: Mapping[str, tuple[int, str]]

    @classmethod
    def of(cls, cube: str, files: "Sequence[_Written]") -> "Receipt":
        """Return the receipt of files that were just written."""
        return cls(cube, {file.name: (file.size, file.digest) for file in files})

    def content(self) -> bytes:
        """Return the stored form of the receipt, including a checksum; it is unique."""
        fields = {"cube": self.cube, "files": self.files}
        checksum = google_crc32c.value(json.dumps(fields, sort_keys=True).encode())
        return json.dumps({**fields, "crc32c": f"{checksum:08x}"}, indent=1, sort_keys=True).encode()

    def fault(self, cube: str, window: int | None) -> Fault | None:
        """Return a fault where the receipt belongs to another cube."""
        if self.cube == cube:
            return None
        return Fault(receipt_name(window), "was written by the run of another cube", _AGAIN)


def receipt_name(window: int | None) -> str:
    """Return the path in the cube of the receipt of a window, or of the coordinates if it is None."""
    return "committed/receipt.json" if window is None else f"committed/receipt.{window}.json"


class _Written(Protocol):
    """A file that was just written."""

    name: str
    size: int

    @property
    def digest(self) -> str: ...


class _Readable(Protocol):
    """A folder whose small files can be read."""

    def read(self, name: str, limit: int, /) -> bytes | None: ...


def read_receipt(folder: _Readable, window: int | None, *, promised: bool) -> Receipt | Fault | None:
    """Read a receipt.

    Parameters
    ----------
    folder
        The cube.
    window
        The index of the window; None for the coordinates.
    promised
        Whether the attributes of the cube state that it has receipts.

    Returns
    -------
    Receipt, Fault or None
        A fault if the receipt is missing or damaged; None if there is none and none was promised.
    """
    name = receipt_name(window)
    content = folder.read(name, _LIMIT)
    if content is None:
        return Fault(name, "is missing", _AGAIN) if promised else None
    if not content:
        return Fault(name, "is empty", _AGAIN)
    try:
        stored = json.loads(content)
        files = {str(path): (int(size), str(digest)) for path, (size, digest) in stored["files"].items()}
        receipt = Receipt(str(stored["cube"]), files)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return Fault(name, "is truncated or corrupted", _AGAIN)
    # any change is damage, even one that does not alter the meaning
    return receipt if receipt.content() == content else Fault(name, "is truncated or corrupted", _AGAIN)
