"""Checks of options, which turn pydantic's validation errors into faults."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from .config import Config, ContradictionError, Generation, Tracking
from .errors import Fault
from .schema import FORMER_OPTIONS

# options that consist of several settings
_SETTINGS: dict[str, type[BaseModel]] = {"generate": Generation, "wandb": Tracking}


def check(options: Mapping[str, Any]) -> tuple[Config | None, list[Fault]]:
    """Turn options into a :class:`Config`.

    Parameters
    ----------
    options
        Field names and values; ``None`` stands for the default.

    Returns
    -------
    config : Config or None
        The config without the faulty options, so that the rest can still be checked; None if a required
        option is faulty.
    faults : list of Fault
        Faults of all options.
    """
    remaining = {name: value for name, value in options.items() if value is not None}
    placeholders: dict[str, Any] = {}
    faults: list[Fault] = []
    while True:  # contradictions are checked once every option is valid by itself
        try:
            config = Config(**placeholders, **remaining)
            return (None if placeholders else config), faults
        except ValidationError as error:
            details: list[dict[str, Any]] = [dict(detail) for detail in error.errors()]
        new = [fault for detail in details for fault in _faults(detail)]
        # pydantic reports an error for each member of a union; duplicates are dropped
        faults += dict.fromkeys(new)
        bad = {str(detail["loc"][0]) for detail in details if detail["loc"]} or {fault.where for fault in new}
        remaining = {name: value for name, value in remaining.items() if name not in bad}
        placeholders |= {name: "-" for name in ("model", "data", "out") if name in bad}


def _faults(detail: dict[str, Any]) -> list[Fault]:
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, ContradictionError):
        return error.faults
    option, *inner = map(str, detail["loc"])
    fields = Config.model_fields
    where = name = option
    if inner and option in _SETTINGS:
        fields, name = _SETTINGS[option].model_fields, inner[0]
        where = f"{option}.{name}"
    match detail["type"]:
        case "missing":
            return [Fault(where, "is missing", f"give {fields[name].description}")]
        case "extra_forbidden":
            close = FORMER_OPTIONS.get(where) or next(iter(difflib.get_close_matches(name, fields, n=1)), "")
            known = f"did you mean {close}?" if close else f"known: {', '.join(fields)}"
            return [Fault(where, "is not an option", known)]
        case "value_error":
            return [Fault(where, str(error))]
        case "bool_parsing" | "bool_type":
            return [Fault(where, f"{detail['input']!r} is not possible", "give true or false")]
        case _:
            return [Fault(where, f"{detail['input']!r} is not possible", f"give {fields[name].description}")]
