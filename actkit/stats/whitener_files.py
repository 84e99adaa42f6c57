"""Safetensors files of whiteners: arrays, and scalars as JSON in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import Fault, InputError
from ..regular_files import check_regular

_SUFFIX = ".safetensors"
_SCALARS = "actkit_whitener"


def write_whitener(path: Path, arrays: Mapping[str, np.ndarray], scalars: Mapping[str, Any]) -> None:
    """Write the arrays and scalars of a whitener.

    Raises
    ------
    InputError
        If the path does not end in ``.safetensors``.
    """
    _check_suffix(path)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path, {_SCALARS: json.dumps(scalars)})


def read_whitener(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the arrays and scalars of a whitener.

    Raises
    ------
    InputError
        If the file is not a whitener.
    """
    _check_suffix(path)
    try:
        check_regular([path])
        with safe_open(path, "numpy") as file:
            scalars = json.loads((file.metadata() or {})[_SCALARS])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (KeyError, OSError, SafetensorError) as error:
        raise InputError(
            [Fault(str(path), f"is not a whitener: {error}", "give a file written by save()")]
        ) from error
    return arrays, scalars


def _check_suffix(path: Path) -> None:
    if path.suffix != _SUFFIX:
        raise InputError([Fault(str(path), f"ends in {path.suffix!r}", f"give {_SUFFIX}")])
