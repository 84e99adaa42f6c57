"""A run in an object store: its cube, its options, and copies of its status and log."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from ..batch_plan import Plan
from ..schema import MOMENTS
from .cube_files import RemoteCube
from .folders import Folder
from .layout import CUBE
from .metadata import METADATA
from .object_clients import StorageOptions, work_folder
from .object_folder import WRITE_PATIENCE, ObjectFolder
from .parts import MOST_PARTS, Part, is_part_file
from .remote_creation import create_remote
from .remote_writer import RemoteWriter
from .run_folder import CONFIG, LOG, PARTS, STATUS
from .writer import create_cube, storage_errors

_HEARTBEAT = 15.0  # seconds
_SHOWN_PATIENCE = 5.0  # seconds for which a status may hold up a run
_SMALL_BYTES = 2**20  # of a status or of options
_CONCURRENT = 16


class RemoteRun:
    """A run in an object store.

    Parameters
    ----------
    url
        URL of the run.
    options
        Options of obstore, such as ``endpoint``.
    part
        Part of the run that this process computes, whose status and log are apart from those of others.

    Notes
    -----
    The lock, the status and the log are in a local folder, :attr:`folder`; status and log are copied to the
    store. Credentials come from the environment.
    """

    def __init__(self, url: str, options: StorageOptions | None = None, *, part: Part | None = None) -> None:
        self.place = ObjectFolder(url, options, patience=WRITE_PATIENCE)
        self.folder = work_folder(self.place.url)
        self._reading = ObjectFolder(url, options)  # a wrong endpoint is reported soon
        self._copies = ObjectFolder(url, options, patience=_SHOWN_PATIENCE)
        self._last, self._state = -_HEARTBEAT, ""
        self._beside = "" if part is None else f"{part.name}/"

    def cube(self) -> RemoteCube | None:
        """Return the files of the cube; None if it has not been created.

        Raises
        ------
        StorageError
            If the store cannot be read.
        """
        with storage_errors("cannot read", "nothing was written"):
            root = self._reading.entry(f"{CUBE}/{METADATA}")
            return None if root is None else RemoteCube(self.place / CUBE)

    def check(self) -> None:
        """Check that the server honours the condition under which windows are committed.

        Raises
        ------
        InputError
            If it does not.
        StorageError
            If it cannot be reached, or refuses access.
        """
        with storage_errors("cannot write to", "nothing was written"):
            self.place.check_conditions()

    def create(
        self,
        plan: Plan,
        *,
        variables: Sequence[str],
        coords: Mapping[str, np.ndarray],
        labels: Mapping[str, str],
        rows: Iterable[Mapping[str, np.ndarray]],
        attrs: Mapping[str, str | int | float | bool],
    ) -> None:
        """Create the cube; parameters and errors as for :func:`~actkit.store.writer.create_cube`.

        Raises
        ------
        ChangedError
            If another process has created another cube in the meantime.
        """
        with storage_errors("cannot create the cube in"), tempfile.TemporaryDirectory() as temporary:
            create_cube(
                Path(temporary),
                plan,
                variables=variables,
                coords=coords,
                labels=labels,
                rows=rows,
                attrs=attrs,
            )
            create_remote(Path(temporary) / CUBE, self.place)

    def writer(self, plan: Plan, windows: Iterable[int] | None, *, threads: int) -> RemoteWriter:
        """Return a writer of windows, by default of all."""
        return RemoteWriter(RemoteCube(self.place / CUBE), plan, windows, threads=threads)

    def replace(self, name: str, content: bytes) -> None:
        """Store a small file of the run."""
        self.place.put(name, content)

    def copy_status(self, folder: Folder, state: str) -> None:
        """Copy the status, every few seconds and where its state changes; failures do not end a run."""
        now = time.monotonic()
        if state != self._state or now - self._last >= _HEARTBEAT:
            self._last, self._state = now, state
            self._copy(folder, STATUS)

    def copy_log(self, folder: Folder) -> None:
        """Copy the log; a failure does not end a run."""
        self._copy(folder, LOG)

    def _copy(self, folder: Folder, name: str) -> None:
        with suppress(OSError):
            content = folder.read(name, -1)
            if content is not None:
                self._copies.put(self._beside + name, content)

    def remove(self) -> None:
        """Remove every object of the run, its root first, and the local folder.

        Raises
        ------
        OSError
            If an object cannot be removed.
        """
        self.place.remove(f"{CUBE}/{METADATA}")  # what is left is no cube
        with ThreadPoolExecutor(_CONCURRENT) as pool:
            list(pool.map(self.place.remove, self.place.entries()))
        shutil.rmtree(self.folder, ignore_errors=True)

    def copy_moments(self) -> None:
        """Copy the moments that the run gathered.

        Raises
        ------
        StorageError
            If they cannot be read or stored.
        """
        with storage_errors("cannot store the moments in"), (self.folder / MOMENTS).open("rb") as file:
            self.place.put(MOMENTS, file)

    @contextmanager
    def settings(self) -> Iterator[Path]:
        """Yield a temporary run folder with the options of the run, and the heartbeats of its parts.

        Raises
        ------
        StorageError
            If the store cannot be read.
        """
        with storage_errors("cannot read", "nothing was written"), tempfile.TemporaryDirectory() as temporary:
            parts = (self._reading / PARTS).entries()
            named = [name for name in parts if is_part_file(name, STATUS)][:MOST_PARTS]
            keys = [CONFIG, STATUS, *(f"{PARTS}/{name}" for name in named)]
            with ThreadPoolExecutor(_CONCURRENT) as pool:
                contents = pool.map(lambda key: self._reading.read(key, _SMALL_BYTES), keys)
                for key, content in zip(keys, contents, strict=True):
                    if content is not None:
                        path = Path(temporary, key)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(content)
            yield Path(temporary)
