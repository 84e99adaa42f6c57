"""Verification of a cube: find and name the damaged files."""

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.core.buffer import Buffer

from ..errors import Fault
from ..regular_files import file_fault
from ..schema import VARIABLES
from .folders import Folder
from .layout import (
    Array,
    Shard,
    array_names,
    array_of,
    cube_path,
    open_group,
    shard_region,
    shards,
)
from .metadata import CHECKSUM, CHUNK_LIMIT
from .plain_store import PlainStore
from .receipts import RECEIPTS, Receipt, file_entry, read_receipt

RERUN = "delete it if it exists, and rerun the extraction"


class StrictStore(PlainStore):
    """A store in which a missing or empty chunk raises an error instead of reading as fill values."""

    def _accepted(self, key: str, content: Buffer | None) -> Buffer | None:
        if key.rsplit("/", 1)[-1].startswith("c.") and (content is None or not len(content)):
            raise FileNotFoundError(key)
        return super()._accepted(key, content)


@dataclass(frozen=True)
class Verification:
    """Result of :func:`actkit.verify`.

    Parameters
    ----------
    path
        The ``.zarr`` folder.
    files, bytes
        Number of files read, and their total size in bytes.
    committed, samples
        Number of samples in committed windows, and number of all samples.
    faults
        One fault per damaged file; empty if the cube is intact.
    """

    path: Path
    files: int
    bytes: int
    committed: int
    samples: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether all committed samples are intact."""
        return not self.faults


def verify(path: str | Path) -> Verification:
    """Read every file of a cube and compare it with its checksums.

    Parameters
    ----------
    path
        Run folder, or ``.zarr`` folder.

    Returns
    -------
    Verification
        Names each missing, empty, truncated or corrupted file of the committed windows.

    Raises
    ------
    CubeError
        If there is no cube, or its metadata are damaged.
    """
    folder = cube_path(path)
    group = open_group(folder)
    committed, faults = read_committed(folder, group)
    strict = open_group(folder, StrictStore)
    files = size = 0
    receipts = _receipts(folder, group, committed)
    faults += [receipt for receipt in receipts.values() if isinstance(receipt, Fault)]
    for name in array_names(group):
        array = array_of(strict, name)
        for shard in shards(folder, array):
            if name == "committed" or not _expected(name, array, shard, committed):
                continue
            files += 1
            size += shard.path.stat().st_size if shard.path.is_file() else 0
            damage = shard_faults(array, [shard])
            faults += damage or _foreign(shard, receipts.get(shard.window if _by_window(name) else None))
    return Verification(folder, files, size, int(committed.sum()), len(committed), tuple(faults))


def _receipts(path: Path, group: zarr.Group, committed: np.ndarray) -> dict[int | None, Receipt | Fault]:
    """Return the receipt of each committed window, and under None that of the coordinates."""
    window = array_of(group, "committed").chunks[0]
    seal, promised = str(group.attrs[CHECKSUM]), bool(group.attrs.get(RECEIPTS))
    receipts: dict[int | None, Receipt | Fault] = {}
    with closing(Folder(path)) as folder:
        for index in (None, *np.flatnonzero(committed[::window]).tolist()):
            receipt = read_receipt(folder, index, promised=promised)
            if isinstance(receipt, Receipt):
                receipt = receipt.fault(seal, index) or receipt
            if receipt is not None:
                receipts[index] = receipt
    return receipts


def _foreign(shard: Shard, receipt: Receipt | Fault | None) -> list[Fault]:
    """Return a fault if an intact file is not the one that was committed with its window."""
    if not isinstance(receipt, Receipt):
        return []
    if receipt.files.get(str(shard)) == file_entry(shard.path):
        return []
    return [Fault(str(shard), "is not the file that was committed", RERUN)]


def read_committed(path: Path, group: zarr.Group) -> tuple[np.ndarray, list[Fault]]:
    """Read the ledger.

    Returns
    -------
    committed : numpy.ndarray
        Boolean, dims ``(sample,)``; equal for all samples of a window, and False if the flags of the window
        are damaged.
    faults : list of Fault
        One fault per damaged file of flags.
    """
    array = array_of(group, "committed")
    committed, faults = _read_flags(path, array)
    starts = np.arange(0, len(committed), array.chunks[0])
    mixed = np.logical_or.reduceat(committed, starts) & ~np.logical_and.reduceat(committed, starts)
    for shard in list(shards(path, array)) if mixed.any() else []:
        if mixed[shard.window]:
            committed[shard_region(array, shard.window)] = False
            faults.append(Fault(str(shard), "commits only part of its window", RERUN))
    return committed, faults


def _read_flags(path: Path, array: Array) -> tuple[np.ndarray, list[Fault]]:
    """Read the stored flags, and return a fault for each damaged file."""
    try:
        return np.asarray(array[:], dtype=bool), []
    except Exception:  # each codec raises its own; read chunk by chunk to find the damaged files
        committed = np.zeros(array.shape, dtype=bool)
        faults = []
        for shard in shards(path, array):
            if not os.path.lexists(shard.path):  # not damaged: the window is not committed
                continue
            region = shard_region(array, shard.window)
            damage = shard_faults(array, [shard])
            faults += damage
            if not damage:
                committed[region] = np.asarray(array[region])
        return committed, faults


def shard_faults(array: Array, candidates: Iterable[Shard]) -> list[Fault]:
    """Return a fault for each file that cannot be read completely."""
    return [Fault(str(shard), what, RERUN) for shard in candidates if (what := _shard_fault(array, shard))]


def _shard_fault(array: Array, shard: Shard) -> str:
    store = array.store
    limit = store.limits[array.path] if isinstance(store, PlainStore) else CHUNK_LIMIT
    if what := file_fault(shard.path, limit):
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
