"""Cubes as xarray Datasets backed by dask, in which reading a damaged file raises an error."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import BackendArray
from xarray.core import indexing

from ..canonical import Cube, as_cube, sample_of
from ..errors import CorruptError, CubeError, Fault, IncompleteError, StorageError
from ..regular_files import MB
from ..schema import DIMS, VARIABLES, WIDTH, K, TokenKind
from .cube_files import LocalCube, RemoteCube
from .layout import Array, array_names, array_of, cube_path, dims_of, find_cube, open_group, shards
from .lazy_values import dask_values, indexed_values
from .metadata import ARRAYS, CHECKSUM
from .object_clients import StorageOptions
from .stored_array import StoredArray
from .verification import RERUN, read_committed
from .xarray_copies import is_copy, open_copy

BLOCK_BYTES = 128 * MB
# padding included; the memory of larger blocks returns to the system after each, which costs CPU time
TOKEN_BLOCK_BYTES = 16 * MB
EAGER_SAMPLES = 2**14  # coordinates of up to so many samples are read at once, so that their values are shown


def open_cube(
    path: str | Path,
    *,
    group: str = "",
    partial: bool = False,
    storage_options: StorageOptions | None = None,
    cache: str | Path | None = None,
) -> xr.Dataset:
    """Open a cube.

    Parameters
    ----------
    path
        Run folder, or its ``cube.zarr``; the URL of either in an object store (``s3://``, ``gs://``,
        ``az://``); or a copy of a cube or of a part of it, written by
        :meth:`xarray.Dataset.to_zarr`, which has no checksums and is marked by the attribute ``copy``.
    group
        ``"vision"`` for the outputs of the blocks of the vision tower, with separate ``layer``, ``token`` and
        ``hidden`` axes and the samples of the cube.
    partial
        Whether to open a cube that is being written or was interrupted, with its committed samples.
    storage_options
        Options of obstore for a URL, such as ``endpoint``; credentials come from the environment.
    cache
        Local folder in which parts of a remote cube are kept once they were read; nothing is removed from it.

    Returns
    -------
    xarray.Dataset
        Dims ``layer``, ``sample``, ``token``, ``hidden``; the variables of the cube format, backed by
        dask. Coordinates along ``sample`` are in memory; those of large or remote cubes are read on first
        use.

    Raises
    ------
    CubeError
        If there is no cube, or it has no such group; on use, also if a remote cube was replaced.
    IncompleteError
        If samples are missing and ``partial`` is False.
    CorruptError
        If committed shards are missing or empty; on use, also if they are damaged.
    StorageError
        If an object store cannot be read.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_layers=4, n_samples=6))
    >>> cube.residual.sel(layer=2).dims
    ('sample', 'token', 'hidden')
    """
    return read_cube(path, group, partial=partial, storage_options=storage_options, cache=cache)


def read_cube(
    path: str | Path,
    group: str = "",
    *,
    partial: bool = False,
    chunked: bool = True,
    storage_options: StorageOptions | None = None,
    cache: str | Path | None = None,
) -> xr.Dataset:
    """Open a cube; parameters and errors as for :func:`open_cube`.

    Parameters
    ----------
    path, group, partial, storage_options, cache
        As for :func:`open_cube`.
    chunked
        Whether values are dask arrays; otherwise xarray reads them when they are used.
    """
    files = find_cube(path, storage_options, cache)
    folder = files.root if isinstance(files, LocalCube) else files
    if isinstance(folder, Path) and is_copy(folder):
        copy = open_copy(folder, group, chunked=chunked)
        return as_cube(copy) if chunked else copy
    with _reading(files):
        root = open_group(folder)
        committed, faults = read_committed(folder, root, listed=True)
    if faults:
        raise CorruptError(faults)
    if not committed.all() and not partial:
        raise IncompleteError(
            f"{folder}: {committed.sum()} of {len(committed)} samples are committed; "
            "rerun the extraction to complete it, or open it with partial=True"
        )
    faults = list(_absent(files, root, committed))
    if faults:
        raise CorruptError(faults)
    cube = _dataset(folder, root, _group_paths(folder, root, group), committed, chunked)
    return cube if committed.all() else cube.isel(sample=_where(committed))


def open_windows(path: Path, windows: Iterable[int]) -> xr.Dataset:
    """Open the samples of some windows, all committed, of a cube whose others other processes write."""
    folder = cube_path(path)
    root = open_group(folder)
    size, count = array_of(root, "committed").chunks[0], root["committed"].shape[0]  # type: ignore[union-attr]
    chosen = np.zeros(count, dtype=bool)
    for window in windows:
        chosen[window * size : (window + 1) * size] = True
    cube = _dataset(folder, root, _group_paths(folder, root, ""), chosen, chunked=True)
    return cube.isel(sample=_where(chosen))


def group_names(path: str | Path, storage_options: StorageOptions | None = None) -> list[str]:
    """Return the names of the groups of a cube, such as ``vision``.

    Raises
    ------
    CubeError
        As for :func:`open_cube`.
    """
    files = find_cube(path, storage_options)
    if isinstance(files, LocalCube) and is_copy(files.root):
        return []
    return sorted({name.rpartition("/")[0] for name in array_names(open_group(files))} - {""})


@contextmanager
def _reading(files: LocalCube | RemoteCube) -> Iterator[None]:
    """Turn errors of an object store into errors that say that nothing is known to be damaged."""
    try:
        yield
    except OSError as error:
        if isinstance(files, LocalCube):
            raise
        raise StorageError(f"cannot read {error.filename or files}: {error.strerror or error}") from None


def _group_paths(folder: Path | RemoteCube, root: zarr.Group, group: str) -> dict[str, str]:
    """Return the paths of the arrays of a group by name, in the order in which they are shown."""
    names = array_names(root)
    groups = {name.rpartition("/")[0] for name in names}
    if group not in groups:
        what = f"has no group `{group}`"
        raise CubeError(f"{folder}: {what}; it has {', '.join(sorted(groups - {''})) or 'no groups'}")
    in_group = [name for name in names if name.rpartition("/")[0] == group]
    if group:  # its samples are those of the cube
        in_group += [name for name in names if "/" not in name and _is_of_samples(root, name)]
    paths: dict[str, str] = {}
    for path in sorted(in_group, key=_rank):
        paths.setdefault(path.rpartition("/")[2], path)  # the arrays of the group precede those of the cube
    return paths


def _dataset(
    folder: Path | RemoteCube,
    root: zarr.Group,
    paths: Mapping[str, str],
    committed: np.ndarray,
    chunked: bool,
) -> xr.Dataset:
    """Return the arrays at some paths as a Dataset of all samples, committed or not."""
    data: dict[str, xr.Variable] = {}
    coords: dict[str, xr.Variable] = {}
    for name, path in paths.items():
        array = array_of(root, path)
        stored = StoredArray(folder, path, str(root.attrs[CHECKSUM]))
        values = _values(stored, array, committed, chunked)
        variable = xr.Variable(dims_of(array), values, attrs=_plain_attrs(array.attrs))
        if not chunked and array.ndim > 1:
            blocks = zip(variable.dims, _chunks(stored, array, committed), strict=True)
            variable.encoding["preferred_chunks"] = {dim: max(sizes) for dim, sizes in blocks}
        is_coord = path not in VARIABLES or VARIABLES[path].coord
        (coords if is_coord else data)[name] = variable
    attrs = _plain_attrs(root.attrs)
    attrs = {name: value for name, value in attrs.items() if name not in (ARRAYS, "coordinates")}
    cube = xr.Dataset(data, coords, attrs)
    if "hidden" in cube.sizes:
        cube.attrs[WIDTH] = cube.sizes["hidden"]
    cube.encoding["source"] = str(folder)
    return cube


def _values(stored: StoredArray, array: Array, committed: np.ndarray, chunked: bool) -> Any:
    """Return the values of an array, in memory or lazily."""
    if stored.name == "committed":  # the strict store would report windows without flags as damage
        return committed
    if array.ndim > 1:
        return dask_values(stored, _chunks(stored, array, committed)) if chunked else indexed_values(stored)
    if stored.name.rpartition("/")[2] in DIMS:  # xarray builds an index of it at once
        return stored[...]
    by_window = stored.name in VARIABLES and VARIABLES[stored.name].by_window
    column = _Column(stored, array, committed if by_window else None)
    is_remote = isinstance(stored.folder, RemoteCube)  # each file is a request
    return column.lazy if is_remote or len(committed) > EAGER_SAMPLES else column.values


def token_strings(cube: Cube, sample: int) -> list[str]:
    """Return the characters of each token of a sample.

    Parameters
    ----------
    cube
        From :func:`open_cube`, or a part of it.
    sample
        Value of the coordinate ``sample``.

    Returns
    -------
    list of str
        One string per position. Concatenated, they are the prompt, including special tokens; a character
        that is split across several tokens appears whole at the last of them.

    Raises
    ------
    KeyError
        If the cube has no such sample.

    Examples
    --------
    >>> from actkit.testing import write_cube
    >>> token_strings(open_cube(write_cube(n_tokens=3)), 7)
    ['ن0', 'ن1', 'ن2']
    """
    tokens = sample_of(as_cube(cube), sample, "token_text", "token_kind")
    return [str(text) for text in tokens.token_text.values[tokens.token_kind.values != TokenKind.PAD]]


def _plain_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes that NetCDF can also store, with booleans as integers."""
    return {name: int(value) if isinstance(value, bool) else value for name, value in attrs.items()}


