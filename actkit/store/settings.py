"""Comparison of the settings of runs, as the attributes of their cubes record them."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ..config import Config
from ..errors import ChangedError, Fault
from ..schema import current_options
from .cube_files import RemoteCube
from .layout import open_group
from .metadata import CHECKSUM
from .receipts import RECEIPTS

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
OF_MACHINES = ("batch_tokens", "device_name", "threads")


def differences(
    first: Mapping[str, Any], second: Mapping[str, Any], *, ignored: Collection[str] = ()
) -> list[tuple[str, str, str]]:
    """Return the settings in which two runs differ, by name, with both values as text.

    Parameters
    ----------
    first, second
        Attributes of their cubes.
    ignored
        Names of attributes and options that may differ.
    """
    settings = [_settings(attrs) for attrs in (first, second)]
    return [
        (name, _shown(name, settings[0]), _shown(name, settings[1]))
        for name in sorted(settings[0].keys() | settings[1].keys())
        if name not in ignored and settings[0].get(name) != settings[1].get(name)
    ]


def check_unchanged(path: Path | RemoteCube, attrs: Mapping[str, Any], *, same_machine: bool = False) -> None:
    """Check that a run would write the cube that is in its folder.

    Parameters
    ----------
    path
        The cube.
    attrs
        Attributes of the cube that the run would write.
    same_machine
        Whether the kind of machine has to be the same too: the name of the device and the threads per batch.

    Raises
    ------
    ChangedError
        Names each setting that differs.
    """
    ignored = () if same_machine else OF_MACHINES
    changed = differences(open_group(path).attrs, attrs, ignored=ignored)
    if changed:
        where = path.folder.parent.url if isinstance(path, RemoteCube) else path.parent
        heading = f"{where} contains a cube made with other settings; choose another `out`, or restore them"
        faults = [Fault(name, f"was {before}, is now {now}") for name, before, now in changed]
        raise ChangedError(faults, heading)


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    field = Config.model_fields.get(name)
    return repr(settings.get(name, field.default if field else "not set"))


def _settings(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that the settings of a run determine, with a separate entry for each option."""
    kept = {name: value for name, value in attrs.items() if name not in _NOT_SETTINGS}
    options = json.loads(kept.pop("options", "{}"))
    return {**kept, **current_options(options)}
