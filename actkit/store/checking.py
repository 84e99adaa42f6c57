"""Find the damaged files of a cube, and name them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from ..errors import Fault
from ..schema import VARIABLES
from .layout import Array, Shard, array_names, array_of, cube_path, open_group, shard_region, shards

RERUN = "delete it if it is there, and rerun the extraction"


class StrictStore(LocalStore):
    """A store in which a missing or empty chunk is an error, not a field of fill values."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Return the bytes of a key; raise FileNotFoundError for a chunk that has none."""
        return _strict(key, await super().get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Do the same as :meth:`get`; zarr 3.2 may call either."""
        return _strict(key, super().get_sync(key, prototype=prototype, byte_range=byte_range))


def _strict(key: str, found: Buffer | None) -> Buffer | None:
    if key.rsplit("/", 1)[-1].startswith("c.") and (found is None or not len(found)):
        raise FileNotFoundError(key)
    return found


@dataclass(frozen=True)
class Verification:
    """What :func:`actkit.verify` found.

    Parameters
    ----------
    path
        The ``.zarr`` folder.
    files, bytes
        How many files were read, and how large they are.
    committed, samples
        Samples in committed windows, and samples in all.
    faults
        One for each damaged file; empty where the cube is sound.
    """

    path: Path
    files: int
    bytes: int
    committed: int
    samples: int
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether every committed sample is sound."""
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
        Where there is no cube, or its metadata are damaged.
    """
    folder = cube_path(path)
    group = open_group(folder)
    committed, faults = read_committed(folder, group)
    strict = zarr.open_group(StrictStore(folder, read_only=True), mode="r", use_consolidated=False)
    files = size = 0
    for name in array_names(group):
        array = array_of(strict, name)
        for shard in shards(folder, array):
            if name == "committed" or not _expected(name, array, shard, committed):
                continue
            files += 1
            size += shard.path.stat().st_size if shard.path.is_file() else 0
            faults += shard_faults(array, [shard])
    return Verification(folder, files, size, int(committed.sum()), len(committed), tuple(faults))


def read_committed(path: Path, group: zarr.Group) -> tuple[np.ndarray, list[Fault]]:
    """Read the ledger.

    Returns
    -------
    committed : numpy.ndarray
        Boolean, dims ``(sample,)``; False where the ledger is damaged.
    faults : list of Fault
    """
    array = array_of(group, "committed")
    try:
        return np.asarray(array[:], dtype=bool), []
    except Exception:  # the codecs raise what they like; each chunk is looked at alone
        committed = np.zeros(array.shape, dtype=bool)
        faults = []
        for shard in shards(path, array):
            if not shard.path.exists():  # no damage: a window that is not there
                continue
            region = shard_region(array, shard.window)
            found = shard_faults(array, [shard])
            faults += found
            if not found:
                committed[region] = np.asarray(array[region])
        return committed, faults


def shard_faults(array: Array, candidates: Iterable[Shard]) -> list[Fault]:
    """Return a fault for each file that cannot be read whole."""
    return [Fault(str(shard), what, RERUN) for shard in candidates if (what := _shard_fault(array, shard))]


def _shard_fault(array: Array, shard: Shard) -> str:
    if not shard.path.is_file():
        return "is missing"
    if shard.path.stat().st_size == 0:
        return "is empty"
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
    variable = VARIABLES.get(name)
    if variable is None or not variable.by_window:
        return True
    return bool(committed[shard_region(array, shard.window)[variable.sample_axis]].all())
