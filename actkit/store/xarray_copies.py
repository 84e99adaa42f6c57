"""Copies of cubes, or of parts of cubes, that xarray wrote: they have no checksums and no ledger."""

import errno
import os
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from ..errors import CorruptError, CubeError, Fault
from ..regular_files import IrregularError, file_fault, read_regular
from .lazy_values import dask_values, indexed_values
from .metadata import (
    METADATA,
    METADATA_BYTES,
    Document,
    codec_faults,
    compression,
    coord_faults,
    file_limit,
    file_shape,
    is_array,
    is_count,
    read_document,
)
from .plain_store import PlainStore

COPY = "copy"  # attribute of a Dataset opened from a copy
AGAIN = "write the copy again"
_SEPARATOR = re.compile(rb'"separator"\s*:\s*"\."')


def is_copy(folder: Path) -> bool:
    """Return whether a Zarr group was written by xarray rather than by actkit.

    Chunk keys of cubes have the separator ``.``, those of xarray ``/``. About twenty arrays record the
    separator, so damage to some of them cannot make a cube look like a copy.
    """
    arrays = sorted(folder.glob(f"*/{METADATA}"), key=lambda path: path.parent.name != "committed")
    return bool(arrays) and not any(_SEPARATOR.search(_read(path)) for path in arrays)


def open_copy(folder: Path, group: str, *, chunked: bool = True) -> xr.Dataset:
    """Open a copy that :meth:`xarray.Dataset.to_zarr` wrote, as xarray does.

    All metadata are checked before any memory that they ask for is allocated.

    Parameters
    ----------
    folder
        The ``.zarr`` folder.
    group
        Path of a group in it; empty for its root.
    chunked
        Whether values are dask arrays; otherwise xarray reads them when they are used.

    Raises
    ------
    CubeError
        If the folder is not a copy of a cube, or xarray cannot open it.
    CorruptError
        If metadata or coordinates are damaged, irregular files, or claim impossible sizes; on use, also if
        chunks do.
    """
    documents = _documents(folder)
    limits = {name: file_limit(document) for name, document in documents.items()}
    compressions = {name: compression(document) for name, document in documents.items()}
    store = _CopyStore(folder, limits=limits, compressions=compressions)
    try:
        copy = xr.open_dataset(
            store,  # type: ignore[arg-type]
            engine="zarr",
            group=group or None,
            consolidated=False,
            chunks=None,
            cache=False,
        )
    except MemoryError:  # says nothing about the files
        raise
    except Exception as error:  # each codec raises its own
        indices = (
            name
            for name, document in documents.items()
            if document.get("dimension_names") == [name.rpartition("/")[2]]
        )
        faults = [fault for name in indices for fault in _damaged(store, name, ())]
        if faults:
            raise CorruptError(faults) from error
        raise CubeError(f"{folder}: cannot be opened by xarray: {error}") from error
    if "actkit_format" not in copy.attrs and not group:
        raise CubeError(
            f"{folder}: is neither a cube nor a copy of one; open it with xarray.open_zarr, whose result "
            "every statistic accepts"
        )
    lazy: dict[str, Any] = {
        str(name): _lazy(variable, _Stored(store, f"{group}/{name}".lstrip("/"), variable), chunked)
        for name, variable in copy.variables.items()
        if name not in copy.indexes
    }
    copy = copy.assign({name: lazy[name] for name in lazy if name in copy.data_vars}).assign_coords(
        {name: lazy[name] for name in lazy if name in copy.coords}
    )
    attrs = {name: value for name, value in copy.attrs.items() if name not in ("arrays", "coordinates")}
    copy.attrs = attrs | {COPY: "written by xarray: without checksums or ledger"}
    copy.encoding["source"] = str(folder)
    return copy


class _CopyStore(PlainStore):
    """A store that does not follow links to folders, which are not checked when a copy is opened."""

    def _check(self, key: str) -> None:
        if os.path.realpath(self.root / key) != os.path.join(os.path.realpath(self.root), key):
            raise IrregularError(errno.ELOOP, f"{key} lies behind a link, which is not followed", key)
        super()._check(key)


