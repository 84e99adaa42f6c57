"""Logic of the extraction form, derived from the fields of `Config`; contains no widgets."""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actkit.config import Config
from actkit.config_faults import check
from actkit.errors import Fault, InputError
from actkit.schema import FORMER_OPTIONS

from .choices import data_files, data_of, model_of, models
from .settings import Settings

# have dedicated widgets, or must not be set from a browser
APART = frozenset(
    {
        *("model", "adapter", "data", "out", "layers", "image_root", "wandb", "streaming", "split", "subset"),
        "revision",
    }
)
FIRST = ("languages", "batch_size", "keep_tokens", "max_tokens", "limit", "storage")
COLUMNS = ("text_column", "language_column", "id_column", "labels")


Kind = Literal["text", "choice", "switch"]


@dataclass(frozen=True)
class Option:
    """Description of a form field.

    Parameters
    ----------
    name
        Name of the field of `Config`.
    kind
        ``text``, ``choice`` or ``switch``.
    choices
        Allowed values of a ``choice``; the first is the default.
    help
        Description of the field.
    default
        Default value, as text.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...]
    help: str
    default: str

    @property
    def label(self) -> str:
        """Label shown to users."""
        return self.name.replace("_", " ").capitalize()


def options() -> list[Option]:
    """Return the fields of the form, in the order of the config."""
    return [_option(name) for name in Config.model_fields if name not in APART]


def _option(name: str) -> Option:
    field = Config.model_fields[name]
    default = shown(field.default)
    members = _members(field.annotation)
    kind: Kind = "text"
    choices: list[str] = []
    if bool in members and field.default is not None:
        kind = "switch"
    elif bool in members:
        kind, choices = "choice", ["", "true", "false"]
    elif all(isinstance(member, str) for member in members - {None}):
        kind, choices = "choice", list(dict.fromkeys([default, *_literals(field.annotation)]))
    return Option(name, kind, tuple(choices), str(field.description), default)


def _members(annotation: Any) -> set[Any]:
    """Return the members of a type annotation: types, strings of a literal, and None."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return set().union(*(_members(part) for part in typing.get_args(annotation)))
    if typing.get_origin(annotation) is Literal:
        return set(typing.get_args(annotation))
    return {None if annotation is type(None) else annotation}


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [value for part in typing.get_args(annotation) for value in _literals(part)]


def shown(value: Any) -> str:
    """Format a value of the config as the form and the shell accept it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={shown(item)}" for name, item in value.items() if item is not None)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def read_form(
    settings: Settings, values: Mapping[str, Any]
) -> tuple[Config | None, dict[str, str], Mapping[str, Any]]:
    """Validate the values of the form.

    Parameters
    ----------
    settings
        Settings of the app.
    values
        Value by field; ``model`` and ``data`` as displayed in their lists. Empty values mean the default.

    Returns
    -------
    config : Config or None
        The config, with ``-`` for `out`; None if there are faults.
    faults : dict
        Error message by field; ``""`` holds errors that belong to no field.
    options : Mapping
        Options that differ from their defaults.
    """
    defaults = {option.name: option.default for option in options()} | {"layers": "all"}
    asked = {
        name: value
        for name, value in values.items()
        if name in defaults and value not in (None, "", [], ()) and shown(value) != defaults[name]
    }
    faults: list[Fault] = []
    for name, choose in (("model", model_of), ("data", data_of)):
        try:
            asked[name] = str(choose(settings, str(values.get(name) or "")))
        except InputError as error:
            faults += error.faults
            asked[name] = "-"
    config, config_faults = check({**asked, "out": "-"})
    faults += config_faults
    by_field: dict[str, str] = {}
    known = {*defaults, "model", "data"}
    for fault in faults:
        name = fault.where.split(".")[0].split(" ")[0]
        name = name if name in known else ""
        line = fault.message if name else str(fault)
        by_field[name] = f"{by_field[name]}; {line}" if name in by_field else line
    return (None if faults else config), by_field, asked


def from_options(settings: Settings, asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Convert options, such as those of a YAML file, to values of the form.

    Returns
    -------
    values : dict
        Value by field.
    faults : list of Fault
        Options that the app does not offer, and unavailable models and data.
    """
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    lists: dict[str, Mapping[str, Any]] = {"model": models(settings), "data": data_files(settings)}
    for name, value in asked.items():
        if name in lists:
            matches = [choice for choice, path in lists[name].items() if value in (choice, str(path))]
            if matches:
                values[name] = matches[0]
            else:
                faults.append(Fault(name, f"{value!r} is not available here", "choose from the list"))
        elif name == "layers":
            values[name] = shown(value) if not isinstance(value, list) else " ".join(map(str, value))
        elif name in APART:
            if name != "out":  # determined by the name of the run
                faults.append(Fault(name, "is not available in the app", "start the run from a shell"))
        elif name in Config.model_fields:
            values[name] = shown(value)
        else:
            hint = f"did you mean {FORMER_OPTIONS[name]}?" if name in FORMER_OPTIONS else "remove it"
            faults.append(Fault(name, "is not an option", hint))
    return values, faults
