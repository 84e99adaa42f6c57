"""Verification of a cube: find and name the damaged files."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr

from ..errors import Fault
from ..schema import VARIABLES
from .cube_files import LocalCube, RemoteCube, files_of
from .layout import (
    Array,
    Shard,
    array_names,
    array_of,
    find_cube,
    open_group,
    shard_region,
    shards,
)
from .metadata import CHECKSUM, CHUNK_LIMIT
from .object_clients import StorageOptions
from .plain_store import CheckedStore, PlainStore
from .receipts import RECEIPTS, Receipt, read_receipt

_FLAGS_CHECKSUM_BYTES = 4
RERUN = "delete it if it exists, and rerun the extraction"


class StrictStore(PlainStore):
    """A store in which a missing or empty chunk raises an error instead of reading as fill values."""

    strict = True


@dataclass(frozen=True)
class Verification:
    """Result of :func:`actkit.verify`.

    Parameters
    ----------
    path
        The ``.zarr`` folder, or its URL.
    files, bytes
        Number of files read, and their total size in bytes.
    committed, samples
        Number of samples in committed windows, and number of all samples.
    faults
        One fault per damaged file; empty if the cube is intact.
    """

    path: Path | str
    files: int
    bytes: int
    committed: int
    samples: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether all committed samples are intact."""
        return not self.faults


def verify(path: str | Path, *, storage_options: StorageOptions | None = None) -> Verification:
    """Read every file of a cube and compare it with its checksums.

    Parameters
    ----------
    path
        Run folder, ``.zarr`` folder, or the URL of either in an object store.
    storage_options
        Options of obstore, such as ``endpoint``; credentials come from the environment.

    Returns
    -------
    Verification
        Names each missing, empty, truncated or corrupted file of the committed windows.

    Raises
    ------
    CubeError
        If there is no cube, or its metadata are damaged.
    StorageError
        If the object store cannot be read.
    """
    cube = find_cube(path, storage_options)
    group = open_group(cube)
    committed, faults = read_committed(cube, group)
    strict = open_group(cube, StrictStore)
    n_files = size = 0
    receipts = _receipts(cube, group, committed)
    faults += [receipt for receipt in receipts.values() if isinstance(receipt, Fault)]
    for name in array_names(group):
        array = array_of(strict, name)
        sizes = cube.sizes(name)
        for shard in shards(cube.root, array):
            if name == "committed" or not _expected(name, array, shard, committed):
                continue
            n_files += 1
            size += max(sizes.get(shard.path.name, 0), 0)
            receipt = receipts.get(shard.window if _by_window(name) else None)
            faults += shard_faults(cube, array, [shard]) or _foreign(cube, shard, receipt)
    where = cube.root if isinstance(cube, LocalCube) else str(cube)
    return Verification(where, n_files, size, int(committed.sum()), len(committed), tuple(faults))


def _receipts(
    cube: LocalCube | RemoteCube, group: zarr.Group, committed: np.ndarray
) -> dict[int | None, Receipt | Fault]:
    """Return the receipt of each committed window, and under None that of the coordinates."""
    window = array_of(group, "committed").chunks[0]
    seal, promised = str(group.attrs[CHECKSUM]), bool(group.attrs.get(RECEIPTS))
    receipts: dict[int | None, Receipt | Fault] = {}
    for index in (None, *np.flatnonzero(committed[::window]).tolist()):
        receipt = read_receipt(cube, index, promised=promised)
        if isinstance(receipt, Receipt):
            receipt = receipt.fault(seal, index) or receipt
        if receipt is not None:
            receipts[index] = receipt
    return receipts


def _foreign(cube: LocalCube | RemoteCube, shard: Shard, receipt: Receipt | Fault | None) -> list[Fault]:
    """Return a fault if an intact file is not the one that was committed with its window."""
    if not isinstance(receipt, Receipt):
        return []
    if receipt.files.get(str(shard)) == cube.file_entry(str(shard)):
        return []
    return [Fault(str(shard), "is not the file that was committed", RERUN)]


