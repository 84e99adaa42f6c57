"""Creation of folders that appear at their path with all their contents, or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

from ..errors import Fault, InputError
from .folders import Folder
from .partial_files import PARTIAL, finished_name

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def path_faults(out: Path) -> list[Fault]:
    """Return a fault if the path of a new folder is taken."""
    return [_taken(out)] if os.path.lexists(out) else []


def _taken(out: Path) -> Fault:
    return Fault("out", f"{out} already exists", "name a new folder")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Build a folder under a temporary name, and rename it once the caller has filled it.

    The temporary name is unique, and the kernel locks the folder for this process. Another process that
    builds a folder of the same name removes only the temporary folders of processes that have ended.

    Parameters
    ----------
    out
        The new folder; missing parents are created.

    Yields
    ------
    Path
        The folder to fill; it is removed after an error.

    Raises
    ------
    InputError
        If another process has created `out` in the meantime.
    StorageError
        If the temporary folder was moved, deleted or replaced.
    OSError
        If the disk cannot be written.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with closing(Folder(out.parent)) as parent:
        _sweep(parent, out.name)
        with closing(_locked_folder(parent, out.name)) as folder:
            name = folder.path.name
            try:
                yield folder.path
                folder.check()
                if os.path.lexists(out):  # a rename would replace an empty folder
                    raise InputError([_taken(out)])
                try:
                    parent.rename(name, out.name)
                except OSError as error:
                    if error.errno in _TAKEN:
                        raise InputError([_taken(out)]) from error
                    raise
                name = out.name
                parent.sync()
            except BaseException:
                parent.remove_tree(name)
                raise


def _locked_folder(parent: Folder, name: str) -> Folder:
    """Create a folder under a temporary name, and lock it for this process."""
    while True:
        path = parent.path / f".{name}.{uuid4().hex}{PARTIAL}"
        path.mkdir()
        try:
            folder = Folder(path, follow=False)
        except FileNotFoundError:  # another process removed it before it was locked
            continue
        if folder.lock() and os.path.lexists(path):
            return folder
        folder.close()


def _sweep(parent: Folder, name: str) -> None:
    """Remove the temporary folders of processes that have ended."""
    for path in list(parent.path.iterdir()):
        if finished_name(path.name) == f".{name}":
            try:
                folder = Folder(path, follow=False)
            except OSError:  # not a folder, or removed by another process
                continue
            with closing(folder):
                if folder.lock():
                    parent.remove_tree(path.name)