class _Stored:
    """A variable of a copy that dask can slice; reading a damaged file raises an error that names it."""

    def __init__(self, store: PlainStore, name: str, variable: xr.Variable) -> None:
        self.shape, self.dtype, self.ndim = variable.shape, variable.dtype, variable.ndim
        self.chunks = tuple(variable.encoding["preferred_chunks"][dim] for dim in variable.dims)
        self._store, self._name, self._variable = store, name, variable

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self._variable[key].values)
        except MemoryError:  # says nothing about the files
            raise
        except Exception as error:  # each codec raises its own
            faults = list(_damaged(self._store, self._name, key))
            if not faults:
                raise
            raise CorruptError(faults) from error


def _lazy(variable: xr.Variable, stored: _Stored, chunked: bool) -> xr.Variable:
    # without a name from the contents, because another copy may replace this one at the same path
    values = dask_values(stored, stored.chunks, name=False) if chunked else indexed_values(stored)
    return xr.Variable(variable.dims, values, variable.attrs, variable.encoding)


def _damaged(store: PlainStore, name: str, key: tuple[Any, ...]) -> Iterator[Fault]:
    """Yield a fault for each file that a selection of an array reads and that cannot be read completely."""
    array = zarr.open_array(store, path=name, mode="r", zarr_format=3)
    sizes = array.shards or array.chunks
    whole = (slice(None),) * (array.ndim - len(key))
    chunk_indices = [
        sorted({index // size for index in _indices(part, length)})
        for part, length, size in zip((*key, *whole), array.shape, sizes, strict=True)
    ]
    for chunk in product(*chunk_indices):
        path = f"{name}/{array.metadata.encode_chunk_key(chunk)}"
        file = store.root / path
        # a missing file reads as fill values
        what = file_fault(file, store.limits[name]) if os.path.lexists(file) else ""
        if not what:
            region = tuple(
                slice(index * size, (index + 1) * size) for index, size in zip(chunk, sizes, strict=True)
            )
            try:
                array[region]
            except MemoryError:
                raise
            except OSError as error:
                what = f"cannot be read: {error.strerror or error}"
            except Exception as error:
                what = f"is truncated or corrupted: {' '.join(str(error).split())[:120]}"
        if what:
            yield Fault(path, what, AGAIN)


def _indices(part: Any, length: int) -> Any:
    if isinstance(part, slice):
        return range(length)[part]
    return np.atleast_1d(np.arange(length)[part]).tolist()


def _documents(folder: Path) -> dict[str, Document]:
    """Return the metadata of each array, by path.

    Raises
    ------
    CorruptError
        If metadata cannot be read, or claim what no copy needs; names each file.
    """
    documents: dict[str, Document] = {}
    faults: list[Fault] = []
    for node, subfolders, files in os.walk(folder):
        if METADATA not in (*files, *subfolders):
            continue
        name = Path(node).relative_to(folder).as_posix()
        try:
            _, document = read_document(Path(node, METADATA))
        except (OSError, ValueError) as error:
            document, what = {}, str(error)
        else:
            what = _array_fault(Path(node), document) if is_array(document) else ""
        if is_array(document):
            subfolders.clear()  # they hold chunks
            documents[name] = document
        if what:
            faults.append(Fault(Path(name, METADATA).as_posix(), what, AGAIN))
    if faults:
        raise CorruptError(
            sorted(faults), f"{folder}: cannot be read: {len(faults)} fault(s) of its metadata"
        )
    return documents


def _array_fault(folder: Path, document: Document) -> str:
    """Return how the metadata of an array differ from those that xarray writes, or an empty string."""
    try:
        shape, chunk = document["shape"], file_shape(document)
        if not all(is_count(length, least=0) for length in shape) or not all(map(is_count, chunk)):
            return "has a shape or chunks that are not valid lengths"
        if len(shape) != len(chunk):
            return "has a shape and chunks that disagree"
        what = next(codec_faults(document, chunk, checksums=False), "")
        if not what and len(shape) == 1:
            what = next(coord_faults(shape, chunk, sum(1 for _ in folder.glob("c/*"))), "")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
        return "is not the metadata of an array"
    return what


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, METADATA_BYTES, follow=False)
    except OSError:
        return b""
