"""Writing and committing of windows in an object store."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..batch_plan import Plan
from .commits import ConflictError, written
from .cube_files import RemoteCube
from .layout import Array, shards
from .object_folder import Entry, Upload
from .partial_files import Partial
from .receipts import Receipt, receipt_name
from .writer import CubeWriter, storage_errors

_CONCURRENT = 16


class RemoteWriter(CubeWriter):
    """Writes windows of a cube in an object store; any number of processes may do so at the same time.

    The receipt of a window is created before any of its files is stored, and its flags after all of them.
    Where either exists already, the contents are compared: another process that computed the same values does
    no harm, and one that computed others fails before it has replaced a file.

    Parameters
    ----------
    path, plan, threads
        As for :class:`~actkit.store.writer.CubeWriter`.
    windows
        Windows that this process writes; all by default.
    """

    def __init__(
        self, path: RemoteCube, plan: Plan, windows: Iterable[int] | None = None, *, threads: int = 1
    ) -> None:
        super().__init__(path, plan, threads=threads)
        self._windows = list(range(plan.n_windows) if windows is None else windows)
        self._entries: Mapping[str, Entry] = path.entries

    def recover(self) -> list[int]:
        """Return the windows that remain to be computed; a window that lacks files is revoked."""
        with storage_errors("cannot recover"):
            self._check()
            self._entries = self._folder.entries()  # type: ignore[union-attr]
            present = [window for window in self._windows if self._is_flagged(window)]
            with ThreadPoolExecutor(_CONCURRENT) as pool:
                whole = pool.map(self._is_whole, present)
            lost = {window for window, is_whole in zip(present, whole, strict=True) if not is_whole}
            for window in lost:
                self._folder.remove(self._flag_files[window])
                self._folder.remove(receipt_name(window))
        return [window for window in self._windows if window not in {*present} - lost]

    def restore(
        self,
        coords: Mapping[str, np.ndarray],
        labels: Iterable[str],
        rows: Iterable[Mapping[str, np.ndarray]],
    ) -> list[str]:
        """Store coordinates again that are missing or have another size, and return their names."""
        restored = super().restore(coords, labels, rows)
        if restored:  # the listing is no longer true
            assert isinstance(self.path, RemoteCube)
            self.path = RemoteCube(self.path.folder)
        return restored

    def _commit(self, window: int, files: list[Partial | Upload]) -> int:
        """Store the files of a window between its receipt and its flags."""
        receipt, content = receipt_name(window), Receipt.of(self.seal, files).content()
        contents = {receipt: content, self._flag_files[window]: self._flags_of(window)}
        with written(self._folder, contents) as (receipt_file, flags_file):
            self._check()
            if not receipt_file.place_new() and self._folder.read(receipt, -1) != content:
                raise ConflictError(self.path, window, receipt)
            if self._is_committed(window):
                return 0
            for file in files:
                file.place()
            flags_file.place()
        return sum(file.size for file in files)

    def _is_damaged(self, array: Array, entries: Mapping[str, tuple[int, str]] | None) -> bool:
        assert isinstance(self.path, RemoteCube)
        for shard in shards(self.path.root, array):
            entry = self._entries.get(str(shard))
            if entry is None or not entry.size:
                return True
            if entries is not None and entry.size != entries.get(str(shard), (0, ""))[0]:
                return True
        return False

    def _is_flagged(self, window: int) -> bool:
        """Return whether the flags of a window are listed; they are created once and never change."""
        entry = self._entries.get(self._flag_files[window])
        return entry is not None and entry.size == len(self._flags_of(window))

    def _is_whole(self, window: int) -> bool:
        receipt = self._receipt(window)
        sizes = {
            paths[window]: self._entries[paths[window]].size if paths[window] in self._entries else -1
            for paths in self._files.values()
        }
        if not isinstance(receipt, Receipt):
            return receipt is None and min(sizes.values()) > 0
        return sizes == {name: size for name, (size, _) in receipt.files.items()}
