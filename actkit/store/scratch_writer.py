"""Trial writes of windows into unnamed temporary files, to measure their cost."""

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import MemoryStore

from ..batch_plan import Plan
from ..schema import VARIABLES
from .layout import Array, create_array
from .partial_files import BUFFER, fsync
from .ragged import Ragged
from .shard_files import ShardWriter, encoded
from .writer import storage_errors


@dataclass(frozen=True)
class WriteCost:
    """Cost of writing one window.

    Parameters
    ----------
    sizes
        Bytes of each variable.
    seconds, busy
        Wall-clock and CPU seconds for the variables that have a vector for each token.
    other_seconds
        Wall-clock seconds for the other variables and the commit.
    """

    sizes: Mapping[str, int]
    seconds: float
    busy: float
    other_seconds: float


class ScratchWriter:
    """Writes windows as a cube stores them, each variable flushed to disk, but keeps nothing.

    Parameters
    ----------
    folder
        Folder on the disk to measure; no named file appears in it.
    plan
        Plan of the cube that the windows could belong to.
    threads
        Number of threads that compress.
    """

    def __init__(self, folder: Path, plan: Plan, *, threads: int = 1) -> None:
        self._folder = folder
        self._plan = plan
        self._shards = ShardWriter(threads)

    def write(self, values: Mapping[str, np.ndarray | Ragged], n_samples: int) -> WriteCost:
        """Write one window.

        Parameters
        ----------
        values
            As for :meth:`~actkit.store.writer.CubeWriter.write`.
        n_samples
            Number of samples in the window.

        Raises
        ------
        StorageError
            If the disk cannot be written.
        """
        group = zarr.create_group(MemoryStore(), zarr_format=3)
        arrays = {name: self._create(group, name, n_samples) for name in values}
        sizes: dict[str, int] = {}
        with storage_errors(f"cannot write into {self._folder}"):
            started, worked = time.perf_counter(), time.process_time()
            for name, part in values.items():
                if isinstance(part, Ragged):
                    with tempfile.TemporaryFile(buffering=BUFFER, dir=self._folder) as file:
                        sizes[name] = self._shards.write_to(file, arrays[name], part)
                        file.flush()
                        os.fsync(file.fileno())
            seconds, busy = time.perf_counter() - started, time.process_time() - worked
            started = time.perf_counter()
            for name, part in values.items():
                if not isinstance(part, Ragged):
                    sizes[name] = self._write(encoded(arrays[name], 0, part))
                fsync(self._folder)
            self._write(b"committed")
            fsync(self._folder)
        return WriteCost(sizes, seconds, busy, time.perf_counter() - started)

    def close(self) -> None:
        """Stop the threads."""
        self._shards.close()

    def _create(self, group: zarr.Group, name: str, n_samples: int) -> Array:
        variable = VARIABLES[name]
        samples, tokens = self._plan.chunk_of(variable) if variable.is_full else (1, 1)
        return create_array(
            group,
            variable,
            {**vars(self._plan.shape_of(variable)), "sample": n_samples},
            window=-(-n_samples // samples) * samples,
            chunk=(samples, tokens),
            attrs={},
        )

    def _write(self, content: bytes) -> int:
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return len(content)
