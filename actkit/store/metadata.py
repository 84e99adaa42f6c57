"""Metadata of a cube, checked before any memory that they ask for is allocated."""

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CubeError, Fault
from ..regular_files import read_regular
from ..schema import VARIABLES, Variable
from .compression import COMPRESSORS, HEADER_BYTES, Compression

METADATA = "zarr.json"
ARRAYS = "arrays"
CHECKSUM = "metadata_sha256"
METADATA_BYTES = 2**24
CHUNK_LIMIT = 2**31  # bytes; blosc and numcodecs support no more
_SHARD_LIMIT = 2**38
_AXIS_LIMIT = 2**63 - 1
_COORD_CHUNK_LIMIT = 2**22  # elements in a file of a coordinate
_LOST_LIMIT = 2**24  # elements of a coordinate whose files may be missing
_CODECS = {"bytes", "blosc", "crc32c", "zstd", "vlen-utf8"}
_SHARDING = "sharding_indexed"  # contains the other codecs
_REQUIRED = (
    *("layer", "sample", "token", "sample_id", "language", "text", "n_tokens", "token_id", "token_kind"),
    *("token_text", "truncated", "batch", "committed"),
)
_LABEL_TYPES: tuple[str, ...] = ("string", "bool", "int64", "float64")
_ATTRIBUTES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "first_is_content": bool,
    "coordinates": str,
    "skipped_rows": int,
    "truncated_samples": int,
    "options": str,
    "skipped": str,
    "receipts": bool,
}
_REQUIRED_ATTRIBUTES = ("model", "first_is_content", "coordinates")

Document = dict[str, Any]


def read_document(path: Path) -> tuple[bytes, Document]:
    """Read a metadata file.

    Raises
    ------
    OSError
        If the file is missing, irregular or too large.
    ValueError
        If the file does not hold a JSON object.
    """
    content = read_regular(path, METADATA_BYTES, follow=False)
    return content, parsed(content)


def parsed(content: bytes) -> Document:
    """Return the JSON object that a metadata file holds; raise ValueError if it holds none."""
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("is not a JSON object")
    return dict(document)


def check_root(path: Path | str, root: Document) -> None:
    """Check that metadata describe a Zarr group of version 3.

    Raises
    ------
    CubeError
        If they describe something else.
    """
    attributes = root.get("attributes", {})
    if root.get("zarr_format") != 3 or root.get("node_type") != "group" or not isinstance(attributes, dict):
        raise CubeError(
            f"{path}: cannot be opened as a zarr v3 group: its zarr.json describes something else"
        )


