"""Files that are written under temporary names, locked while their writer lives, and then renamed."""

import ctypes
import fcntl
import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from .folders import Folder

PARTIAL = ".partial"
_UNFINISHED = re.compile(rf"(.+?)(\.[0-9a-f]{{32}})?{re.escape(PARTIAL)}", re.DOTALL)
BUFFER = 2**20
_AHEAD_OF_DISK = 8 * 2**20  # bytes written before the disk is asked to store them
_SYNC_FILE_RANGE_WRITE = 2  # from fcntl.h of Linux


class Partial:
    """A file that is being written under a temporary name.

    Parameters
    ----------
    folder
        Folder of the file.
    name
        Final name.
    unfinished
        Temporary name.
    file
        The open file.
    """

    def __init__(self, folder: "Folder", name: str, unfinished: str, file: IO[bytes]) -> None:
        self.name = name
        self.size = 0
        self._stored = 0  # bytes that the disk was asked to store
        self._folder, self._unfinished, self._file = folder, unfinished, file
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written, as hexadecimal digits."""
        return self._sha256.hexdigest()

    def write(self, content: bytes) -> int:
        """Append bytes."""
        self._sha256.update(content)
        self.size += len(content)
        with self._folder.writing(self.name, self.size):
            length = self._file.write(content)
        if self.size - self._stored >= _AHEAD_OF_DISK:
            _start_writeback(self._file.fileno(), self._stored, self.size)
            self._stored = self.size
        return length

    def lock(self) -> bool:
        """Lock the file for this process, and return whether it still exists; on an error, remove it."""
        try:
            with self._folder.writing(self.name):
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX)
        except OSError:
            if not self._folder.must_lock:
                return True
            self.close()
            raise
        return os.fstat(self._file.fileno()).st_nlink > 0

    def sync(self) -> None:
        """Flush the file to disk."""
        with self._folder.writing(self.name, self.size):
            self._file.flush()
            os.fsync(self._file.fileno())

    def place(self) -> None:
        """Rename the file to its final name, replacing any file of that name."""
        with self._folder.writing(self.name, self.size):
            self._file.flush()
            self._folder.rename(self._unfinished, self.name)
        self._unfinished = ""

    def place_new(self) -> bool:
        """Give the file its final name, unless a file of that name exists; return whether it was given."""
        with self._folder.writing(self.name, self.size), suppress(FileExistsError):
            self._file.flush()
            # unlike a rename, a link never replaces a file
            os.link(self._folder.path_to(self._unfinished), self._folder.path_to(self.name))
            return True
        return False

    def close(self) -> None:
        """Close the file, and remove its temporary name unless it was placed."""
        with suppress(OSError):  # on a full disk, flushing the buffer fails
            self._file.close()
        if self._unfinished:
            with suppress(OSError):
                self._folder.remove(self._unfinished)


def finished_name(name: str) -> str:
    """Return the final name of an unfinished file; empty for any other file."""
    match = _UNFINISHED.fullmatch(name)
    return match[1] if match else ""


def fsync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _start_writeback(descriptor: int, start: int, stop: int) -> None:
    """Ask the disk to store bytes of a file, without waiting; does nothing where Linux's call is missing."""
    with suppress(AttributeError):
        call = ctypes.CDLL(None).sync_file_range
        start_argument, length = ctypes.c_int64(start), ctypes.c_int64(stop - start)
        call(descriptor, start_argument, length, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))