def read_committed(
    cube: Path | LocalCube | RemoteCube, group: zarr.Group, *, listed: bool = False
) -> tuple[np.ndarray, list[Fault]]:
    """Read the ledger.

    Parameters
    ----------
    cube
        The files of the cube, or its folder.
    group
        Its group.
    listed
        Whether to trust the listing of an object store, where flags are created once and never change.

    Returns
    -------
    committed : numpy.ndarray
        Boolean, dims ``(sample,)``; equal for all samples of a window, and False if the flags of the window
        are damaged.
    faults : list of Fault
        One fault per damaged file of flags.
    """
    files = files_of(cube)
    array = array_of(group, "committed")
    if listed and isinstance(files, RemoteCube):
        return _listed_flags(files, array)
    committed, faults = _read_flags(files, array)
    starts = np.arange(0, len(committed), array.chunks[0])
    mixed = np.logical_or.reduceat(committed, starts) & ~np.logical_and.reduceat(committed, starts)
    for shard in list(shards(files.root, array)) if mixed.any() else []:
        if mixed[shard.window]:
            committed[shard_region(array, shard.window)] = False
            faults.append(Fault(str(shard), "commits only part of its window", RERUN))
    return committed, faults


def _listed_flags(cube: RemoteCube, array: Array) -> tuple[np.ndarray, list[Fault]]:
    committed = np.zeros(array.shape, dtype=bool)
    faults = []
    sizes = cube.sizes(array.path)
    for shard in shards(cube.root, array):
        size = sizes.get(shard.path.name)
        if size is None:
            continue
        if size == array.chunks[0] + _FLAGS_CHECKSUM_BYTES:
            committed[shard_region(array, shard.window)] = True
        else:
            faults.append(Fault(str(shard), "is truncated or corrupted", RERUN))
    return committed, faults


def _read_flags(files: LocalCube | RemoteCube, array: Array) -> tuple[np.ndarray, list[Fault]]:
    """Read the stored flags, and return a fault for each damaged file."""
    try:
        return np.asarray(array[:], dtype=bool), []
    except Exception:  # each codec raises its own; read chunk by chunk to find the damaged files
        committed = np.zeros(array.shape, dtype=bool)
        faults = []
        present = files.sizes(array.path)
        for shard in shards(files.root, array):
            if shard.path.name not in present:  # not damaged: the window is not committed
                continue
            region = shard_region(array, shard.window)
            damage = shard_faults(files, array, [shard])
            faults += damage
            if not damage:
                committed[region] = np.asarray(array[region])
        return committed, faults


def shard_faults(
    cube: Path | LocalCube | RemoteCube, array: Array, candidates: Iterable[Shard]
) -> list[Fault]:
    """Return a fault for each file that cannot be read completely."""
    files = files_of(cube)
    faults = ((str(shard), _shard_fault(files, array, shard)) for shard in candidates)
    return [Fault(where, what, RERUN) for where, what in faults if what]


def _shard_fault(cube: LocalCube | RemoteCube, array: Array, shard: Shard) -> str:
    store = array.store
    limit = store.limits[array.path] if isinstance(store, CheckedStore) else CHUNK_LIMIT
    if what := cube.fault(str(shard), limit):
        return what
    try:
        array[shard_region(array, shard.window)]
    except MemoryError:  # says nothing about the file
        raise
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except Exception as error:  # crc, blosc, zstd and vlen-utf8 each raise their own
        return f"is truncated or corrupted: {' '.join(str(error).split())[:120]}"
    return ""


def _expected(name: str, array: Array, shard: Shard, committed: np.ndarray) -> bool:
    if not _by_window(name):
        return True
    return bool(committed[shard_region(array, shard.window)[VARIABLES[name].sample_axis]].all())


def _by_window(name: str) -> bool:
    return name in VARIABLES and VARIABLES[name].by_window
