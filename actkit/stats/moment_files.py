"""Read and write moments of many layers and languages in one safetensors file."""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open

from ..errors import Fault, InputError
from ..regular_files import check_regular
from .kernels.moments import Moments

_ABOUT = "actkit_moments"
_CHECK = "crc32c"
_ARRAYS = ("mean", "scatter", "third")


class _Entry(BaseModel):
    language: str
    layer: int
    n: int
    fourth: float
    crc32c: list[int] = []


class _About(BaseModel):
    entries: list[_Entry]
    cube: str = ""
    windows: list[int] = []
    samples: int | None = None


Key = tuple[str, int]  # language and layer


def moment_blocks(moments: Mapping[Key, Moments], about: Mapping[str, Any]) -> Iterator[bytes]:
    """Yield the bytes of a safetensors file of moments, array by array, without a second copy of all arrays.

    Parameters
    ----------
    moments
        Moments by language and layer.
    about
        Further metadata, serialisable as JSON.
    """
    entries = [
        {
            "language": language,
            "layer": layer,
            "n": value.n,
            "fourth": value.fourth,
            "crc32c": [_checksum(getattr(value, name)) for name in _ARRAYS],
        }
        for (language, layer), value in moments.items()
    ]
    metadata = json.dumps({"entries": entries, **about})
    header: dict[str, Any] = {
        "__metadata__": {_ABOUT: metadata, _CHECK: str(google_crc32c.value(metadata.encode()))}
    }
    end = 0
    for number, value in enumerate(moments.values()):
        for name in _ARRAYS:
            array = getattr(value, name)
            start, end = end, end + 8 * array.size
            header[f"{number}.{name}"] = {
                "dtype": "F64",
                "shape": array.shape,
                "data_offsets": [start, end],
            }
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)  # arrays begin at multiples of eight
    yield len(content).to_bytes(8, "little") + content
    for value in moments.values():
        for name in _ARRAYS:
            yield getattr(value, name).astype("<f8").tobytes()


def about_moments(path: Path) -> dict[str, Any]:
    """Return the metadata of a moments file: the ``about`` of :func:`moment_blocks`, and ``entries``.

    Raises
    ------
    ValueError
        If the file is not a moments file or is corrupted.
    """
    try:
        check_regular([path], follow=False)  # safe_open would wait for a FIFO
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
        about = metadata[_ABOUT]
        if _CHECK in metadata and metadata[_CHECK] != str(google_crc32c.value(about.encode())):
            raise ValueError("the file is corrupted")
        return _About.model_validate_json(about).model_dump()
    except (KeyError, OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"{path} contains no moments: {error}") from error


def load_moments(path: Path, wanted: Iterable[Key] | None = None) -> dict[Key, Moments]:
    """Read moments from a file.

    Parameters
    ----------
    path
        File written from :func:`moment_blocks`.
    wanted
        Languages and layers to read; all by default.

    Raises
    ------
    ValueError
        If the file is not a moments file or is corrupted.
    """
    entries, moments = about_moments(path)["entries"], {}
    chosen = None if wanted is None else set(wanted)
    try:
        with safe_open(path, "numpy") as file:
            for number, entry in enumerate(entries):
                key = entry["language"], entry["layer"]
                if chosen is None or key in chosen:
                    arrays = [file.get_tensor(f"{number}.{name}") for name in _ARRAYS]
                    if entry["crc32c"] and [_checksum(array) for array in arrays] != entry["crc32c"]:
                        raise ValueError(f"{path}: the moments of layer {key[1]} are corrupted")
                    mean, scatter, third = arrays
                    moments[key] = Moments(entry["n"], mean, scatter, entry["fourth"], third)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} contains no moments: {error}") from error
    return moments


def gathered_moments(path: Path, cube: xr.Dataset | None, layer: int, language: str | None) -> Moments:
    """Return the moments that a run gathered at a layer, in one language or all, if the run is complete.

    Parameters
    ----------
    path
        File written from :func:`moment_blocks`.
    cube
        The cube of the run, if present.
    layer, language
        Layer and language to read; all languages by default.

    Raises
    ------
    InputError
        If the file is not a moments file, is corrupted or belongs to another cube, or lacks samples, the
        layer or the language.
    """
    hint = "run the extraction again with whiten=True"
    try:
        about = about_moments(path)
        known = {(entry["language"], entry["layer"]) for entry in about["entries"]}
        wanted = {key for key in known if key[1] == layer and language in (None, key[0])}
        moments = load_moments(path, wanted)
    except ValueError as error:
        raise InputError([Fault("run", str(error), f"remove the file, and {hint}")]) from error
    if cube is not None and about["cube"] != cube.attrs.get("metadata_sha256"):
        raise InputError([Fault("run", f"{path} contains the moments of another cube", hint)])
    if cube is not None and about["samples"] not in (None, cube.sizes["sample"]):
        problem = f"gathered only {about['samples']} of {cube.sizes['sample']} samples"
        raise InputError([Fault("run", problem, "run it again")])
    if not wanted:
        layers, names = sorted({key[1] for key in known}), sorted({key[0] for key in known})
        problem = f"gathered no moments of layer {layer}" + (f" in {language}" if language else "")
        raise InputError([Fault("run", problem, f"it has layers {layers} in {', '.join(names)}")])
    return reduce(Moments.merge, moments.values())


def _checksum(array: np.ndarray) -> int:
    return int(google_crc32c.value(np.ascontiguousarray(array, dtype="<f8").tobytes()))
