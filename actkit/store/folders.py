"""A folder held open by its descriptor, so that files reach it even if its path changes."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from time import monotonic, sleep
from typing import IO
from uuid import uuid4

from ..errors import StorageError
from ..regular_files import IrregularError, open_descriptor
from .partial_files import BUFFER, PARTIAL, Partial, finished_name

LOCK_SECONDS = 120  # far longer than a commit, which takes a few fsyncs
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_DEPTH = 2  # of array folders in a cube: group/array


class Folder:
    """A folder, accessed through its descriptor.

    Files never land in another folder, even if this one is moved, deleted or replaced while it is open. All
    names are relative to the folder.

    Parameters
    ----------
    path
        An existing folder.
    follow
        Whether the path may be a symbolic link.

    Raises
    ------
    OSError
        If the folder cannot be opened.
    """

    def __init__(self, path: Path, *, follow: bool = True) -> None:
        self.path = path
        self.must_lock = True  # if False, a file system without locks will do
        self._descriptor = -1
        self._descriptor = os.open(path, _FOLDER if follow else _FOLDER | os.O_NOFOLLOW)

    def close(self) -> None:
        """Close the descriptor, which releases the lock of the folder."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def __del__(self) -> None:
        if os is not None:  # the interpreter sets modules to None at exit
            self.close()

    def check(self) -> None:
        """Check that the path still leads to this folder.

        Raises
        ------
        StorageError
            If the folder was moved, deleted or replaced.
        """
        status_at_path = None
        with suppress(FileNotFoundError, NotADirectoryError):
            status_at_path = os.stat(self.path)
        if status_at_path is None or not os.path.samestat(os.fstat(self._descriptor), status_at_path):
            what = "no longer exists" if status_at_path is None else "is now another folder"
            raise StorageError(
                f"{self.path}: {what}: it was moved, deleted or replaced while it was being written; "
                "put it back and rerun, or use another folder"
            )

    def path_to(self, name: str) -> Path:
        """Return the path of a file or folder in this one.

        On Linux the path leads through the descriptor and therefore stays valid if the folder is moved;
        elsewhere it is the ordinary path.
        """
        descriptor_path = Path(f"/proc/self/fd/{self._descriptor}")
        return (descriptor_path if descriptor_path.exists() else self.path) / name

    def partial(self, name: str) -> Partial:
        """Create a file under a temporary name; :meth:`Partial.place` renames it.

        The kernel locks the file for this process, so :meth:`sweep` leaves it alone until the process ends.
        """
        while True:
            unfinished = f"{name}.{uuid4().hex}{PARTIAL}"
            try:
                with self.writing(name):
                    partial = Partial(self, name, unfinished, self._open_new(unfinished))
            except OSError:  # a network file system may have created the file in spite of the error
                with suppress(OSError):
                    self.remove(unfinished)
                raise
            if partial.lock():  # otherwise another process swept it before it was locked
                return partial
            partial.close()

    def replace(self, name: str, content: bytes) -> None:
        """Replace a small file atomically: readers see either the old or the new content.

        A symbolic link of that name is replaced, not followed.
        """
        with closing(self.partial(name)) as file:
            file.write(content)
            file.place()

    def append(self, name: str) -> TextIOWrapper:
        """Open a text file for appending; refuse links and files with several names."""

        def opener(_path: str, flags: int) -> int:
            with self._named(name):
                return open_descriptor(Path(name), flags, dir_fd=self._descriptor)

        return open(self.path / name, "a", encoding="utf-8", opener=opener)

    def read(self, name: str, limit: int) -> bytes | None:
        """Return up to `limit` bytes of a regular file, all if it is -1; None if there is no such file."""
        try:
            descriptor = open_descriptor(Path(name), dir_fd=self._descriptor)
        except OSError:
            return None
        with open(descriptor, "rb") as file:
            return file.read(limit)

    def size(self, name: str) -> int:
        """Return the size of a regular file in bytes, or -1 if there is no such file."""
        try:
            status = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return -1
        return status.st_size if stat.S_ISREG(status.st_mode) else -1

    def rename(self, source: str, target: str) -> None:
        """Rename a file or folder."""
        with self._named(target):
            os.rename(source, target, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        """Remove a file, if it exists."""
        with self._named(name), suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._descriptor)

    def remove_tree(self, name: str) -> None:
        """Remove a folder of any depth, as far as permissions allow.

        Raises
        ------
        ValueError
            If the name may lead out of this folder, or to itself.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"{name!r} is not the name of a folder in {self.path}")
        with suppress(OSError):
            root = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=self._descriptor)
            try:
                _empty(root)
            finally:
                os.close(root)
            os.rmdir(name, dir_fd=self._descriptor)

    def lock(self) -> bool:
        """Lock the folder until it is closed; return False if another process holds the lock."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def sync(self, name: str = ".") -> None:
        """Flush the entries of a folder to disk."""
        with self._named(name):
            descriptor = os.open(name, _FOLDER, dir_fd=self._descriptor)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the exclusive lock of a folder in this one, across processes and threads.

        Raises
        ------
        StorageError
            If another process keeps the lock for two minutes.
        """
        with self._named(name):
            descriptor = os.open(name, _FOLDER, dir_fd=self._descriptor)
        try:
            deadline = monotonic() + LOCK_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if monotonic() > deadline:
                        what = "another process has been committing for two minutes, or is stopped"
                        raise StorageError(f"{self.path / name}: {what}; end it and rerun") from None
                    sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def writing(self, name: str, size: int = 0) -> Iterator[None]:
        """Add the name of the file being written to errors, and the free space if the disk is full.

        Parameters
        ----------
        name
            The file.
        size
            Bytes written so far, including those that may not have reached the disk.
        """
        try:
            with self._named(name):
                yield
        except OSError as error:
            if error.errno == errno.ENOSPC:
                disk = os.fstatvfs(self._descriptor)
                free = disk.f_bavail * disk.f_frsize
                error.add_note(
                    "no more files can be created there: remove some"
                    if disk.f_files and not disk.f_favail
                    else f"at least {size:,} bytes to write, {free:,} bytes free: make room"
                )
            raise

    def sweep(self, *names: str) -> None:
        """Remove unfinished files of processes that have ended.

        Parameters
        ----------
        names
            Names that the files would have had; by default, all in this folder and in array folders below.
        """
        if names:
            for name in os.listdir(self._descriptor):
                if finished_name(name) in names:
                    _remove_dead(name, self._descriptor)
            return
        for path, subfolders, files, descriptor in os.fwalk(".", dir_fd=self._descriptor):
            if path.count("/") == _DEPTH:
                subfolders.clear()
            for name in files:
                if name.endswith(PARTIAL):
                    _remove_dead(name, descriptor)

    def _open_new(self, name: str) -> IO[bytes]:
        def opener(_path: str, flags: int) -> int:
            with self._named(name):
                return os.open(name, flags | os.O_NOFOLLOW, 0o666, dir_fd=self._descriptor)

        return open(self.path / name, "xb", BUFFER, opener=opener)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename, error.filename2 = str(self.path / name), None
            raise


def _empty(root: int) -> None:
    """Remove the contents of a folder, as far as permissions allow.

    Nested folders are moved up first, because recursion depth, path length and open files are all limited.
    """
    folders = _remove_files(root)
    while folders:
        name = folders.pop()
        with suppress(OSError):
            folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=root)
            try:
                for subfolder in _remove_files(folder):
                    moved = uuid4().hex
                    with suppress(OSError):
                        os.rename(subfolder, moved, src_dir_fd=folder, dst_dir_fd=root)
                        folders.append(moved)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=root)


def _remove_files(folder: int) -> list[str]:
    """Remove the files of a folder, as far as permissions allow, and return the names of its folders."""
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
    """Remove an unfinished file, unless a process holds its lock."""
    try:
        descriptor = open_descriptor(Path(name), dir_fd=folder)
    except IrregularError:  # a link or FIFO, which no writer creates
        with suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(name, dir_fd=folder)
        return
    except OSError:  # its writer may still be running
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
