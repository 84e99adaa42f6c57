"""Files of results: one Dataset, as safetensors with its texts in the header, sealed by a checksum."""

import hashlib
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from safetensors.numpy import load, save

from ..errors import CorruptError, Fault
from ..regular_files import MB
from .folders import Folder

MOST_BYTES = 256 * MB
_ABOUT = "actkit_result"


def write_result(path: Path, result: xr.Dataset, *, key: str = "") -> bool:
    """Write a result, and replace an earlier one only once the new file is complete.

    Parameters
    ----------
    path
        The file, in an existing folder.
    result
        Dataset in memory, of numbers and texts.
    key
        Text that identifies what the result was computed from; the file is valid only for this key.

    Returns
    -------
    bool
        False if the result is larger than 256 MB, and was not written.
    """
    body = _encode(result)
    sealed = _seal(key, body) + body
    if len(sealed) > MOST_BYTES:
        return False
    with closing(Folder(path.parent, follow=False)) as folder:
        folder.replace(path.name, sealed)
    return True


def read_result(path: Path, *, key: str = "") -> xr.Dataset:
    """Read a result.

    Raises
    ------
    CorruptError
        If the file is damaged, or was written with another key.
    FileNotFoundError
        If it does not exist.
    """
    with closing(Folder(path.parent, follow=False)) as folder:
        content = folder.read(path.name, MOST_BYTES)
    if content is None:
        raise FileNotFoundError(path)
    size = hashlib.sha256().digest_size
    seal, body = content[:size], content[size:]
    if seal != _seal(key, body):
        raise CorruptError([Fault(str(path), "is damaged, or belongs to something else", "delete it")])
    return _decode(body)


def _encode(result: xr.Dataset) -> bytes:
    """Serialise a result to safetensors: numbers as tensors, everything else as JSON."""
    tensors: dict[str, np.ndarray] = {}
    variables: list[dict[str, Any]] = []
    for name, array in result.variables.items():
        kept: dict[str, Any] = {"name": name, "dims": array.dims, "attrs": array.attrs}
        kept["coord"] = name in result.coords
        if array.dtype.kind in "biuf":
            tensors[str(len(variables))] = np.ascontiguousarray(array.values)
        else:
            kept |= {"texts": array.values.tolist(), "dtype": array.dtype.str}
        variables.append(kept)
    return save(tensors, {_ABOUT: json.dumps({"variables": variables, "attrs": result.attrs})})


def _decode(body: bytes) -> xr.Dataset:
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    about, tensors = json.loads(header["__metadata__"][_ABOUT]), load(body)
    coords: dict[str, xr.Variable] = {}
    variables: dict[str, xr.Variable] = {}
    for number, kept in enumerate(about["variables"]):
        values = np.array(kept["texts"], kept["dtype"]) if "texts" in kept else tensors[str(number)]
        place = coords if kept["coord"] else variables
        place[kept["name"]] = xr.Variable(kept["dims"], values, kept["attrs"])
    return xr.Dataset(variables, coords, about["attrs"])


def _seal(key: str, body: bytes) -> bytes:
    """Return a checksum of the result and its key, so that a file is valid only for its own key."""
    return hashlib.sha256(key.encode() + body).digest()
