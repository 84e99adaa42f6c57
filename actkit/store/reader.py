"""Open a cube as an xarray Dataset backed by dask, in which damage is an error and never a number."""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from ..canonical import Cube, as_cube, sample_of
from ..errors import CorruptError, CubeError, Fault, IncompleteError
from ..regular_files import MB
from ..schema import DIMS, VARIABLES, WIDTH, TokenKind
from .fork_safety import survive_forks
from .layout import (
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
from .metadata import CHECKSUM, METADATA
from .verification import RERUN, StrictStore, read_committed, shard_faults
from .xarray_copies import is_copy, open_copy

BLOCK_BYTES = 128 * MB
AT_ONCE = 2**14  # samples, of which coordinates are read at once, so that they are seen when a cube is shown


def open_cube(path: str | Path, *, group: str = "", partial: bool = False) -> xr.Dataset:
    """Open a cube.

    Parameters
    ----------
    path
        Run folder, or its ``cube.zarr``; or a folder that :meth:`xarray.Dataset.to_zarr` made of a cube or
        of a part of it, which has no checksums: the attribute ``copy`` says so.
    group
        ``"vision"`` for what the blocks of the vision tower gave, with its own ``layer``, ``token`` and
        ``hidden``, and the samples of the cube.
    partial
        Also open a cube that is still being written, or was interrupted: its committed samples.

    Returns
    -------
    xarray.Dataset
        Dims ``layer``, ``sample``, ``token``, ``hidden``; the variables of the cube format, backed by
        dask; coordinates along ``sample`` are in memory, those of large cubes once they are used.

    Raises
    ------
    CubeError
        Where there is no cube, or no such group in it.
    IncompleteError
        Where samples are missing and ``partial`` is False.
    CorruptError
        Where committed shards are missing or empty; on use, also where they are damaged.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_layers=4, n_samples=6))
    >>> cube.residual.sel(layer=2).dims
    ('sample', 'token', 'hidden')
    """
    folder = cube_path(path)
    if is_copy(folder):
        return as_cube(open_copy(folder, group))
    root = open_group(folder)
    committed, faults = read_committed(folder, root)
    if faults:
        raise CorruptError(faults)
    if not committed.all() and not partial:
        raise IncompleteError(
            f"{folder}: {committed.sum()} of {len(committed)} samples are committed; "
            "rerun the extraction to complete it, or open it with partial=True"
        )
    names, seal = array_names(root), str(root.attrs[CHECKSUM])
    faults = list(_absent(folder, root, names, committed))
    if faults:
        raise CorruptError(faults)
    groups = {name.rpartition("/")[0] for name in names}
    if group not in groups:
        what = f"has no group `{group}`"
        raise CubeError(f"{folder}: {what}; it has {', '.join(sorted(groups - {''})) or 'no groups'}")
    own = [name for name in names if name.rpartition("/")[0] == group]
    if group:  # whose samples are those of the cube
        own += [name for name in names if "/" not in name and _is_of_samples(root, name)]
    own.sort(key=_place)
    variables: dict[str, xr.Variable] = {}
    data: set[str] = set()
    for name in own:
        array = array_of(root, name)
        variable = VARIABLES.get(name)
        short = name.rsplit("/", 1)[-1]
        if short in variables:  # the group's own comes first
            continue
        if variable is not None and not variable.coord:
            data.add(short)
        values: Any = committed
        if array.ndim > 1:
            values = _lazy(_Stored(folder, name, seal), array, committed)
        elif short in DIMS:  # of which xarray makes an index at once
            values = _Stored(folder, name, seal)[...]
        elif name != "committed":  # strictly read, windows without flags would be damage
            by_window = variable is not None and variable.by_window
            column = _Column(_Stored(folder, name, seal), array, committed if by_window else None)
            values = column.lazy if len(committed) > AT_ONCE else column.values
        variables[short] = xr.Variable(dims_of(array), values, attrs=_plain_attrs(array.attrs))
    hidden = {key for key in root.attrs if key in ("arrays", "coordinates")}
    attrs = {key: value for key, value in _plain_attrs(root.attrs).items() if key not in hidden}
    cube = xr.Dataset(
        {name: variables[name] for name in variables if name in data},
        {name: variables[name] for name in variables if name not in data},
        attrs,
    )
    if "hidden" in cube.sizes:
        cube.attrs[WIDTH] = cube.sizes["hidden"]
    cube.encoding["source"] = str(folder)
    return cube if committed.all() else cube.isel(sample=_where(committed))


def token_strings(cube: Cube, sample: int) -> list[str]:
    """Return the characters of each token of a sample.

    Parameters
    ----------
    cube
        From :func:`open_cube`, or a part of it.
    sample
        Its coordinate ``sample``.

    Returns
    -------
    list of str
        One a position. Put together they are the prompt, special tokens included; a character that is
        spread over several tokens stands whole at the last of them.

    Raises
    ------
    KeyError
        Where the cube has no such sample.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> token_strings(open_cube(write_cube(n_tokens=3)), 7)
    ['ن0', 'ن1', 'ن2']
    """
    own = sample_of(as_cube(cube), sample, "token_text", "token_kind")
    return [str(text) for text in own.token_text.values[own.token_kind.values != TokenKind.PAD]]


def _plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes that NetCDF can hold too: it has no true and false."""
    return {name: int(value) if isinstance(value, bool) else value for name, value in attrs.items()}


def _place(name: str) -> int:
    """Put first what tells samples apart: of many coordinates, xarray shows only some."""
    return {"language": 0, "sample_id": 1}.get(name, 3 if name in VARIABLES else 2)


def _is_of_samples(root: zarr.Group, name: str) -> bool:
    """Return whether an array describes samples, independent of the captured components."""
    variable = VARIABLES.get(name)
    return dims_of(array_of(root, name)) == ("sample",) and (variable is None or variable.coord)


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
        self.dtype = np.dtype(object) if array.dtype.kind == "T" else array.dtype
        self.ndim = array.ndim

    @property
    def _array(self) -> Array:
        try:
            array, seal = _open_array(self.folder, self.name, cube_version(self.folder))
        except OSError as error:
            raise CubeError(f"{self.folder}: cannot be read any more: {error.strerror}") from error
        if seal != self.seal:
            raise CubeError(f"{self.folder}: was replaced by another cube; open it again")
        return array

    def __getitem__(self, key: Any) -> np.ndarray:
        array = self._array
        try:
            return _plain(np.asarray(array[key]))
        except Exception as error:  # each codec raises its own
            faults = shard_faults(array, self._touched(array, key))
            if not faults:
                raise
            raise CorruptError(faults) from error

    def _touched(self, array: Array, key: Any) -> Iterator[Shard]:
        """Yield the files that a selection reads."""
        axis, size = window_axis(array), (array.shards or array.chunks)[window_axis(array)]
        within = slice(None) if key is Ellipsis else (key if isinstance(key, tuple) else (key,))[axis]
        windows = set(np.atleast_1d(np.arange(self.shape[axis])[within] // size).tolist())
        return (shard for shard in shards(self.folder, array) if shard.window in windows)

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return str(self.folder), self.name, self.seal


@lru_cache(maxsize=256)
def _open_array(folder: Path, name: str, version: tuple[int, ...]) -> tuple[Array, str]:
    survive_forks()
    group = _open_strict(folder, version)
    return array_of(group, name), str(group.attrs[CHECKSUM])


@lru_cache(maxsize=16)
def _open_strict(folder: Path, _version: tuple[int, ...]) -> zarr.Group:
    return open_group(folder, StrictStore)


def cube_version(folder: Path) -> tuple[int, ...]:
    """Return what tells a cube from another one in its place: not its time alone, which can be set.

    Raises
    ------
    CubeError
        Where it is gone.
    """
    try:
        status = (folder / METADATA).stat()
    except OSError as error:
        raise CubeError(f"{folder}: cannot be read any more: {error.strerror}") from error
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class _Column(BackendArray):
    """Values along `sample`, which can wait to be read, all at once, until any of them is used."""

    def __init__(self, stored: _Stored, array: Array, committed: np.ndarray | None) -> None:
        self.shape, self.dtype = stored.shape, stored.dtype
        self._stored, self._array, self._committed = stored, array, committed

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        every = indexing.IndexingSupport.VECTORIZED
        return indexing.explicit_indexing_adapter(key, self.shape, every, self.values.__getitem__)

    @property
    def lazy(self) -> Any:
        """The values as xarray keeps those of files."""
        return indexing.MemoryCachedArray(indexing.LazilyIndexedArray(self))  # type: ignore[no-untyped-call]

    @cached_property
    def values(self) -> np.ndarray:
        """The values."""
        if self._committed is None:
            return self._stored[...]
        return _read_committed(self._stored, self._array, self._committed)


def _plain(values: np.ndarray) -> np.ndarray:
    """Return strings as objects: not every reader knows NumPy's own strings."""
    return values.astype(object) if values.dtype.kind == "T" else values


def _read_committed(stored: _Stored, array: Array, committed: np.ndarray) -> np.ndarray:
    """Read what committed windows hold of a coordinate; the rest stays empty."""
    if committed.all():
        return stored[...]
    values = np.full(array.shape, "" if stored.dtype == object else 0, dtype=stored.dtype)
    size = (array.shards or array.chunks)[0]
    for start in range(0, len(values), size):
        if committed[start]:
            values[start : start + size] = stored[start : start + size]
    return values


def _lazy(stored: _Stored, array: Array, committed: np.ndarray) -> da.Array:
    dims = dims_of(array)
    file = (array.shards or array.chunks)[dims.index("sample")]
    # one layer at a time where a layer is large; few and large blocks keep dask's overhead small
    layers = 1 if "hidden" in dims else stored.shape[0]
    per_sample = stored.dtype.itemsize * int(
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
        meta=np.empty((0,) * stored.ndim, dtype=stored.dtype),
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


def _sizes(folder: Path) -> dict[str, int]:
    """Return how large the files of a folder are; what a writer renames meanwhile is left out."""
    sizes: dict[str, int] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                regular = entry.is_file(follow_symlinks=False)
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size if regular else -1
    return sizes


def _absent(folder: Path, group: zarr.Group, names: list[str], committed: np.ndarray) -> Iterator[Fault]:
    """Find shards of committed windows, and coordinates, that are missing or empty, from listings alone."""
    window = array_of(group, "committed").chunks[0]
    for name in names:
        if name == "committed":
            continue
        array = array_of(group, name)
        sizes = _sizes(folder / name)
        by_window = name in VARIABLES and VARIABLES[name].by_window
        for shard in shards(folder, array):
            if by_window and not committed[shard.window * window]:
                continue
            size = sizes.get(shard.path.name)
            if size is None or size <= 0:
                whats = {None: "is missing", 0: "is empty"}
                yield Fault(str(shard), whats.get(size, "is not a regular file"), RERUN)
