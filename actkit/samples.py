"""Rows of a file, checked and turned into the samples of a cube."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .config import Config
from .errors import Fault
from .schema import VARIABLES
from .tables import Table, read_table

NO_LANGUAGE = "unspecified"


@dataclass(frozen=True)
class Samples:
    """What a cube is made of, in its order; every array has dims ``(sample,)``.

    Parameters
    ----------
    sample_id, language, text
        Object arrays of str.
    labels
        Name to values: object arrays of str, or int64, float64 or bool.
    digest
        SHA-256 of the file they were read from.
    """

    sample_id: np.ndarray
    language: np.ndarray
    text: np.ndarray
    labels: dict[str, np.ndarray]
    digest: str

    def __len__(self) -> int:
        return len(self.text)


class _Row(NamedTuple):
    number: int
    sample_id: Any
    language: Any
    column: str
    text: Any


def read_samples(config: Config) -> tuple[Samples | None, list[Fault]]:
    """Read and check the samples that a config asks for.

    Parameters
    ----------
    config
        Its ``data``, column, ``languages``, ``labels`` and ``limit`` settings are used.

    Returns
    -------
    samples : Samples or None
    faults : list of Fault
        Everything wrong with the rows asked for, with row and line numbers.
    """
    table, faults = read_table(Path(config.data))
    if table is None:
        return None, faults
    faults = _check_columns(table, config)
    deciding = [*_text_columns(config), *([config.language_column] if _chooses(config) else [])]
    if not set(deciding) <= table.columns.keys():
        return None, faults
    rows, more = _select(list(_rows(table, config)), config)
    faults += more + _check_rows(table, config, rows)
    labels: dict[str, np.ndarray] = {}
    for name in (name for name in _label_names(table, config) if name in table.columns):
        values, fault = _label_array([table.columns[name][row.number] for row in rows])
        faults += (
            [Fault(f"column `{name}`", fault, "convert it to text, or leave it out with `labels`")]
            if fault
            else []
        )
        labels[name] = values
    if faults:
        return None, faults
    return Samples(
        sample_id=_objects([str(row.sample_id) for row in rows]),
        language=_objects([row.language for row in rows]),
        text=_objects([row.text for row in rows]),
        labels=labels,
        digest=table.digest,
    ), []


def _text_columns(config: Config) -> list[str]:
    return list((config.text_columns or {"": config.text_column}).values())


def _chooses(config: Config) -> bool:
    """Tell whether rows are taken or left by their language."""
    return config.text_columns is None and len(config.languages or ()) > 1


def _label_names(table: Table, config: Config) -> list[str]:
    used = {*_text_columns(config), config.id_column}
    if config.text_columns is None:
        used.add(config.language_column)
    return (
        list(config.labels)
        if config.labels is not None
        else [name for name in table.columns if name not in used]
    )


def _check_columns(table: Table, config: Config) -> list[Fault]:
    present = f"it has {', '.join(table.columns)}"
    wanted = {"text_columns" if config.text_columns else "text_column": _text_columns(config)}
    if config.labels is not None:
        wanted["labels"] = list(config.labels)
    # an id or language column that nobody named or needs may be absent
    wanted |= {
        option: [getattr(config, option)]
        for option, needed in (("id_column", False), ("language_column", _chooses(config)))
        if needed or option in config.model_fields_set
    }
    faults = [
        Fault(config.data, f"has no column `{name}`", f"{present}; set `{option}`")
        for option, names in wanted.items()
        for name in names
        if name not in table.columns
    ]
    for name in _label_names(table, config):
        if name in VARIABLES or name == "hidden":
            what = f"column `{name}` has the name of a variable of the cube"
            faults.append(Fault(config.data, what, "rename it, or choose the columns with `labels`"))
        elif not _is_node_name(name):
            what = f"column {name!r} cannot be the name of an array"
            faults.append(Fault(config.data, what, "rename it, or choose the columns with `labels`"))
    return faults


def _is_node_name(name: str) -> bool:
    """Tell whether zarr can store an array of this name, and nowhere but in its group."""
    if _text_fault(name) or set(name) & set("/\\\0") or len(name.encode()) > 200:
        return False
    # `.partial` is what the store calls a file that it has not finished
    reserved = (
        not name.strip(".") or name == "zarr.json" or name.startswith("__") or name.endswith(".partial")
    )
    return not reserved


def _rows(table: Table, config: Config) -> Iterator[_Row]:
    count = range(len(table))
    ids = table.columns.get(config.id_column, count)
    if config.text_columns is not None:
        for index in count:
            for language, column in config.text_columns.items():
                yield _Row(index, ids[index], language, column, table.columns[column][index])
        return
    single = config.languages[0] if config.languages and len(config.languages) == 1 else NO_LANGUAGE
    languages = table.columns.get(config.language_column, [single] * len(table))
    texts = table.columns[config.text_column]
    for index in count:
        yield _Row(index, ids[index], languages[index], config.text_column, texts[index])


def _select(rows: list[_Row], config: Config) -> tuple[list[_Row], list[Fault]]:
    if config.languages is None:
        return rows[: config.limit], []
    present = dict.fromkeys(str(row.language) for row in rows)
    faults = [
        Fault("languages", f"unknown language `{name}`", f"the data has {', '.join(present)}")
        for name in config.languages
        if name not in present
    ]
    return [row for row in rows if row.language in config.languages][: config.limit], faults


def _check_rows(table: Table, config: Config, rows: list[_Row]) -> list[Fault]:
    faults: list[Fault] = []
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        where = table.where(row.number)
        for name, value in ((row.column, row.text), (config.language_column, row.language)):
            what = _text_fault(value)
            if what:
                faults.append(Fault(where, f"`{name}` {what}", "mend or remove the row"))
        what = "" if type(row.sample_id) is int else _text_fault(row.sample_id)
        if what:
            faults.append(Fault(where, f"`{config.id_column}` {what}", "name the sample"))
            continue
        key = (str(row.sample_id), str(row.language))
        if key in seen:
            what = f"sample_id `{key[0]}` in {key[1]} is also that of {table.where(seen[key])}"
            faults.append(Fault(where, what, "make (sample_id, language) unique, or set `id_column`"))
        seen.setdefault(key, row.number)
    return faults


def _text_fault(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if not isinstance(value, str):
        return f"holds a {type(value).__name__}, not text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair, which no UTF-8 can store"
    return ""


def _label_array(values: list[Any]) -> tuple[np.ndarray, str]:
    """Find the one dtype that keeps every value as it was given."""
    kinds = {type(value) for value in values if value is not None}
    gaps = any(value is None for value in values)
    if kinds <= {str}:
        unstorable = any(_text_fault(value).startswith("holds") for value in values)
        fault = "holds text that no UTF-8 can store" if unstorable else ""
        return _objects(["" if value is None else value for value in values]), fault
    if kinds == {bool} and not gaps:
        return np.array(values, dtype=np.bool_), ""
    if kinds == {int} and not gaps and all(-(2**63) <= value < 2**63 for value in values):
        return np.array(values, dtype=np.int64), ""
    # gaps become NaN, which only floats have; integers past 2**53 would not survive that
    if kinds <= {int, float} and all(abs(value) <= 2**53 for value in values if type(value) is int):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64), ""
    if kinds <= {int, float}:
        return _objects(values), "holds whole numbers too large to keep exactly"
    names = ", ".join(sorted(kind.__name__ for kind in kinds)) + (" and gaps" if gaps else "")
    return _objects(values), f"holds {names}, which no single label can keep"


def _objects(values: list[Any]) -> np.ndarray:
    return np.fromiter(values, dtype=object, count=len(values))