def _rank(name: str) -> int:
    """Return a sort key that puts identifying coordinates first, because xarray shows only a few."""
    return {"language": 0, "sample_id": 1}.get(name, 3 if name in VARIABLES else 2)


def _is_of_samples(root: zarr.Group, name: str) -> bool:
    """Return whether an array describes samples, independent of the captured components."""
    variable = VARIABLES.get(name)
    return dims_of(array_of(root, name)) == ("sample",) and (variable is None or variable.coord)


def _where(committed: np.ndarray) -> slice | np.ndarray:
    indices = np.flatnonzero(committed)
    # windows are usually committed in order, and a slice then keeps the dask graph small
    start = int(indices[0]) if len(indices) else 0
    contiguous = len(indices) == 0 or indices[-1] - start + 1 == len(indices)
    return slice(start, start + len(indices)) if contiguous else indices


class _Column(BackendArray):
    """Values along `sample`, which can be read lazily: all of them when the first is used."""

    def __init__(self, stored: StoredArray, array: Array, committed: np.ndarray | None) -> None:
        self.shape, self.dtype = stored.shape, stored.dtype
        self._stored, self._array, self._committed = stored, array, committed

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        support = indexing.IndexingSupport.VECTORIZED
        return indexing.explicit_indexing_adapter(key, self.shape, support, self.values.__getitem__)

    @property
    def lazy(self) -> Any:
        """The values, wrapped as xarray wraps values of files."""
        return indexing.MemoryCachedArray(indexing.LazilyIndexedArray(self))  # type: ignore[no-untyped-call]

    @cached_property
    def values(self) -> np.ndarray:
        """The values."""
        if self._committed is None:
            return self._stored[...]
        return _read_committed(self._stored, self._array, self._committed)


