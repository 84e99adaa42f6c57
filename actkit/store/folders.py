"""A folder held open: files reach this one, whatever takes its path meanwhile."""

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from time import monotonic, sleep
from typing import IO
from uuid import uuid4

from ..errors import StorageError
from ..regular_files import IrregularError, open_descriptor

PARTIAL = ".partial"
_UNFINISHED = re.compile(rf"(.+?)(\.[0-9a-f]{{32}})?{re.escape(PARTIAL)}", re.DOTALL)
BUFFER = 2**20
LOCK_SECONDS = 120  # a commit takes a few fsyncs
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_DEPTH = 2  # of the folders of arrays in a cube: group/array


class Folder:
    """A folder, by its descriptor.

    Whoever moves, deletes or replaces it while it is held does not make its files land in another one. All
    names are relative to it.

    Parameters
    ----------
    path
        The folder, which exists.
    follow
        Whether it may be a link.

    Raises
    ------
    OSError
        Where it cannot be opened.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        self.path = path
        self._descriptor = -1
        self._descriptor = os.open(path, _FOLDER if follow else _FOLDER | os.O_NOFOLLOW)

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        if os is not None:  # the interpreter sets it to None when it ends
            self.close()

    def check(self) -> None:
        """Make sure that it is the folder at its path.

        Raises
        ------
        StorageError
            Where it was moved, deleted or replaced.
        """
        held, there = os.fstat(self._descriptor), None
        with suppress(FileNotFoundError, NotADirectoryError):
            there = os.stat(self.path)
        if there is None or not os.path.samestat(held, there):
            what = "is not there any more" if there is None else "is another folder now"
            raise StorageError(
                f"{self.path}: {what}: it was moved, deleted or replaced while it was being written; "
                "put it back and rerun, or use another folder"
            )

    def held(self, name: str) -> Path:
        """Return the path of one of its files or folders, through the descriptor where the system can.

        On Linux it stays the same folder whatever takes its path; elsewhere it is the ordinary path.
        """
        through = Path(f"/proc/self/fd/{self._descriptor}")
        return (through if through.exists() else self.path) / name

    def partial(self, name: str) -> "Partial":
        """Begin a file, under another name until it is put in its place.

        The kernel locks it for this process: :meth:`sweep` leaves it alone as long as its writer lives.
        """
        while True:
            unfinished = f"{name}.{uuid4().hex}{PARTIAL}"
            try:
                with self.writing(name):
                    partial = Partial(self, name, unfinished, self._open_new(unfinished))
            except OSError:  # a server may have done it, and not have said so
                with suppress(OSError):
                    self.remove(unfinished)
                raise
            if partial.lock():  # else it was swept before it was locked
                return partial
            partial.close()

    def replace(self, name: str, content: bytes) -> None:
        """Write a small file so that a reader sees the old or the new one, never half.

        A link at its name is replaced, and not followed.
        """
        with closing(self.partial(name)) as file:
            file.write(content)
            file.place()

    def append(self, name: str) -> TextIOWrapper:
        """Open a text file, to write behind what is in it; never one that has another name elsewhere."""

        def opened(_path: str, flags: int) -> int:
            with self._named(name):
                return open_descriptor(Path(name), flags, dir_fd=self._descriptor)

        return open(self.path / name, "a", encoding="utf-8", opener=opened)

    def read(self, name: str, limit: int) -> bytes | None:
        """Return what a regular file holds, up to a limit unless that is -1; None where there is none."""
        try:
            descriptor = open_descriptor(Path(name), dir_fd=self._descriptor)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            return file.read(limit)

    def size(self, name: str) -> int:
        """Return the bytes of a regular file; -1 where there is none."""
        try:
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return -1
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def rename(self, source: str, target: str) -> None:
        """Put a file or folder in its place."""
        with self._named(target):
            os.rename(source, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with self._named(name), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def remove_tree(self, name: str) -> None:
        """Remove one of its folders, however deep it is, as far as that is allowed."""
        with suppress(OSError):
            root = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._descriptor)
            try:
                _empty(root)
            finally:
                os.close(root)
            os.rmdir(name, dir_fd=self._descriptor)

    def lock(self) -> bool:
        """Lock the folder until it is closed; return False where another process holds it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def sync(self, name: str = ".") -> None:
        """Return once the names in a folder are safely on disk."""
        with self._named(name):
            descriptor = os.open(name, _FOLDER, dir_fd=self._descriptor)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold one of its folders, alone among all processes and threads.

        Raises
        ------
        StorageError
            Where another process holds it for two minutes.
        """
        with self._named(name):
            descriptor = os.open(name, _FOLDER, dir_fd=self._descriptor)
        try:
            until = monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() > until:
                        what = "another process has been committing for two minutes, or is stopped"
                        raise StorageError(f"{self.path / name}: {what}; end it and rerun") from None
                    sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self, name: str, size: int = 0) -> Iterator[None]:
        """Let errors name a file that is being written; those of a full disk note what it lacks.

        Parameters
        ----------
        name
            The file.
        size
            Bytes that it has so far, those that may not have reached the disk included.
        """
        try:
            with self._named(name):
                yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                disk = os.fstatvfs(self._descriptor)
                free = disk.f_bavail * disk.f_frsize
                error.add_note(
                    "no more files can be made there: remove some"
                    if disk.f_files and not disk.f_favail
                    else f"{size:,} bytes or more to write, {free:,} bytes free: make room"
                )
            raise

    def sweep(self, *names: str) -> None:
        """Remove files that were not finished, by anybody who does not live any more.

        Parameters
        ----------
        names
            Of finished files; by default all, and those of the folders of arrays below.
        """
        if names:
            for name in os.listdir(self._descriptor):
                if finished_name(name) in names:
                    _remove_dead(name, self._descriptor)
            return
        for path, below, files, folder in os.fwalk(".", dir_fd=self._descriptor):
            if path.count("/") == _DEPTH:
                below.clear()
            for name in files:
                if name.endswith(PARTIAL):
                    _remove_dead(name, folder)

    def _open_new(self, name: str) -> IO[bytes]:
        def opened(_path: str, flags: int) -> int:
            return self._open(name, flags)

        return open(self.path / name, "xb", BUFFER, opener=opened)

    def _open(self, name: str, flags: int) -> int:
        with self._named(name):
            return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=self._descriptor)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename, error.filename2 = str(self.path / name), None
            raise


class Partial:
    """A file of a folder that is being written; it counts once it is placed.

    Parameters
    ----------
    folder
        Its folder.
    name
        The name that it will have.
    unfinished
        The name that it has.
    file
        The open file, which is locked.
    """

    def __init__(self, folder: Folder, name: str, unfinished: str, file: IO[bytes]) -> None:
        self.name = name
        self.size = 0
        self._folder, self._unfinished, self._file = folder, unfinished, file
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, as hexadecimal digits."""
        return self._sha256.hexdigest()

    def write(self, content: bytes) -> int:
        """Write bytes behind those that were written."""
        self._sha256.update(content)
        self.size += len(content)
        with self._folder.writing(self.name, self.size):
            return self._file.write(content)

    def lock(self) -> bool:
        """Lock it for this process, and tell whether it still is there; where that fails, remove it."""
        try:
            with self._folder.writing(self.name):
                fcntl.flock(self._file.fileno(), fcntl.LOCK_EX)
        except OSError:
            self.close()
            raise
        return os.fstat(self._file.fileno()).st_nlink > 0

    def sync(self) -> None:
        """Return once all of it is safely on disk."""
        with self._folder.writing(self.name, self.size):
            self._file.flush()
            os.fsync(self._file.fileno())

    def place(self) -> None:
        """Give it its name, in place of the file that has it."""
        with self._folder.writing(self.name, self.size):
            self._file.flush()
            self._folder.rename(self._unfinished, self.name)
        self._unfinished = ""

    def close(self) -> None:
        """Let go of it, and remove it unless it was placed."""
        with suppress(OSError):  # a full disk cannot take what is in the buffer, and needs the room
            self._file.close()
        if self._unfinished:
            with suppress(OSError):
                self._folder.remove(self._unfinished)


