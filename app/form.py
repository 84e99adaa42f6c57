"""The form of an extraction, drawn from the config's own model; decisions alone, no widgets."""

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actkit.config import Config, check
from actkit.errors import Fault, InputError

from .choices import data_files, data_of, model_of, models
from .settings import Settings

# chosen in their own way, or nothing that a browser may say
APART = frozenset(
    {"model", "data", "out", "layers", "image_root", "wandb", "streaming", "split", "subset", "revision"}
)
FIRST = ("languages", "batch_size", "tokens", "max_tokens", "limit", "storage")
COLUMNS = ("text_column", "language_column", "id_column", "labels")


Kind = Literal["text", "choice", "switch"]


@dataclass(frozen=True)
class Option:
    """A field of the form.

    Parameters
    ----------
    name
        Of the config's field.
    kind
        ``text``, ``choice`` or ``switch``.
    choices
        Of a choice; the first stands for the default.
    help
        What it is.
    default
        As text.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...]
    help: str
    default: str

    @property
    def label(self) -> str:
        """As its user reads it."""
        return self.name.replace("_", " ").capitalize()


def options() -> list[Option]:
    """Return the fields of the form, in the order of the config."""
    return [_option(name) for name in Config.model_fields if name not in APART]


def _option(name: str) -> Option:
    own = Config.model_fields[name]
    default = shown(own.default)
    members = _members(own.annotation)
    kind: Kind = "text"
    choices: list[str] = []
    if bool in members and own.default is not None:
        kind = "switch"
    elif bool in members:
        kind, choices = "choice", ["", "true", "false"]
    elif all(isinstance(member, str) for member in members - {None}):
        kind, choices = "choice", list(dict.fromkeys([default, *_literals(own.annotation)]))
    return Option(name, kind, tuple(choices), str(own.description), default)


def _members(annotation: Any) -> set[Any]:
    """Return what a value may be: types, the strings of a literal, or None."""
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
    """Write a value of the config as the form, and the shell, read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{name}={shown(own)}" for name, own in value.items() if own is not None)
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def read_form(
    settings: Settings, values: Mapping[str, Any]
) -> tuple[Config | None, dict[str, str], Mapping[str, Any]]:
    """Check what the form says.

    Parameters
    ----------
    settings
        Of the app.
    values
        Field to what it holds; ``model`` and ``data`` as the lists show them. Empty ones stand for defaults.

    Returns
    -------
    config : Config or None
        Without `out`, which is ``-``.
    faults : dict
        Field to what is wrong with it; ``""`` holds what belongs to none.
    options : Mapping
        What is asked beyond the defaults.
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
    config, found = check({**asked, "out": "-"})
    faults += found
    by_field: dict[str, str] = {}
    known = {*defaults, "model", "data"}
    for fault in faults:
        name = fault.where.split(".")[0].split(" ")[0]
        name = name if name in known else ""
        line = fault.told if name else str(fault)
        by_field[name] = f"{by_field[name]}; {line}" if name in by_field else line
    return (None if faults else config), by_field, asked


def from_options(settings: Settings, asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """Turn options, such as those of a YAML file, into what the form shows.

    Returns
    -------
    values : dict
        Field to what it holds.
    faults : list of Fault
        Options that the app does not offer, and models and data that it cannot choose.
    """
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    lists: dict[str, Mapping[str, Any]] = {"model": models(settings), "data": data_files(settings)}
    for name, value in asked.items():
        if name in lists:
            told = [own for own, path in lists[name].items() if value in (own, str(path))]
            if told:
                values[name] = told[0]
            else:
                faults.append(Fault(name, f"{value!r} cannot be chosen here", "choose one of the list"))
        elif name == "layers":
            values[name] = shown(value) if not isinstance(value, list) else " ".join(map(str, value))
        elif name in APART:
            if name != "out":  # each run has its own
                faults.append(Fault(name, "is not offered here", "start that run in a shell"))
        elif name in Config.model_fields:
            values[name] = shown(value)
        else:
            faults.append(Fault(name, "is no option", "leave it out"))
    return values, faults
