"""Moments of many layers and languages in one file."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .kernels.moments import Moments

_ABOUT = "actkit_moments"
_ARRAYS = ("mean", "scatter", "third")

Key = tuple[str, int]  # language and layer


def save_moments(path: Path, moments: Mapping[Key, Moments], about: Mapping[str, Any]) -> None:
    """Write moments to a file.

    Parameters
    ----------
    path
        The file.
    moments
        By language and layer.
    about
        What else is to be known, as JSON can hold it.
    """
    tensors: dict[str, np.ndarray] = {}
    entries: list[dict[str, Any]] = []
    for number, ((language, layer), own) in enumerate(moments.items()):
        entries.append({"language": language, "layer": layer, "n": own.n, "fourth": own.fourth})
        tensors |= {f"{number}.{name}": np.ascontiguousarray(getattr(own, name)) for name in _ARRAYS}
    save_file(tensors, path, {_ABOUT: json.dumps({"entries": entries, **about})})


def about_moments(path: Path) -> dict[str, Any]:
    """Return what :func:`save_moments` was told, and ``entries``.

    Raises
    ------
    ValueError
        Where the file is none of its own.
    """
    try:
        with safe_open(path, "numpy") as file:
            found: dict[str, Any] = json.loads((file.metadata() or {})[_ABOUT])
    except (KeyError, OSError, SafetensorError) as error:
        raise ValueError(f"{path} holds no moments: {error}") from error
    return found


def load_moments(path: Path, wanted: Iterable[Key] | None = None) -> dict[Key, Moments]:
    """Read moments.

    Parameters
    ----------
    path
        From :func:`save_moments`.
    wanted
        Which to read; all by default.

    Raises
    ------
    ValueError
        Where the file is none of its own.
    """
    entries, found = about_moments(path)["entries"], {}
    chosen = None if wanted is None else set(wanted)
    with safe_open(path, "numpy") as file:
        for number, entry in enumerate(entries):
            key = entry["language"], entry["layer"]
            if chosen is None or key in chosen:
                mean, scatter, third = (file.get_tensor(f"{number}.{name}") for name in _ARRAYS)
                found[key] = Moments(entry["n"], mean, scatter, entry["fourth"], third)
    return found
