"""The metadata of a cube, checked before anything that they ask for is allocated or opened."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
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
CHUNK_LIMIT = 2**31  # bytes, of blosc and numcodecs
_SHARD_LIMIT = 2**38
_AXIS_LIMIT = 2**63 - 1
_ONCE_LIMIT = 2**22  # samples in a file of what is written once
_LOST_LIMIT = 2**24  # elements of such files that may be missing
_CODECS = {"bytes", "blosc", "crc32c", "zstd", "vlen-utf8"}
_SHARDING = "sharding_indexed"  # around these
_REQUIRED = (
    *("layer", "sample", "token", "sample_id", "language", "text", "n_tokens", "token_id", "token_kind"),
    *("token_text", "truncated", "batch", "committed"),
)
_LABEL_TYPES = ("string", "bool", "int64", "float64")
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
_NEEDED = ("model", "first_is_content", "coordinates")

Document = dict[str, Any]


def read_document(path: Path) -> tuple[bytes, Document]:
    """Read a metadata file.

    Raises
    ------
    OSError
        Where it is missing, no regular file, or too large.
    ValueError
        Where it is no JSON object.
    """
    content = read_regular(path, METADATA_BYTES, follow=False)
    try:
        document = json.loads(content)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(document, dict):
        raise ValueError("is no JSON object")
    return content, document


def read_root(path: Path) -> tuple[bytes, Document]:
    """Read the metadata of a Zarr group of version 3.

    Raises
    ------
    CubeError
        Where the file is not a group.
    """
    try:
        content, root = read_document(path / METADATA)
    except (OSError, ValueError) as error:
        raise CubeError(f"{path}: cannot be opened as a zarr v3 group: {error}") from error
    attributes = root.get("attributes", {})
    if root.get("zarr_format") != 3 or root.get("node_type") != "group" or not isinstance(attributes, dict):
        raise CubeError(
            f"{path}: cannot be opened as a zarr v3 group: its zarr.json describes something else"
        )
    return content, root


def listed_nodes(path: Path, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each array and group that a cube lists, by its path in the cube.

    Raises
    ------
    CubeError
        Where the attribute is not a list, or leads out of the cube.
    """
    try:
        nodes = json.loads(attributes[ARRAYS])
        good = isinstance(nodes, dict) and all(isinstance(digest, str) for digest in nodes.values())
    except (KeyError, TypeError, ValueError, RecursionError):
        good = False
    if not good or not all(map(_is_inside, nodes)):
        raise CubeError(f"{path}: its attribute `{ARRAYS}` is no list of what is in it")
    return dict(nodes)


def _is_inside(name: str) -> bool:
    return all(part.isprintable() and part not in ("", ".", "..") for part in name.split("/"))


def node_fault(path: Path, name: str) -> str:
    """Return what is wrong with the folder of a node; empty where nothing is."""
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


def check_documents(path: Path, root: Document, documents: Mapping[str, Document]) -> list[Fault]:
    """Find what in the metadata is not as the format says, whoever wrote and sealed them.

    Parameters
    ----------
    path
        The cube, whose files are counted.
    root
        Its root metadata.
    documents
        Those of its arrays and groups, by their paths.

    Returns
    -------
    list of Fault
        The first of each array; empty where every array can be opened, and no chunk of it is larger than
        the format allows.
    """
    faults = list(_attribute_faults(root["attributes"]))
    for name, node in documents.items():
        wanted = ("array",) if name in VARIABLES else ("array", "group")
        if node.get("node_type") not in wanted or not isinstance(node.get("attributes", {}), dict):
            faults.append(Fault(f"{name}/{METADATA}", f"describes no {' or '.join(wanted)}"))
    if faults:
        return faults
    arrays = {name: node for name, node in documents.items() if is_array(node) and is_known(name, node)}
    missing = [name for name in _REQUIRED if name not in arrays]
    faults += [Fault(METADATA, f"lists no array `{name}`") for name in missing]
    lengths: dict[tuple[str, str], int] = {}
    first = [name for name in _REQUIRED if name in arrays]  # others have to agree with these
    for name in dict.fromkeys([*first, *arrays]):
        document = arrays[name]
        try:
            what = next(_array_faults(path / name, name, document, lengths), "")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError):
            what = "is no metadata of an array"
        if what:
            faults.append(Fault(f"{name}/{METADATA}", what))
    if not faults:
        committed = file_shape(arrays["committed"])[0]
        for name, document in arrays.items():
            variable = VARIABLES.get(name)
            if variable and variable.by_window and file_shape(document)[variable.sample_axis] != committed:
                faults.append(
                    Fault(f"{name}/{METADATA}", f"has other windows than the {committed:,} samples")
                )
    return faults


def _attribute_faults(attributes: Mapping[str, Any]) -> Iterator[Fault]:
    for name, kind in _ATTRIBUTES.items():
        value = attributes.get(name)
        if value is None and name not in attributes and name not in _NEEDED:
            continue
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            yield Fault(METADATA, f"has no proper attribute `{name}`")
    try:
        good = isinstance(json.loads(attributes.get("options", "{}")), dict)
    except (TypeError, ValueError, RecursionError):
        good = False
    if not good:
        yield Fault(METADATA, "has no proper attribute `options`")


