"""The log of a training run: measures of each layer at some steps, as JSON lines."""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import BaseModel, Field, ValidationError

from ..errors import CubeError, StorageError
from ..regular_files import MB, read_regular
from ..store.folders import Folder
from .training_settings import stored_settings

LOG_FILE = "training_log.jsonl"
_MOST_LOG = 16 * MB  # a hundred entries of a thousand layers
# measure, and what it is
MEASURES: Mapping[str, str] = {
    "loss": "Squared error of a training token in units in which activations have a mean norm of √hidden.",
    "train_fvu": "Share of variance of the training batch that is not explained.",
    "fvu": "Share of variance of held-out tokens that is not explained, with the threshold of inference.",
    "l0": "Mean number of active features of a held-out token.",
    "n_dead": "Number of features that have not fired for `dead_after` training tokens.",
}
_RUN_MEASURES: Mapping[str, str] = {
    "lr": "Learning rate of the step.",
    "tokens": "Training tokens seen, counting those that were repeated.",
    "seconds": "Time since training began, in seconds, without pauses between sessions.",
}


class _Entry(BaseModel):
    """An entry of a log, whose file may come from elsewhere; unknown fields are ignored."""

    step: int = Field(ge=0, lt=2**63)
    layers: dict[int, dict[str, float]]
    lr: float = nan
    tokens: float = nan
    seconds: float = nan


class TrainingLog:
    """Appends entries to the log of a folder.

    Parameters
    ----------
    folder
        Folder of the autoencoders.
    step
        Number of steps made; entries of later ones, from a session that was killed, are removed.
    """

    def __init__(self, folder: Folder, step: int) -> None:
        self._folder = folder
        content = folder.read(LOG_FILE, -1) or b""
        kept = [line for line in content.splitlines() if (entry := _parse(line)) and entry.step <= step]
        folder.replace(LOG_FILE, b"".join(line + b"\n" for line in kept))

    def append(self, step: int, layers: Mapping[int, Mapping[str, float]], **measures: float) -> None:
        """Append the measures of each layer, and those of the run, after a number of steps."""
        entry = {"step": step, **measures, "layers": {str(layer): values for layer, values in layers.items()}}
        with self._folder.writing(LOG_FILE), closing(self._folder.append(LOG_FILE)) as file:
            file.write(json.dumps(entry) + "\n")


def training_log(path: str | os.PathLike[str]) -> xr.Dataset:
    """Return the measures of a training run of autoencoders, finished or not.

    Parameters
    ----------
    path
        The folder that was given to :func:`actkit.train_saes` as ``out``.

    Returns
    -------
    xarray.Dataset
        ``loss``, ``train_fvu``, ``fvu``, ``l0`` and ``n_dead``, dims ``(layer, step)``; ``lr``, ``tokens``
        and ``seconds``, dims ``(step)``. ``fvu`` and ``l0`` are those of held-out tokens. Attributes are the
        settings of the run.

    Raises
    ------
    CubeError
        If the folder has no log.
    StorageError, CorruptError
        If the log, or the settings of the run, cannot be read.
    """
    folder = Path(path)
    settings = stored_settings(folder)
    try:
        content = read_regular(folder / LOG_FILE, _MOST_LOG, follow=False)
    except (FileNotFoundError, NotADirectoryError):
        settings = None
    except OSError as error:
        raise StorageError(f"cannot read the training log in {folder}: {error}") from error
    if settings is None:
        raise CubeError(f"{folder}: no autoencoders were trained there")
    entries = {entry.step: entry for line in content.splitlines() if (entry := _parse(line))}
    ordered = [entries[step] for step in sorted(entries)]
    layers = list(settings.layers)
    variables: dict[str, Any] = {
        name: (("layer", "step"), _table(ordered, layers, name), {"long_name": meaning})
        for name, meaning in MEASURES.items()
    }
    for name, meaning in _RUN_MEASURES.items():
        values = np.array([getattr(entry, name) for entry in ordered], dtype=np.float64)
        variables[name] = ("step", values, {"long_name": meaning})
    steps = np.array([entry.step for entry in ordered], dtype=np.int64)
    attrs = {
        name: " ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in settings.dump().items()
        if not isinstance(value, bool)
    }
    return xr.Dataset(variables, {"layer": layers, "step": steps}, {"statistic": "training_log", **attrs})


def _table(entries: Sequence[_Entry], layers: Sequence[int], name: str) -> np.ndarray:
    """Return a measure, dims ``(layer, step)``; NaN where it is missing."""
    values = [[entry.layers.get(layer, {}).get(name, nan) for entry in entries] for layer in layers]
    return np.array(values, dtype=np.float64).reshape(len(layers), len(entries))


def _parse(line: bytes) -> _Entry | None:
    """Return an entry, or None for a line that was not written to its end."""
    try:
        return _Entry.model_validate_json(line)
    except ValidationError:
        return None
