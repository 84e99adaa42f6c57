"""Rows of JSON: one object per line, or an array of objects."""

import json
from collections import Counter
from typing import Any

from .errors import Fault

ONE_OBJECT = "write one object per line"
_ARRAY = "write an array of objects: [{…}, {…}]"
_SPACE = " \t\r\n"
Rows = tuple[list[dict[str, Any]], list[int], list[Fault]]


def read_jsonl(where: str, text: str) -> Rows:
    """Read one object per line.

    Parameters
    ----------
    where
        Name of the file.
    text
        Its content.

    Returns
    -------
    rows : list of dict
    lines : list of int
        The line at which each row starts.
    faults : list of Fault
    """
    rows, lines, faults = [], [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row, what = parse_line(line)
        if what:
            faults.append(Fault(f"{where}, line {number}", what, ONE_OBJECT))
            continue
        rows.append(row)
        lines.append(number)
    return rows, lines, faults


def read_json(where: str, text: str) -> Rows:
    """Read an array of objects, or one object per line if further objects follow the first.

    Returns
    -------
    rows, lines, faults
        As for :func:`read_jsonl`.
    """
    at = _after_space(text, 0)
    if text[at : at + 1] == "[":
        return _read_array(where, text, at + 1)
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        return [], [], [Fault(where, _reason(error), _ARRAY)]
    if isinstance(value, dict) and text[end:].strip():
        return read_jsonl(where, text)
    what = f"holds a {type(value).__name__}, not an array of rows"
    if isinstance(value, dict):
        names = ", ".join(f"`{name}`" for name in list(value)[:5]) + (", …" if len(value) > 5 else "")
        what = f"holds one object with {names or 'nothing in it'}, not an array of rows"
    return [], [], [Fault(where, what, _ARRAY)]


def _read_array(where: str, text: str, at: int) -> Rows:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    faults: list[Fault] = []
    line, counted = 1, 0
    at = _after_space(text, at)
    closed = text[at : at + 1] == "]"
    while not closed:
        line, counted = line + text.count("\n", counted, at), at
        try:
            row, end = _DECODER.raw_decode(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            return [], [], [*faults, Fault(where, _reason(error), _ARRAY)]
        except ValueError as error:  # a repeated name, or a number with too many digits
            faults.append(Fault(f"{where}, line {line}", f"cannot be read: {error}", _ARRAY))
            try:
                row, end = json.JSONDecoder(parse_int=str).raw_decode(text, at)
            except (ValueError, RecursionError) as worse:
                return [], [], [*faults, Fault(where, _reason(worse), _ARRAY)]
        if not isinstance(row, dict):
            faults.append(
                Fault(f"{where}, line {line}", f"holds a {type(row).__name__}, not an object", _ARRAY)
            )
        rows.append(row)
        lines.append(line)
        at = _after_space(text, end)
        if text[at : at + 1] not in (",", "]"):
            damage = json.JSONDecodeError("Expecting ',' delimiter", text, at)
            return [], [], [*faults, Fault(where, _reason(damage), _ARRAY)]
        closed = text[at] == "]"
        at = at if closed else _after_space(text, at + 1)
    if text[at + 1 :].strip():
        faults.append(Fault(where, _reason(json.JSONDecodeError("Extra data", text, at + 1)), _ARRAY))
    return rows, lines, faults


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"is not JSON at line {error.lineno}, column {error.colno}: {error.msg}"
    return f"cannot be read: {error}"


def parse_line(line: str) -> tuple[dict[str, Any], str]:
    """Read one line of a JSONL file.

    Returns
    -------
    row : dict
        The row; empty if the line has a fault.
    what : str
        The fault of the line; empty if there is none.
    """
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        return {}, f"is not JSON at column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return {}, f"cannot be read: {error}"
    if not isinstance(row, dict):
        return {}, f"holds a {type(row).__name__}, not an object"
    return row, ""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"`{name}` is given twice")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