def finished_name(name: str) -> str:
    """Return the name that an unfinished file would have had; empty for any other name."""
    found = _UNFINISHED.fullmatch(name)
    return found[1] if found else ""


def _empty(root: int) -> None:
    """Remove what a folder holds, as far as that is allowed.

    Folders further down are moved up first: neither a call stack, a path nor the open files of a process
    reach to any depth.
    """
    folders = _remove_files(root)
    while folders:
        name = folders.pop()
        with suppress(OSError):
            folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=root)
            try:
                for below in _remove_files(folder):
                    moved = uuid4().hex
                    with suppress(OSError):
                        os.rename(below, moved, src_dir_fd=folder, dst_dir_fd=root)
                        folders.append(moved)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=root)


def _remove_files(folder: int) -> list[str]:
    """Remove the files of a folder, as far as that is allowed, and return the names of its folders."""
    folders = []
    with os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                with suppress(OSError):
                    os.unlink(entry.name, dir_fd=folder)
    return folders


def _remove_dead(name: str, folder: int) -> None:
    """Remove an unfinished file unless a process holds its lock."""
    try:
        descriptor = open_descriptor(Path(name), dir_fd=folder)
    except IrregularError:  # a link or FIFO, which nobody writes to
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=folder)
        return
    except OSError:  # whether its writer lives cannot be known
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
