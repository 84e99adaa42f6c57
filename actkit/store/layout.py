"""Where everything of a cube lies: names, shards, codecs."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.core.metadata import ArrayV3Metadata

from ..errors import CorruptError, CubeError, Fault
from ..schema import FORMAT, Variable

CUBE = "cube.zarr"
COORD_CHUNK = 4096
METADATA = "zarr.json"
ARRAYS = "arrays"
CHECKSUM = "metadata_sha256"
AGAIN = "delete the run folder and extract again"
BLOSC_NAME: Literal["lz4"] = "lz4"
BLOSC_LEVEL = 5

Array = zarr.Array[ArrayV3Metadata]
_Codec = BloscCodec | ZstdCodec | Crc32cCodec


@dataclass(frozen=True)
class Shard:
    """One file of an array: the part that belongs to one window."""

    array: str
    window: int
    path: Path

    def __str__(self) -> str:
        return f"{self.array}/{self.path.name}"


def cube_path(path: str | Path) -> Path:
    """Return the ``.zarr`` folder of a run folder, or the path itself where it is one.

    Raises
    ------
    CubeError
        Where there is neither.
    """
    given = Path(path)
    for candidate in (given / CUBE, given):
        if (candidate / METADATA).is_file():
            return candidate
    raise CubeError(f"{given}: holds no cube; give a run folder with {CUBE} in it, or the .zarr folder")


def open_group(path: Path, *, mode: str = "r") -> zarr.Group:
    """Open the group of a cube.

    Raises
    ------
    CubeError
        Where the group is none of ours, or of a newer format.
    CorruptError
        Where its metadata are not as they were written; names each file.
    """
    try:
        group = zarr.open_group(path, mode=mode, zarr_format=3, use_consolidated=False)  # type: ignore[arg-type]
        version = group.attrs.get("actkit_format")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CubeError(f"{path}: cannot be opened as a zarr v3 group: {error}") from error
    if version != FORMAT:
        what = "was not written by actkit" if version is None else f"is of format {version}"
        raise CubeError(f"{path}: {what}; this version reads format {FORMAT}")
    changed = list(_changed_metadata(path, group))
    if changed:
        raise CorruptError(changed)
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
    """Create the array of a variable, empty.

    Parameters
    ----------
    group
        The cube, or what will become one.
    variable
        What it holds.
    lengths
        Length of every dimension.
    window
        Samples in a shard.
    chunk
        Samples and tokens in its inner chunks, where the variable has tokens and hidden.
    attrs
        More attributes than the variable's own.
    """
    shape = tuple(lengths[dim] for dim in variable.dims)
    shards = None
    if variable.by_window and variable.dtype == "str":  # no codec shards strings
        chunks = tuple(window if dim == "sample" else lengths[dim] for dim in variable.dims)
    elif variable.by_window:
        whole = {**lengths, "sample": window}
        inner = {**whole, "layer": 1}  # one layer is read alone
        if variable.is_full:  # the small variables keep a whole window in a chunk
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
        # one folder an array: fewer folders to fsync, and one listing tells which shards exist
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )


def _codecs(variable: Variable) -> list[_Codec]:
    # without a checksum of each chunk a flipped bit reads back as a number
    if variable.dtype == "str":
        return [ZstdCodec(level=3), Crc32cCodec()]
    if variable.dtype == "bool":
        return [Crc32cCodec()]
    return [BloscCodec(cname=BLOSC_NAME, clevel=BLOSC_LEVEL, shuffle="bitshuffle"), Crc32cCodec()]


def seal(path: Path, group: zarr.Group, nodes: Iterable[str], attrs: Mapping[str, Any]) -> None:
    """Write the attributes of a new cube, with a checksum of every metadata file.

    The nodes are its arrays, and the groups that some of them are in.

    Shards and coordinates carry checksums of their own; a flipped bit in the metadata would move or
    retype them all.
    """
    digests = {name: _sha256((path / name / METADATA).read_bytes()) for name in nodes}
    group.update_attributes({**attrs, ARRAYS: json.dumps(digests), CHECKSUM: ""})
    group.update_attributes({CHECKSUM: _sha256((path / METADATA).read_bytes())})


def _changed_metadata(path: Path, group: zarr.Group) -> Iterator[Fault]:
    content = (path / METADATA).read_bytes()
    if b'"consolidated_metadata"' in content:  # zarr can add it at any time, and we do not read it
        document = json.loads(content)
        document.pop("consolidated_metadata", None)
        content = json.dumps(document, indent=2).encode()
    seal = str(group.attrs.get(CHECKSUM))
    # the seal was made of the file without it
    if _sha256(content.replace(seal.encode(), b"")) != seal:
        yield Fault(METADATA, "was changed", AGAIN)
        return
    for name, digest in json.loads(str(group.attrs[ARRAYS])).items():
        file = path / name / METADATA
        if not file.is_file():
            yield Fault(f"{name}/{METADATA}", "is missing", AGAIN)
        elif _sha256(file.read_bytes()) != digest:
            yield Fault(f"{name}/{METADATA}", "was changed", AGAIN)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def array_names(group: zarr.Group) -> list[str]:
    """Return the names of the arrays that a cube was created with, those in its groups as paths."""
    nodes = [str(name) for name in json.loads(str(group.attrs[ARRAYS]))]
    groups = {name.rpartition("/")[0] for name in nodes}
    return [name for name in nodes if name not in groups]


def shards(path: Path, array: Array) -> Iterator[Shard]:
    """Yield every file that an array should consist of, in order.

    For an array that is not written by window, ``window`` counts its chunks along its first dimension.
    """
    axis = window_axis(array)
    name = array.path
    folder = path / name
    before, after = "c." + "0." * axis, ".0" * (array.ndim - axis - 1)
    for window in range(-(-array.shape[axis] // (array.shards or array.chunks)[axis])):
        yield Shard(name, window, folder / f"{before}{window}{after}")


def shard_region(array: Array, window: int) -> tuple[slice, ...]:
    """Return what a file of an array covers."""
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
    """Return the axis along which an array is cut into files."""
    names = dims_of(array)
    return names.index("sample") if "sample" in names else 0
