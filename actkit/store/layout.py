"""Layout of a cube on disk: names, shards, codecs."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata

from ..errors import CorruptError, CubeError, Fault, InputError
from ..object_urls import is_url
from ..schema import FORMAT, Variable
from .cube_files import LocalCube, RemoteCube, files_of, open_remote
from .metadata import (
    ARRAYS,
    CHECKSUM,
    METADATA,
    METADATA_BYTES,
    Document,
    check_documents,
    check_root,
    compression,
    file_limit,
    is_array,
    is_known,
    listed_nodes,
)
from .object_clients import StorageOptions
from .plain_store import CheckedStore, PlainStore
from .xarray_copies import is_copy

CUBE = "cube.zarr"
COORD_CHUNK = 4096
AGAIN = "restore it from a backup, or extract again into another folder"
BLOSC_NAME: Literal["lz4"] = "lz4"
BLOSC_LEVEL = 5

Array = zarr.Array[ArrayV3Metadata]
_Codec = BloscCodec | ZstdCodec | Crc32cCodec


@dataclass(frozen=True)
class Shard:
    """One file of an array, which holds the part of one window."""

    array: str
    window: int
    path: Path

    def __str__(self) -> str:
        return f"{self.array}/{self.path.name}"


def cube_path(path: str | Path) -> Path:
    """Return the ``.zarr`` folder of a run folder, or the path itself if it is such a folder.

    Raises
    ------
    CubeError
        If the path is neither.
    """
    if not isinstance(path, str | os.PathLike):
        what = f"is of type {type(path).__name__}, not a path"
        source = getattr(path, "encoding", {}).get("source")
        hint = f"give the run folder; this was opened from {source}" if source else "give the run folder"
        raise InputError([Fault("path", what, hint)])
    folder = Path(path)
    for candidate in (folder / CUBE, folder):
        if (candidate / METADATA).is_file():
            return candidate
    if folder.is_file() or any((folder / name).exists() for name in (".zgroup", ".zmetadata")):
        opener = "xarray.open_dataset" if folder.is_file() else "xarray.open_zarr"
        raise CubeError(
            f"{folder}: is not a cube; if it is a copy of one, {opener} opens it for every statistic"
        )
    raise CubeError(f"{folder}: holds no cube; give a run folder with {CUBE} in it, or the .zarr folder")


def find_cube(
    path: str | Path, storage_options: StorageOptions | None = None, cache: str | Path | None = None
) -> LocalCube | RemoteCube:
    """Return the files of the cube of a run, given its folder or its URL, or those of the ``.zarr`` folder.

    Raises
    ------
    InputError
        If the URL is none of an object store, or options are given for a folder.
    CubeError
        If there is no cube.
    StorageError
        If the object store cannot be read.
    """
    if is_url(path):
        return open_remote(str(path), storage_options, cache, CUBE)
    options = {"storage_options": storage_options, "cache": cache}
    if given := [name for name, value in options.items() if value is not None]:
        raise InputError([Fault(given[0], "is for object stores only", f"leave it out for {path}")])
    return LocalCube(cube_path(path))


def open_group(path: Path | LocalCube | RemoteCube, store: type[PlainStore] = PlainStore) -> zarr.Group:
    """Open the group of a cube for reading.

    All metadata are checked before any memory that they ask for is allocated.

    Parameters
    ----------
    path
        The ``.zarr`` folder, or the files in it.
    store
        Class of the store that reads the files of a folder.

    Raises
    ------
    CubeError
        If the group was not written by actkit, has a newer format, or violates the format.
    CorruptError
        If the metadata were changed after they were written; names each file.
    """
    files = files_of(path)
    if isinstance(files, LocalCube) and is_copy(files.root):
        what = "was written by xarray, without checksums or ledger"
        raise CubeError(f"{path}: {what}; actkit.open_cube and xarray.open_zarr open it")
    try:
        content, root = files.document(METADATA)
    except (OSError, ValueError) as error:
        raise CubeError(f"{path}: cannot be opened as a zarr v3 group: {error}") from error
    check_root(str(path), root)
    version = root["attributes"].get("actkit_format") if "attributes" in root else None
    if version != FORMAT:
        what = "was not written by actkit" if version is None else f"is of format {version}"
        raise CubeError(f"{path}: {what}; this version reads format {FORMAT}")
    documents = _unchanged(files, content, root)
    faults = check_documents(lambda name: _n_chunks(files, name), root, documents)
    if faults:
        raise CorruptError(faults, f"{path}: cannot be read: {len(faults)} fault(s) of its metadata")
    arrays = {name: node for name, node in documents.items() if is_array(node) and is_known(name, node)}
    limits = {name: file_limit(document) for name, document in arrays.items()}
    compressions = {name: compression(document) for name, document in arrays.items()}
    try:
        reader = files.zarr_store(store, limits, compressions)
        group = zarr.open_group(reader, mode="r", zarr_format=3, use_consolidated=False)
        for name in arrays:
            array_of(group, name)
    except Exception as error:  # zarr raises many types
        raise CubeError(f"{path}: cannot be opened by zarr: {error}") from error
    return group


def create_array(
    group: zarr.Group,
    variable: Variable,
    lengths: Mapping[str, int],
    *,
    window: int,
    chunk: tuple[int, int],
    attrs: dict[str, Any],
) -> Array:
    """Create the empty array of a variable.

    Parameters
    ----------
    group
        The group of the cube.
    variable
        The variable that the array stores.
    lengths
        Length of every dimension.
    window
        Samples per shard.
    chunk
        Samples and tokens per inner chunk, for variables with tokens and hidden.
    attrs
        Attributes in addition to the variable's own.
    """
    shape = tuple(lengths[dim] for dim in variable.dims)
    shards = None
    if variable.by_window and variable.dtype == "str":  # no codec shards strings
        chunks = tuple(window if dim == "sample" else lengths[dim] for dim in variable.dims)
    elif variable.by_window:
        whole = {**lengths, "sample": window}
        inner = {**whole, "layer": 1}  # one layer is read alone
        if variable.is_full:  # small variables keep a whole window in one chunk
            inner |= zip(("sample", "token"), chunk, strict=True)
            whole["token"] = -(-lengths["token"] // chunk[1]) * chunk[1]
        shards = tuple(whole[dim] for dim in variable.dims)
        chunks = tuple(inner[dim] for dim in variable.dims)
    elif variable.name == "committed":
        chunks = (window,)
    else:
        chunks = tuple(
            min(lengths[dim], COORD_CHUNK) if dim == "sample" else lengths[dim] for dim in variable.dims
        )
    return group.create_array(
        variable.name,
        shape=shape,
        dtype=str if variable.dtype == "str" else variable.dtype,
        chunks=chunks,
        shards=shards,
        compressors=_codecs(variable),
        filters=None,
        fill_value=variable.fill_value,
        dimension_names=variable.dims,
        attributes={**variable.attrs, **attrs},
        # one folder per array: fewer folders to fsync, and one listing shows which shards exist
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )


def _codecs(variable: Variable) -> list[_Codec]:
    # without a checksum per chunk, a flipped bit would read back as a number
    if variable.dtype == "str":
        return [ZstdCodec(level=3), Crc32cCodec()]
    if variable.dtype == "bool":
        return [Crc32cCodec()]
    return [BloscCodec(cname=BLOSC_NAME, clevel=BLOSC_LEVEL, shuffle="bitshuffle"), Crc32cCodec()]


def seal(path: Path, group: zarr.Group, nodes: Iterable[str], attrs: Mapping[str, Any]) -> None:
    """Write the attributes of a new cube, with a checksum of the metadata of each node (array or group).

    Shards and coordinates carry their own checksums, but a flipped bit in the metadata could change the shape
    or type of all of them.
    """
    digests = {name: _sha256((path / name / METADATA).read_bytes()) for name in nodes}
    group.update_attributes({**attrs, ARRAYS: json.dumps(digests), CHECKSUM: ""})
    group.update_attributes({CHECKSUM: _sha256((path / METADATA).read_bytes())})


def _n_chunks(files: LocalCube | RemoteCube, name: str) -> int:
    return sum(file.startswith("c.") for file in files.sizes(name))


def _unchanged(files: LocalCube | RemoteCube, content: bytes, root: Document) -> dict[str, Document]:
    """Return the metadata of all nodes, after checking that none has changed since the cube was created."""
    if "consolidated_metadata" in root:  # zarr can add it at any time, and actkit does not read it
        content = json.dumps(
            {key: root[key] for key in root if key != "consolidated_metadata"}, indent=2
        ).encode()
    seal = str(root["attributes"].get(CHECKSUM))
    # the seal was computed from the file without the seal
    if _sha256(content.replace(seal.encode(), b"")) != seal:
        raise CorruptError([Fault(METADATA, "was changed", AGAIN)])
    documents: dict[str, Document] = {}
    faults = []
    nodes = listed_nodes(str(files), root["attributes"])
    if isinstance(files, RemoteCube):
        files.load_documents(nodes)
    for name, digest in nodes.items():
        what = files.node_fault(name) or files.fault(f"{name}/{METADATA}", METADATA_BYTES)
        if not what:
            try:
                node_content, documents[name] = files.document(f"{name}/{METADATA}")
                what = "" if _sha256(node_content) == digest else "was changed"
            except (FileNotFoundError, ValueError):
                what = "was changed"
        if what:
            faults.append(Fault(f"{name}/{METADATA}", what, AGAIN))
    if faults:
        raise CorruptError(faults)
    return documents


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def array_names(group: zarr.Group) -> list[str]:
    """Return the paths of the arrays that this version reads: variables of the format, and labels."""
    assert isinstance(group.store, CheckedStore)
    return list(group.store.limits)


def shards(path: Path, array: Array) -> Iterator[Shard]:
    """Yield every file that an array should consist of, in order.

    For an array that is not written by window, ``window`` is the index of a chunk along the first dimension.
    """
    axis = window_axis(array)
    name = array.path
    folder = path / name
    before, after = "c." + "0." * axis, ".0" * (array.ndim - axis - 1)
    for window in range(-(-array.shape[axis] // (array.shards or array.chunks)[axis])):
        yield Shard(name, window, folder / f"{before}{window}{after}")


def shard_region(array: Array, window: int) -> tuple[slice, ...]:
    """Return the part of an array that one file covers."""
    axis = window_axis(array)
    size = (array.shards or array.chunks)[axis]
    start = window * size
    whole = [slice(0, length) for length in array.shape]
    whole[axis] = slice(start, min(start + size, array.shape[axis]))
    return tuple(whole)


def array_of(group: zarr.Group, name: str) -> Array:
    """Return an array of a group."""
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def dims_of(array: Array) -> tuple[str, ...]:
    """Return the dimension names of an array."""
    assert isinstance(array.metadata, ArrayV3Metadata)
    return tuple(str(name) for name in array.metadata.dimension_names or ())


def window_axis(array: Array) -> int:
    """Return the axis along which an array is divided into files."""
    names = dims_of(array)
    return names.index("sample") if "sample" in names else 0