def listed_nodes(path: Path | str, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each array and group that a cube lists, by its path in the cube.

    Raises
    ------
    CubeError
        If the attribute is not such a list, or a path leads out of the cube.
    """
    try:
        nodes = json.loads(attributes[ARRAYS])
        is_valid = isinstance(nodes, dict) and all(isinstance(digest, str) for digest in nodes.values())
    except (KeyError, TypeError, ValueError, RecursionError):
        is_valid = False
    if not is_valid or not all(map(_is_inside, nodes)):
        raise CubeError(f"{path}: its attribute `{ARRAYS}` does not list the arrays of a cube")
    return dict(nodes)


def _is_inside(name: str) -> bool:
    return all(part.isprintable() and part not in ("", ".", "..") for part in name.split("/"))


def node_fault(path: Path, name: str) -> str:
    """Return what is wrong with the folder of a node, or an empty string."""
    for part in name.split("/"):
        path = path / part
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return "is missing"
        if stat.S_ISLNK(mode):
            return "lies behind a link"
        if not stat.S_ISDIR(mode):
            return "is missing"
    return ""


def is_array(document: Mapping[str, Any]) -> bool:
    """Return whether a node is an array."""
    return document.get("node_type") == "array"


def is_known(name: str, document: Mapping[str, Any]) -> bool:
    """Return whether an array is a variable of the format or a label; readers ignore all others."""
    attributes = document.get("attributes")
    return name in VARIABLES or (isinstance(attributes, dict) and bool(attributes.get("label")))


def check_documents(
    n_chunks: Callable[[str], int], root: Document, documents: Mapping[str, Document]
) -> list[Fault]:
    """Find metadata that violate the format, even if their checksums are correct.

    Parameters
    ----------
    n_chunks
        Returns the number of chunk files of an array, given its path.
    root
        Root metadata.
    documents
        Metadata of the arrays and groups, by path.

    Returns
    -------
    list of Fault
        The first fault of each array; empty if every array can be opened and all chunk sizes are within the
        limits of the format.
    """
    faults = list(_attribute_faults(root["attributes"]))
    for name, node in documents.items():
        node_types = ("array",) if name in VARIABLES else ("array", "group")
        if node.get("node_type") not in node_types or not isinstance(node.get("attributes", {}), dict):
            faults.append(Fault(f"{name}/{METADATA}", f"does not describe an {' or '.join(node_types)}"))
    if faults:
        return faults
    arrays = {name: node for name, node in documents.items() if is_array(node) and is_known(name, node)}
    missing = [name for name in _REQUIRED if name not in arrays]
    faults += [Fault(METADATA, f"lists no array `{name}`") for name in missing]
    lengths: dict[tuple[str, str], int] = {}
    # the required arrays come first, because the others have to agree with them
    for name in dict.fromkeys([*(name for name in _REQUIRED if name in arrays), *arrays]):
        document = arrays[name]
        try:
            what = next(_array_faults(n_chunks, name, document, lengths), "")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            what = "is not the metadata of an array"
        if what:
            faults.append(Fault(f"{name}/{METADATA}", what))
    if not faults:
        committed = file_shape(arrays["committed"])[0]
        for name, document in arrays.items():
            variable = VARIABLES.get(name)
            if variable and variable.by_window and file_shape(document)[variable.sample_axis] != committed:
                faults.append(Fault(f"{name}/{METADATA}", f"has windows of other than {committed:,} samples"))
    return faults


def _attribute_faults(attributes: Mapping[str, Any]) -> Iterator[Fault]:
    for name, kind in _ATTRIBUTES.items():
        value = attributes.get(name)
        if value is None and name not in attributes and name not in _REQUIRED_ATTRIBUTES:
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield Fault(METADATA, f"has no valid attribute `{name}`")
    try:
        is_valid = isinstance(json.loads(attributes.get("options", "{}")), dict)
    except (TypeError, ValueError, RecursionError):
        is_valid = False
    if not is_valid:
        yield Fault(METADATA, "has no valid attribute `options`")


def _array_faults(
    n_chunks: Callable[[str], int], name: str, document: Document, lengths: dict[tuple[str, str], int]
) -> Iterator[str]:
    """Yield the faults of an array; record the lengths of its dimensions in `lengths`."""
    declared = VARIABLES.get(name)
    shape, chunk = document["shape"], file_shape(document)
    dims = document["dimension_names"]
    if not all(is_count(length, least=0) for length in shape) or not all(map(is_count, chunk)):
        yield "has a shape or chunks that are not valid lengths"
    if not isinstance(dims, list) or tuple(dims) != (declared.dims if declared else ("sample",)):
        yield f"has dimensions other than {', '.join(declared.dims if declared else ('sample',))}"
    if not len(shape) == len(chunk) == len(dims):
        yield "has a shape, chunks and dimensions that disagree"
    group = name.rpartition("/")[0]
    for dim, length in zip(dims, shape, strict=True):
        known_length = lengths.setdefault(("" if dim == "sample" else group, dim), length)
        if known_length != length:
            yield f"has {length:,} along `{dim}` where other arrays have {known_length:,}"
        if dim != "sample" and chunk[dims.index(dim)] < length:
            yield f"is divided along `{dim}`"
    data_types = _LABEL_TYPES
    if declared is not None:
        data_types = ("string",) if declared.dtype == "str" else declared.dtypes
    if document["data_type"] not in data_types:
        yield f"has a data type other than {' or '.join(data_types)}"
    if document["fill_value"] != _fill_value(document["data_type"], declared):
        yield "has an invalid fill value"
    if document["zarr_format"] != 3 or document.get("storage_transformers"):
        yield "has another Zarr version or a storage transformer"
    encoding = document["chunk_key_encoding"]
    if encoding["name"] != "default" or encoding["configuration"]["separator"] != ".":
        yield "has another encoding of chunk keys"
    yield from codec_faults(document, chunk)
    if declared is None or not declared.by_window:
        yield from coord_faults(shape, chunk, n_chunks(name), may_lack_files=name == "committed")


def coord_faults(
    shape: list[int], chunk: list[int], n_files: int, *, may_lack_files: bool = False
) -> Iterator[str]:
    """Yield the faults of an array that is read at once: its files have to account for its length."""
    if chunk[0] > _COORD_CHUNK_LIMIT:
        yield f"has chunks of {chunk[0]:,} elements"
    missing = -(-shape[0] // chunk[0]) - n_files
    # a few lost files are reported one by one; uncommitted windows have no flags
    if not may_lack_files and missing * chunk[0] > _LOST_LIMIT:
        yield f"has {shape[0]:,} elements, but lacks the files for them"


def codec_faults(document: Document, chunk: list[int], *, checksums: bool = True) -> Iterator[str]:
    """Yield the faults of an array's codecs and chunk sizes."""
    size = _item_bytes(document) or 1
    codecs = document["codecs"]
    inner = chunk
    if not isinstance(codecs, list) or not codecs:
        yield "has no codecs"
    chains = {"chunks": codecs}
    if codecs[0]["name"] == _SHARDING:
        if len(codecs) > 1:
            yield "has codecs around its shards"
        configuration = codecs[0]["configuration"]
        inner = configuration["chunk_shape"]
        if not all(map(is_count, inner)) or len(inner) != len(chunk):
            yield "has inner chunks that are not valid lengths"
        if any(whole % part for whole, part in zip(chunk, inner, strict=True)):
            yield "has shards that are not multiples of their inner chunks"
        chains = {"chunks": configuration["codecs"], "an index": configuration["index_codecs"]}
        if configuration.get("index_location", "end") != "end":
            yield "has a shard index that is not at the end"
    for what, chain in chains.items():
        names = [str(codec["name"]) for codec in chain]
        unknown = set(names) - _CODECS
        if unknown:
            yield f"needs the codec {min(unknown)}, which the format does not use"
        if sum(name in COMPRESSORS for name in names) > 1:
            yield "is compressed more than once"
        if names[-1] != "crc32c" and (checksums or what == "an index"):
            yield f"has {what} without checksums"
    if size * prod(inner) > CHUNK_LIMIT:
        yield f"has chunks of {size * prod(inner):,} bytes"
    if size * prod(chunk) > _SHARD_LIMIT:
        yield f"has files of {size * prod(chunk):,} bytes"


def file_shape(document: Document) -> list[int]:
    """Return the number of elements that one file of an array covers along each dimension."""
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError(grid["name"])
    return list(grid["configuration"]["chunk_shape"])


def file_limit(document: Document) -> int:
    """Return the maximum size of a file of an array in bytes."""
    item_size = _item_bytes(document)
    if not item_size:
        return CHUNK_LIMIT
    size = prod(file_shape(document)) * item_size
    # incompressible data grow slightly when compressed
    return size + (size >> 12) + HEADER_BYTES * (compression(document).chunks or 1) + 4096


def compression(document: Document) -> Compression:
    """Return how the chunks of an array are compressed."""
    codecs, whole = document["codecs"], file_shape(document)
    inner, chunks = whole, 0
    if codecs[0]["name"] == _SHARDING:
        configuration = codecs[0]["configuration"]
        codecs, inner = configuration["codecs"], configuration["chunk_shape"]
        chunks = prod(whole) // prod(inner)
    compressor = next((codec["name"] for codec in codecs if codec["name"] in COMPRESSORS), "")
    strings = prod(inner) if document["data_type"] == "string" else 0
    checksum = codecs[-1]["name"] == "crc32c"
    return Compression(compressor, prod(inner) * _item_bytes(document), chunks, strings, checksum)


def _item_bytes(document: Document) -> int:
    """Return the size of an element in bytes; 0 for strings of variable length."""
    data_type = document["data_type"]
    if isinstance(data_type, dict):  # NumPy strings of fixed length, as xarray writes them
        if data_type["name"] != "fixed_length_utf32":
            raise ValueError(data_type["name"])
        return int(data_type["configuration"]["length_bytes"])
    return 0 if data_type == "string" else np.dtype(data_type).itemsize


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether a value is a valid number of elements."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _AXIS_LIMIT


def _fill_value(data_type: str, declared: Variable | None) -> Any:
    if declared is not None and declared.fill is not None:
        return declared.fill
    by_type: dict[str, Any] = {"string": "", "bool": False, "float32": "NaN", "float64": "NaN"}
    return by_type.get(data_type, 0)
