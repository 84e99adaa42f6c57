"""Arrays of a cube that are opened where they are read, and in which a damaged file raises an error."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from ..errors import CorruptError, CubeError
from .byte_ranges import LocalRanges
from .fork_safety import survive_forks
from .layout import Array, Shard, array_of, open_group, shards, window_axis
from .metadata import CHECKSUM, METADATA
from .plain_store import PlainStore
from .shard_reader import ShardReader
from .verification import StrictStore, shard_faults


class _Opened(NamedTuple):
    """An array, the reader of its shards if zarr does not have to read them, and the seal of its cube."""

    array: Array
    reader: ShardReader | None
    seal: str


class StoredArray:
    """An array of a cube that dask and xarray can slice; it can be pickled, and is opened where it is read.

    Parameters
    ----------
    folder
        The ``.zarr`` folder.
    name
        Path of the array.
    seal
        Checksum of the metadata of the cube.
    """

    def __init__(self, folder: Path, name: str, seal: str) -> None:
        self.folder = folder
        self.name = name
        self.seal = seal
        array = self._opened.array
        self.shape = array.shape
        self.dtype = np.dtype(object) if array.dtype.kind == "T" else array.dtype
        self.ndim = array.ndim

    @property
    def _opened(self) -> _Opened:
        try:
            opened = _open_array(self.folder, self.name, cube_version(self.folder))
        except OSError as error:
            raise CubeError(f"{self.folder}: can no longer be read: {error.strerror}") from error
        if opened.seal != self.seal:
            raise CubeError(f"{self.folder}: was replaced by another cube; open it again")
        return opened

    def __getitem__(self, key: Any) -> np.ndarray:
        array, reader, _ = self._opened
        try:
            return _read(array, key) if reader is None else reader[key]
        except MemoryError:  # says nothing about the files
            raise
        except Exception as error:  # each codec raises its own
            faults = shard_faults(array, self._selected_shards(array, key))
            if not faults:
                raise
            raise CorruptError(faults) from error

    def _selected_shards(self, array: Array, key: Any) -> Iterator[Shard]:
        """Yield the files that a selection reads."""
        axis, size = window_axis(array), (array.shards or array.chunks)[window_axis(array)]
        axis_key = slice(None) if key is Ellipsis else (key if isinstance(key, tuple) else (key,))[axis]
        windows = set(np.atleast_1d(np.arange(self.shape[axis])[axis_key] // size).tolist())
        return (shard for shard in shards(self.folder, array) if shard.window in windows)

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return str(self.folder), self.name, self.seal


def _read(array: Array, key: Any) -> np.ndarray:
    """Return a selection read by zarr."""
    by_arrays = isinstance(key, tuple) and sum(np.ndim(index) > 0 for index in key) > 1
    values = np.asarray(array.oindex[key] if by_arrays else array[key])
    # not every library supports NumPy's string type
    return values.astype(object) if values.dtype.kind == "T" else values


@lru_cache(maxsize=256)
def _open_array(folder: Path, name: str, version: tuple[int, ...]) -> _Opened:
    survive_forks()
    group = _open_strict(folder, version)
    assert isinstance(group.store, PlainStore)
    array = array_of(group, name)
    ranges = LocalRanges(folder, group.store.limits)
    return _Opened(array, ShardReader.of(array, ranges), str(group.attrs[CHECKSUM]))


@lru_cache(maxsize=16)
def _open_strict(folder: Path, _version: tuple[int, ...]) -> zarr.Group:
    return open_group(folder, StrictStore)


def cube_version(folder: Path) -> tuple[int, ...]:
    """Return values that identify a cube on disk: more than its modification time, which can be set.

    Raises
    ------
    CubeError
        If the cube no longer exists.
    """
    try:
        status = (folder / METADATA).stat()
    except OSError as error:
        raise CubeError(f"{folder}: can no longer be read: {error.strerror}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
