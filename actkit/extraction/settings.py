"""Comparison of the settings of a run with those of the cube in its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import ChangedError, Fault
from ..schema import current_options
from ..store.cube_files import RemoteCube
from ..store.layout import open_group
from ..store.metadata import CHECKSUM
from ..store.receipts import RECEIPTS
from .preflight.preparation import RunPlan

# attributes that result from running, or that `options` contains too
_NOT_SETTINGS = {
    "actkit_format",
    "arrays",
    "coordinates",
    "ids",
    "sum_rule",
    "sum_rule_error",
    "storage",
    "tokens_kept",
    CHECKSUM,
    RECEIPTS,
}
# a rerun takes over the first; the others change the last bits, which all parts of a run should share
_OF_MACHINES = {"batch_tokens", "device_name", "threads"}


def check_unchanged(path: Path | RemoteCube, prepared: RunPlan, *, same_machine: bool = False) -> None:
    """Check that a run would write the cube that is in its folder.

    Parameters
    ----------
    path
        The cube.
    prepared
        The run.
    same_machine
        Whether the kind of machine has to be the same too: the name of the device and the threads per batch.

    Raises
    ------
    ChangedError
        Names each setting that differs.
    """
    ignored = _NOT_SETTINGS if same_machine else _NOT_SETTINGS | _OF_MACHINES
    stored, current = _settings(open_group(path).attrs, ignored), _settings(prepared.attrs, ignored)
    faults = [
        Fault(name, f"was {_shown(name, stored)}, is now {_shown(name, current)}")
        for name in sorted(stored.keys() | current.keys())
        if stored.get(name) != current.get(name)
    ]
    if faults:
        what = "contains a cube made with other settings; choose another `out`, or restore them"
        heading = f"{prepared.config.out} {what}"
        raise ChangedError(faults, heading)


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    field = Config.model_fields.get(name)
    return repr(settings.get(name, field.default if field else "not set"))


def _settings(attrs: Mapping[str, Any], ignored: set[str]) -> dict[str, Any]:
    """Return the attributes that the settings of a run determine, with a separate entry for each option."""
    kept = {name: value for name, value in attrs.items() if name not in ignored}
    options = json.loads(kept.pop("options", "{}"))
    return {**kept, **current_options(options)}
