"""Writing of one cube by processes that share no lock, such as those of several machines."""

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..batch_plan import Plan
from ..errors import StorageError
from .commits import ConflictError, written
from .folders import Folder
from .layout import CUBE
from .object_folder import Upload
from .partial_files import PARTIAL, Partial
from .ragged import Ragged
from .receipts import Receipt, receipt_name
from .writer import CREATING, CubeWriter, storage_errors


class SharedWriter(CubeWriter):
    """Writes some windows of a cube whose other windows other processes write.

    No step relies on a lock or on the listing of a folder. The receipt of a window is created before any of
    its files is in place, and only by the first writer of the window: another one goes on only if its files
    are the same, byte by byte, so that it does no harm.

    Parameters
    ----------
    path, plan, threads
        As for :class:`CubeWriter`.
    windows
        The windows that this process writes.
    """

    def __init__(self, path: Path, plan: Plan, windows: Iterable[int], *, threads: int = 1) -> None:
        super().__init__(path, plan, threads=threads)
        self._windows = list(windows)
        assert isinstance(self._folder, Folder)
        self._folder.must_lock = False

    def recover(self) -> list[int]:
        """Return the windows of this process that remain to be computed.

        A window of this process that lacks files is revoked. Unfinished files are left alone: whether their
        writers live on other machines cannot be known.
        """
        with storage_errors("cannot recover"):
            self._check()
            present = {window for window in self._windows if self._is_committed(window)}
            lost = {window for window in present if not self._is_whole(window)}
            for window in lost:
                self._folder.remove(self._flag_files[window])
                self._folder.sync("committed")
                self._folder.remove(receipt_name(window))
        return [window for window in self._windows if window not in present - lost]

    def write(self, window: int, values: Mapping[str, np.ndarray | Ragged]) -> int:
        """Write and commit one window, as :meth:`CubeWriter.write` does.

        Raises
        ------
        StorageError
            Also if another process computed other values for the window.
        """
        try:
            return super().write(window, values)
        except ConflictError:
            raise
        except StorageError:
            # if another process committed the window and the run was sealed, unfinished files were removed
            with suppress(OSError, StorageError):
                self._check()
                if self._is_committed(window) and self._is_whole(window):
                    return 0
            raise

    def _commit(self, window: int, files: list[Partial | Upload]) -> int:
        """Rename the files of a window into place, between its receipt and its flags."""
        receipt, flags = receipt_name(window), self._flag_files[window]
        content = Receipt.of(self.seal, files).content()
        contents = {receipt: content, flags: self._flags_of(window)}
        with written(self._folder, contents) as (receipt_file, flags_file):
            self._check()
            if not receipt_file.place_new() and self._folder.read(receipt, len(content) + 1) != content:
                raise ConflictError(self.path, window, receipt)
            if self._is_committed(window):
                return 0
            self._folder.sync("committed")
            for file in files:
                file.place()
            for folder in dict.fromkeys(file.name.rpartition("/")[0] for file in files):
                self._folder.sync(folder)
            flags_file.place()
            self._folder.sync("committed")
        return sum(file.size for file in files)


def remove_unfinished(run: Path, folder: Folder) -> None:
    """Remove the unfinished files of a cube whose windows are all committed, whoever writes them.

    Parameters
    ----------
    run, folder
        The run folder, and the same, held open.
    """
    for path, _, files in os.walk(run / CUBE):
        for name in files:
            if name.endswith(PARTIAL):
                with suppress(FileNotFoundError), storage_errors("cannot remove an unfinished file"):
                    os.unlink(os.path.join(path, name))
    folder.remove_tree(CREATING)
