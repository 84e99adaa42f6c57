"""Open a cube as an xarray Dataset backed by dask, in which damage is an error and never a number."""

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr

from ..config import MB
from ..errors import CorruptError, CubeError, Fault, IncompleteError
from ..schema import VARIABLES
from .checking import RERUN, StrictStore, read_committed, shard_faults
from .layout import (
    CHECKSUM,
    METADATA,
    Array,
    Shard,
    array_names,
    array_of,
    cube_path,
    dims_of,
    open_group,
    shards,
    window_axis,
)

BLOCK_BYTES = 128 * MB


def open_cube(path: str | Path, *, partial: bool = False) -> xr.Dataset:
    """Open a cube.

    Parameters
    ----------
    path
        Run folder, or its ``cube.zarr``.
    partial
        Also open a cube that is still being written, or was interrupted: its committed samples.

    Returns
    -------
    xarray.Dataset
        Dims ``layer``, ``sample``, ``token``, ``hidden``; the variables of the cube format, backed by
        dask; coordinates along ``sample`` are in memory.

    Raises
    ------
    CubeError
        Where there is no cube.
    IncompleteError
        Where samples are missing and ``partial`` is False.
    CorruptError
        Where committed shards are missing or empty; on computing, also where they are damaged.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_layers=4, n_samples=6))
    >>> cube.residual.sel(layer=2).dims
    ('sample', 'token', 'hidden')
    """
    folder = cube_path(path)
    group = open_group(folder)
    committed, faults = read_committed(folder, group)
    if faults:
        raise CorruptError(faults)
    if not committed.all() and not partial:
        raise IncompleteError(
            f"{folder}: {committed.sum()} of {len(committed)} samples are committed; "
            "rerun the extraction to complete it, or open it with partial=True"
        )
    names, seal = array_names(group), str(group.attrs[CHECKSUM])
    faults = list(_absent(folder, group, names, committed))
    if faults:
        raise CorruptError(faults)
    variables: dict[str, xr.Variable] = {}
    for name in names:
        array = array_of(group, name)
        dims = dims_of(array)
        values: Any = committed
        if name != "committed":  # strictly read, windows without flags would be damage
            stored = _Stored(folder, name, seal)
            values = _lazy(stored, array, committed) if len(dims) > 1 else _read(stored)
        variables[name] = xr.Variable(dims, values, attrs=dict(array.attrs))
    data = {name for name in names if name in VARIABLES and not VARIABLES[name].coord}
    coords = {name: variables[name] for name in names if name not in data}
    hidden = {key for key in group.attrs if key in ("arrays", "coordinates")}
    attrs = {key: value for key, value in group.attrs.items() if key not in hidden}
    cube = xr.Dataset({name: variables[name] for name in names if name in data}, coords, attrs)
    cube.encoding["source"] = str(folder)
    return cube if committed.all() else cube.isel(sample=_where(committed))


def _where(committed: np.ndarray) -> slice | np.ndarray:
    indices = np.flatnonzero(committed)
    # windows are mostly committed in order; a slice then leaves the dask graph as it is
    start = int(indices[0]) if len(indices) else 0
    contiguous = len(indices) == 0 or indices[-1] - start + 1 == len(indices)
    return slice(start, start + len(indices)) if contiguous else indices


class _Stored:
    """An array of a cube that dask can slice; it is opened where it is read, so that it can travel."""

    def __init__(self, folder: Path, name: str, seal: str) -> None:
        self.folder = folder
        self.name = name
        self.seal = seal
        array = self._array
        self.shape = array.shape
        self.dtype = array.dtype
        self.ndim = array.ndim

    @property
    def _array(self) -> Array:
        try:
            array, seal = _open_array(self.folder, self.name, (self.folder / METADATA).stat().st_mtime_ns)
        except OSError as error:
            raise CubeError(f"{self.folder}: cannot be read any more: {error.strerror}") from error
        if seal != self.seal:
            raise CubeError(f"{self.folder}: was replaced by another cube; open it again")
        return array

    def __getitem__(self, key: Any) -> np.ndarray:
        array = self._array
        try:
            return np.asarray(array[key])
        except Exception as error:  # each codec raises its own
            faults = shard_faults(array, self._touched(array, key))
            if not faults:
                raise
            raise CorruptError(faults) from error

    def _touched(self, array: Array, key: Any) -> Iterator[Shard]:
        """Yield the files that a selection reads."""
        axis, size = window_axis(array), (array.shards or array.chunks)[window_axis(array)]
        within = key[axis] if isinstance(key, tuple) else slice(None)
        windows = set(np.atleast_1d(np.arange(self.shape[axis])[within] // size).tolist())
        return (shard for shard in shards(self.folder, array) if shard.window in windows)

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return str(self.folder), self.name, self.seal


@lru_cache(maxsize=256)
def _open_array(folder: Path, name: str, _version: int) -> tuple[Array, str]:
    group = zarr.open_group(StrictStore(folder, read_only=True), mode="r", use_consolidated=False)
    return array_of(group, name), str(group.attrs[CHECKSUM])


def _read(stored: _Stored) -> np.ndarray:
    values = stored[...]
    return values.astype(object) if values.dtype.kind == "T" else values


def _lazy(stored: _Stored, array: Array, committed: np.ndarray) -> da.Array:
    dims = dims_of(array)
    file = (array.shards or array.chunks)[dims.index("sample")]
    # one layer at a time where a layer is large; few and large blocks keep dask's overhead small
    layers = 1 if "hidden" in dims else stored.shape[0]
    per_sample = array.dtype.itemsize * int(
        np.prod(
            [
                layers if dim == "layer" else n
                for dim, n in zip(dims, stored.shape, strict=True)
                if dim != "sample"
            ]
        )
    )
    files = max(1, BLOCK_BYTES // (per_sample * file))
    blocks = {"layer": layers, "sample": _blocks(committed, file, files)}
    chunks = tuple(blocks.get(dim, n) for dim, n in zip(dims, stored.shape, strict=True))
    lazy: da.Array = da.from_array(  # type: ignore[no-untyped-call]
        stored,
        chunks=chunks,
        fancy=True,  # only then does dask read what a slice wants, not whole blocks
        meta=np.empty((0,) * stored.ndim, dtype=array.dtype),
    )
    return lazy


def _blocks(committed: np.ndarray, file: int, files: int) -> tuple[int, ...]:
    """Cut samples into blocks of whole files, none of which mixes committed windows with others."""
    sizes: list[int] = []
    previous = None
    for start in range(0, len(committed), file):
        state = bool(committed[start])
        size = min(file, len(committed) - start)
        if sizes and state == previous and sizes[-1] < file * files:
            sizes[-1] += size
        else:
            sizes.append(size)
        previous = state
    return tuple(sizes)


def _absent(folder: Path, group: zarr.Group, names: list[str], committed: np.ndarray) -> Iterator[Fault]:
    """Find shards of committed windows, and coordinates, that are missing or empty, from listings alone."""
    window = array_of(group, "committed").chunks[0]
    for name in names:
        if name == "committed":
            continue
        array = array_of(group, name)
        sizes = {entry.name: entry.stat().st_size for entry in os.scandir(folder / name)}
        by_window = name in VARIABLES and VARIABLES[name].by_window
        for shard in shards(folder, array):
            if by_window and not committed[shard.window * window]:
                continue
            if not sizes.get(shard.path.name):
                yield Fault(str(shard), "is empty" if shard.path.name in sizes else "is missing", RERUN)