def _array_faults(
    folder: Path, name: str, document: Document, lengths: dict[tuple[str, str], int]
) -> Iterator[str]:
    """Yield what is wrong with an array; what it says of the lengths of dimensions is noted."""
    declared = VARIABLES.get(name)
    shape, chunk = document["shape"], file_shape(document)
    dims = document["dimension_names"]
    if not all(is_count(length, least=0) for length in shape) or not all(map(is_count, chunk)):
        yield "has a shape or chunks that are no numbers of elements"
    if not isinstance(dims, list) or tuple(dims) != (declared.dims if declared else ("sample",)):
        yield f"has other dimensions than {', '.join(declared.dims if declared else ('sample',))}"
    if not len(shape) == len(chunk) == len(dims):
        yield "has a shape, chunks and dimensions that disagree"
    group = name.rpartition("/")[0]
    for dim, length in zip(dims, shape, strict=True):
        known = lengths.setdefault(("" if dim == "sample" else group, dim), length)
        if known != length:
            yield f"has {length:,} along `{dim}` where other arrays have {known:,}"
        if dim != "sample" and chunk[dims.index(dim)] < length:
            yield f"is cut along `{dim}`"
    wanted = (_stored_type(declared),) if declared else _LABEL_TYPES
    if document["data_type"] not in wanted:
        yield f"has another data type than {' or '.join(wanted)}"
    if document["fill_value"] != _fill_value(document["data_type"]):
        yield "has another fill value"
    if document["zarr_format"] != 3 or document.get("storage_transformers"):
        yield "is of another version of Zarr, or transformed"
    encoding = document["chunk_key_encoding"]
    if encoding["name"] != "default" or encoding["configuration"]["separator"] != ".":
        yield "names its chunks otherwise"
    yield from codec_faults(document, chunk)
    if declared is None or not declared.by_window:
        yield from once_faults(folder, shape, chunk)


def once_faults(folder: Path, shape: list[int], chunk: list[int], files: str = "c.*") -> Iterator[str]:
    """Yield what is wrong with an array that is read whole: its size has to be borne out by its files."""
    if chunk[0] > _ONCE_LIMIT:
        yield f"has chunks of {chunk[0]:,} elements"
    missing = -(-shape[0] // chunk[0]) - sum(1 for _ in folder.glob(files))
    # some may be lost, which is named file by file; windows that are not there have no flags
    if folder.name != "committed" and missing * chunk[0] > _LOST_LIMIT:
        yield f"has {shape[0]:,} elements, but not the files for them"


def codec_faults(document: Document, chunk: list[int], *, checksums: bool = True) -> Iterator[str]:
    """Yield what is wrong with the codecs of an array, and with the size of its chunks."""
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
            yield "has inner chunks that are no numbers of elements"
        if any(whole % part for whole, part in zip(chunk, inner, strict=True)):
            yield "has shards that are no multiple of their inner chunks"
        chains = {"chunks": configuration["codecs"], "an index": configuration["index_codecs"]}
        if configuration.get("index_location", "end") != "end":
            yield "has the index of its shards at another place than their end"
    for what, chain in chains.items():
        names = [str(codec["name"]) for codec in chain]
        unknown = set(names) - _CODECS
        if unknown:
            yield f"needs the codec {min(unknown)}, which is none of the format's"
        if sum(name in COMPRESSORS for name in names) > 1:
            yield "is compressed more than once"
        if names[-1] != "crc32c" and (checksums or what == "an index"):
            yield f"has {what} without checksums"
    if size * prod(inner) > CHUNK_LIMIT:
        yield f"has chunks of {size * prod(inner):,} bytes"
    if size * prod(chunk) > _SHARD_LIMIT:
        yield f"has files of {size * prod(chunk):,} bytes"


def file_shape(document: Document) -> list[int]:
    """Return how many elements a file of an array covers along each dimension."""
    grid = document["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError(grid["name"])
    return list(grid["configuration"]["chunk_shape"])


def file_limit(document: Document) -> int:
    """Return the most bytes that a file of an array can have."""
    item = _item_bytes(document)
    if not item:
        return CHUNK_LIMIT
    size = prod(file_shape(document)) * item
    # compressors make what they cannot compress a little larger
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
    """Return the size of an element; 0 for strings of any length."""
    data_type = document["data_type"]
    if isinstance(data_type, dict):  # strings of a fixed length, which xarray writes of NumPy's
        if data_type["name"] != "fixed_length_utf32":
            raise ValueError(data_type["name"])
        return int(data_type["configuration"]["length_bytes"])
    return 0 if data_type == "string" else np.dtype(data_type).itemsize


def is_count(value: Any, least: int = 1) -> bool:
    """Return whether a value is a valid number of elements."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _AXIS_LIMIT


def _stored_type(variable: Variable) -> str:
    return "string" if variable.dtype == "str" else variable.dtype


def _fill_value(data_type: str) -> Any:
    by_type: dict[str, Any] = {"string": "", "bool": False, "float32": "NaN", "float64": "NaN"}
    return by_type.get(data_type, 0)