def _read_committed(stored: StoredArray, array: Array, committed: np.ndarray) -> np.ndarray:
    """Read a coordinate of committed windows; the rest stays empty."""
    if committed.all():
        return stored[...]
    values = np.full(array.shape, "" if stored.dtype == object else 0, dtype=stored.dtype)
    size = (array.shards or array.chunks)[0]
    for start in range(0, len(values), size):
        if committed[start]:
            values[start : start + size] = stored[start : start + size]
    return values


def _chunks(stored: StoredArray, array: Array, committed: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """Return sizes of dask's chunks along each axis."""
    sizes = dict(zip(dims_of(array), array.shape, strict=True))
    file = (array.shards or array.chunks)[list(sizes).index("sample")]
    item_bytes = 8 if array.dtype.kind == "T" else array.dtype.itemsize
    # large variables are read one layer at a time; few and large blocks keep dask's overhead small
    is_vector = not {"hidden", K}.isdisjoint(sizes)
    by_layer = (is_vector and "token" in sizes) or prod(array.shape) * item_bytes > BLOCK_BYTES
    layers = 1 if by_layer and is_vector else sizes.get("layer", 1)
    others = prod(size for dim, size in sizes.items() if dim not in ("layer", "sample"))
    sample_bytes = max(item_bytes * layers * others, 1)
    samples = max(1, BLOCK_BYTES // (sample_bytes * file)) * file
    if {"token", "hidden"} <= set(sizes) and not isinstance(stored.folder, RemoteCube):
        # files are divided, unless each part of one is a request
        inner = array.chunks[list(sizes).index("sample")]
        samples = min(samples, max(TOKEN_BLOCK_BYTES // sample_bytes // inner, 1) * inner)
    blocks: dict[str, tuple[int, ...]] = {dim: (size,) for dim, size in sizes.items()}
    if layers and "layer" in sizes:
        blocks["layer"] = (layers,) * (sizes["layer"] // layers)
    blocks["sample"] = _blocks(committed, file, samples)
    return tuple(blocks.values())


def _blocks(committed: np.ndarray, file: int, most: int) -> tuple[int, ...]:
    """Return sizes of blocks of up to so many samples, none of which mixes committed and uncommitted windows.

    Blocks larger than a file consist of whole files, and no smaller one extends over two files.
    """
    sizes: list[int] = []
    previous = None
    for start in range(0, len(committed), file):
        state = bool(committed[start])
        size = min(file, len(committed) - start)
        if sizes and state == previous and sizes[-1] + size <= most:
            sizes[-1] += size
        else:
            sizes += [min(most, size - done) for done in range(0, size, most)]
        previous = state
    return tuple(sizes)


def _absent(files: LocalCube | RemoteCube, group: zarr.Group, committed: np.ndarray) -> Iterator[Fault]:
    """Find missing and empty files of committed windows and coordinates, using only folder listings."""
    window = array_of(group, "committed").chunks[0]
    for name in array_names(group):
        if name == "committed":
            continue
        array = array_of(group, name)
        sizes = files.sizes(name)
        by_window = name in VARIABLES and VARIABLES[name].by_window
        for shard in shards(files.root, array):
            if by_window and not committed[shard.window * window]:
                continue
            size = sizes.get(shard.path.name)
            if size is None or size <= 0:
                whats = {None: "is missing", 0: "is empty"}
                yield Fault(str(shard), whats.get(size, "is not a regular file"), RERUN)
