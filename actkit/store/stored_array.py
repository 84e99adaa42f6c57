"""Arrays of a cube that are opened where they are read, and in which a damaged file raises an error."""

import errno
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr

from ..errors import CorruptError, CubeError, StorageError
from .cube_files import RemoteCube, files_of
from .fork_safety import survive_forks
from .layout import Array, Shard, array_of, open_group, shards, window_axis
from .metadata import CHECKSUM, METADATA
from .plain_store import CheckedStore
from .shard_reader import ShardReader
from .verification import StrictStore, shard_faults

# errors of a server or a network rather than of a file
_UNREADABLE = (errno.EIO, errno.EINVAL, errno.EACCES, errno.ENOTSUP, errno.ESTALE)


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
        The ``.zarr`` folder, or its files in an object store.
    name
        Path of the array.
    seal
        Checksum of the metadata of the cube.
    """

    def __init__(self, folder: Path | RemoteCube, name: str, seal: str) -> None:
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
            is_remote = isinstance(self.folder, RemoteCube)
            if is_remote and isinstance(error, OSError) and error.errno in _UNREADABLE:
                raise _unreadable(self.folder, error) from None
            faults = shard_faults(self.folder, array, self._selected_shards(array, key))
            if not faults:
                raise
            raise CorruptError(faults) from error

    def _selected_shards(self, array: Array, key: Any) -> Iterator[Shard]:
        """Yield the files that a selection reads."""
        axis, size = window_axis(array), (array.shards or array.chunks)[window_axis(array)]
        axis_key = slice(None) if key is Ellipsis else (key if isinstance(key, tuple) else (key,))[axis]
        windows = set(np.atleast_1d(np.arange(self.shape[axis])[axis_key] // size).tolist())
        return (shard for shard in shards(files_of(self.folder).root, array) if shard.window in windows)

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return str(self.folder), self.name, self.seal


def _unreadable(cube: Path | RemoteCube, error: OSError) -> StorageError | CubeError:
    what = f"{error.filename or cube}: {error.strerror}"
    return CubeError(f"{what}; open the cube again") if error.errno == errno.ESTALE else StorageError(what)


def _read(array: Array, key: Any) -> np.ndarray:
    """Return a selection read by zarr."""
    by_arrays = isinstance(key, tuple) and sum(np.ndim(index) > 0 for index in key) > 1
    values = np.asarray(array.oindex[key] if by_arrays else array[key])
    # not every library supports NumPy's string type
    return values.astype(object) if values.dtype.kind == "T" else values


@lru_cache(maxsize=256)
def _open_array(folder: Path | RemoteCube, name: str, version: tuple[int, ...]) -> _Opened:
    survive_forks()
    group = _open_strict(folder, version)
    assert isinstance(group.store, CheckedStore)
    array = array_of(group, name)
    ranges = files_of(folder).ranges(group.store.limits)
    return _Opened(array, ShardReader.of(array, ranges), str(group.attrs[CHECKSUM]))


@lru_cache(maxsize=16)
def _open_strict(folder: Path | RemoteCube, _version: tuple[int, ...]) -> zarr.Group:
    return open_group(folder, StrictStore)


def cube_version(folder: Path | RemoteCube) -> tuple[int, ...]:
    """Return values that identify a cube on disk: more than its modification time, which can be set.

    Raises
    ------
    CubeError
        If the cube no longer exists.
    """
    if isinstance(folder, RemoteCube):  # reads refer to the objects that were listed when it was opened
        return ()
    try:
        status = (folder / METADATA).stat()
    except OSError as error:
        raise CubeError(f"{folder}: can no longer be read: {error.strerror}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
