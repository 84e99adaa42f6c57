"""The state of an unfinished training run on disk: written as a whole or not at all, without pickle.

state.json                      which state is valid: number of steps, scales, digest of each file
state/<steps>/<layer>.safetensors   weights, moments and counters
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from ..errors import CorruptError, Fault
from ..regular_files import MB, read_regular
from ..store.folders import Folder
from ..store.writer import storage_errors
from .layer_trainer import LayerTrainer

STATE = "state.json"
STATES = "state"
_KEPT = "the last complete state is kept; make room and rerun to continue from it"


@dataclass(frozen=True)
class Position:
    """Where a run continues.

    Parameters
    ----------
    step
        Number of steps made.
    seconds
        Time that they took.
    scales
        Factor of each layer's activations.
    extremes
        Share of tokens of each layer with an extreme norm.
    """

    step: int
    seconds: float
    scales: tuple[float, ...]
    extremes: tuple[float, ...]


def save_state(folder: Folder, trainers: Sequence[LayerTrainer], position: Position) -> None:
    """Write the state, then name it in ``state.json``, then remove earlier ones.

    Raises
    ------
    StorageError
        If the disk cannot be written.
    """
    with storage_errors("cannot write the state of the training", _KEPT):
        files = {}
        path = folder.path_to(STATES) / str(position.step)
        path.mkdir(parents=True, exist_ok=True)
        with closing(Folder(path)) as opened:
            for trainer in trainers:
                tensors = {name: tensor.cpu() for name, tensor in trainer.state().items()}
                content, name = save(tensors), f"{trainer.layer}.safetensors"
                files[name] = hashlib.sha256(content).hexdigest()
                with closing(opened.partial(name)) as file:
                    file.write(content)
                    file.sync()
                    file.place()
            opened.sync()
        folder.sync(STATES)
        entry = {
            "step": position.step,
            "seconds": position.seconds,
            "scales": list(position.scales),
            "extremes": list(position.extremes),
            "files": files,
        }
        with closing(folder.partial(STATE)) as file:
            file.write(json.dumps(entry, indent=2).encode() + b"\n")
            file.sync()
            file.place()
        folder.sync()
        _remove_other_states(folder, position.step)


def load_position(folder: Folder) -> Position | None:
    """Return where a run continues; None if it has no state."""
    entry = _read_entry(folder)
    if entry is None:
        return None
    try:
        scales, extremes = (tuple(map(float, entry[name])) for name in ("scales", "extremes"))
        return Position(int(entry["step"]), float(entry["seconds"]), scales, extremes)
    except (KeyError, TypeError, ValueError) as error:
        raise _corrupt(folder.path / STATE, str(error)) from error


def restore_state(folder: Folder, trainers: Sequence[LayerTrainer]) -> None:
    """Continue all layers from the state on disk.

    Raises
    ------
    CorruptError
        If a file is damaged or missing.
    """
    entry: Mapping[str, Any] = _read_entry(folder) or {}
    for trainer in trainers:
        name = f"{trainer.layer}.safetensors"
        path = folder.path_to(STATES) / str(entry["step"]) / name
        try:
            most = sum(tensor.nbytes for tensor in trainer.state().values()) + MB
            content = read_regular(path, most, follow=False)
        except OSError as error:
            raise _corrupt(
                folder.path / STATES / str(entry["step"]) / name, error.strerror or str(error)
            ) from error
        if hashlib.sha256(content).hexdigest() != entry["files"].get(name):
            raise _corrupt(folder.path / STATES / str(entry["step"]) / name, "is damaged")
        with torch.no_grad():
            trainer.restore(load(content))


def remove_state(folder: Folder) -> None:
    """Remove the state of a run that has ended."""
    folder.remove(STATE)
    folder.remove_tree(STATES)


def _remove_other_states(folder: Folder, step: int) -> None:
    path = folder.path_to(STATES)
    with closing(Folder(path)) as opened:
        for other in path.iterdir():
            if other.name != str(step):
                opened.remove_tree(other.name)


def _read_entry(folder: Folder) -> dict[str, Any] | None:
    content = folder.read(STATE, MB)
    if content is None:
        return None
    try:
        entry = json.loads(content)
        if not isinstance(entry["files"], dict) or not isinstance(entry["step"], int):
            raise TypeError("files or step")
    except (ValueError, TypeError, KeyError) as error:
        raise _corrupt(folder.path / STATE, f"cannot be read: {error}") from error
    return dict(entry)


def _corrupt(path: Path, what: str) -> CorruptError:
    return CorruptError([Fault(str(path), what, "start anew with resume=False")])
