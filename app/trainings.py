"""Folders of the workspace in which sparse autoencoders are trained, as other processes write them."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from actkit.errors import CorruptError, Fault
from actkit.features.manifest import read_manifest
from actkit.features.training_settings import SETTINGS_FILE, stored_settings
from actkit.store.layout import CUBE
from actkit.store.run_folder import PARTS


def is_training(folder: Path) -> bool:
    """Return whether autoencoders are or were trained in a folder."""
    return os.path.lexists(folder / SETTINGS_FILE) and not os.path.lexists(folder / CUBE)


def read_settings(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the settings of a training, and the reasons why they cannot be read."""
    try:
        settings = stored_settings(folder)
    except CorruptError as error:
        return {}, list(error.faults)
    return ({} if settings is None else settings.dump()), []


def read_completeness(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return whether the manifest of a training says that all autoencoders are written, and its faults."""
    try:
        manifest = read_manifest(folder)
    except CorruptError as error:
        return {"complete": False}, list(error.faults)
    return {"complete": manifest is not None and manifest.complete}, []


def completed(status: Mapping[str, Any]) -> dict[str, Any]:
    """Return the status of a training that wrote all autoencoders, though it may not say so."""
    steps = {"step": status["total_steps"]} if "total_steps" in status else {}
    return {**status, **steps, "state": "done"}


def subfolders(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the names of the folders in a run folder in which autoencoders may be trained."""
    names: list[str] = []
    with suppress(OSError), os.scandir(folder) as entries:
        names += [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return {"names": [name for name in names if not name.startswith(".") and name not in (CUBE, PARTS)]}, []
