"""Untrusted files: only regular files are opened, up to a maximum size.

A pipe would block its reader forever, and a device such as ``/dev/zero`` has no end. Links are followed if
the user chose the path, but refused in run folders, which may come from others.
"""

import errno
import io
import os
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

MB = 2**20
# maximum sizes of files that are read into memory as a whole
MOST_JSON = 512 * MB  # JSON files of a model, such as tokenizers and weight indices
MOST_TABLE = 1000 * MB
_MOST_DIRECTORY = 32 * MB  # directory of an archive: 46 bytes and a name for each member


class IrregularError(OSError):
    """The file is an unfollowed link, not a regular file, or too large; the text follows its name."""

    def __str__(self) -> str:
        return str(self.strerror)


def open_descriptor(
    path: Path, flags: int = os.O_RDONLY, *, follow: bool = False, dir_fd: int | None = None
) -> int:
    """Open a file without ever waiting for a FIFO or device.

    Parameters
    ----------
    path
        The file.
    flags
        Flags of :func:`os.open`, without ``O_TRUNC``.
    follow
        Whether to follow a link, because the user chose the path.
    dir_fd
        Descriptor of the folder that a relative path starts from; None for the working directory.

    Returns
    -------
    int
        A file descriptor, which the caller closes.

    Raises
    ------
    OSError
        If the file cannot be opened, is a link or not a regular file; for writing, also if it has another
        hard link.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666, dir_fd=dir_fd)
    except ValueError as error:  # a NUL character in the path
        raise IrregularError(errno.EINVAL, str(error), str(path)) from error
    except OSError as error:
        if not follow and _is_link(path, dir_fd):
            raise IrregularError(errno.ELOOP, "is a link, which is not followed", str(path)) from error
        raise
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IrregularError(errno.EISDIR, "is a folder", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise IrregularError(errno.EINVAL, "is not a regular file", str(path))
        if flags & (os.O_WRONLY | os.O_RDWR) and status.st_nlink > 1:
            raise IrregularError(errno.EMLINK, "has another hard link elsewhere", str(path))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str | os.PathLike[str], most: int | None = None, *, follow: bool = True) -> BinaryIO:
    """Open a file for reading.

    Parameters
    ----------
    path
        The file.
    most
        Maximum size in bytes; None for no limit.
    follow
        Whether to follow a link.

    Raises
    ------
    OSError
        If the file cannot be opened.
    IrregularError
        If it is not a regular file, or larger than `most`.
    """
    file = os.fdopen(open_descriptor(Path(path), follow=follow), "rb")
    if most is not None and os.fstat(file.fileno()).st_size > most:
        file.close()
        raise _too_large(path, most)
    return file


def read_regular(path: str | os.PathLike[str], most: int, *, follow: bool = True) -> bytes:
    """Return the content of a file; parameters and errors as for :func:`open_regular`."""
    with open_regular(path, most, follow=follow) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise _too_large(path, most)
    return content


def check_regular(paths: Iterable[Path], most: int | None = None, *, follow: bool = True) -> None:
    """Check files that a library will open by name; errors as for :func:`open_regular`, with the name."""
    for path in paths:
        try:
            open_regular(path, most, follow=follow).close()
        except IrregularError as error:
            raise IrregularError(error.errno, f"{path.name} {error}", str(path)) from None


def file_fault(path: Path, most: int) -> str:
    """Return the reason why a file cannot be read; empty if it can.

    Parameters
    ----------
    path
        The file; a link is not followed.
    most
        Maximum size in bytes.

    Returns
    -------
    str
        Whether it is missing, empty, cannot be opened, is a link, folder, FIFO or device, or is too large.
    """
    try:
        with open_regular(path, most, follow=False) as file:
            return "" if os.fstat(file.fileno()).st_size else "is empty"
    except IrregularError as error:
        return str(error)
    except (FileNotFoundError, NotADirectoryError):
        return "is missing"
    except OSError as error:
        return f"cannot be opened: {error.strerror}"


class _BoundedFile(io.BufferedReader):
    """File that refuses to read more than `most` bytes at once."""

    most = _MOST_DIRECTORY

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes."""
        if size is not None and size > self.most:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size)


@contextmanager
def open_archive(path: str | os.PathLike[str]) -> Iterator[zipfile.ZipFile]:
    """Open a ZIP archive of any size for reading.

    Raises
    ------
    OSError
        As for :func:`open_regular`.
    zipfile.BadZipFile
        If it is not an archive, or its directory, which is read as a whole, is implausibly large.
    """
    descriptor = open_descriptor(Path(path), follow=True)
    with _BoundedFile(io.FileIO(descriptor)) as file, zipfile.ZipFile(file) as archive:
        file.most = sys.maxsize
        yield archive


def unpacked_bytes(file: str | Path | IO[bytes]) -> int:
    """Return the uncompressed size of a ZIP archive in bytes, from its directory alone."""
    with zipfile.ZipFile(file) as archive:
        # a member cannot unpack to more, because the reader stops at the declared size
        return sum(part.file_size for part in archive.infolist())


def read_tail(path: Path, most: int) -> tuple[bytes, bool]:
    """Return the last bytes of a file, and whether they are the whole file.

    Raises
    ------
    OSError
        As for :func:`open_regular`.
    """
    with open_regular(path, follow=False) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - most, 0))
        return file.read(most), size <= most


def _is_link(path: Path, dir_fd: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _too_large(path: str | os.PathLike[str], most: int) -> IrregularError:
    limit = f"{most // MB:,} MB" if most >= MB else f"{most:,} bytes"
    return IrregularError(errno.EFBIG, f"is larger than {limit}", str(path))
