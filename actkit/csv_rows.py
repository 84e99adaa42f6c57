"""Rows of delimited text: CSV and TSV."""

import csv
import io
import re
from typing import Any, NamedTuple

from .errors import Fault

_NAMES = {",": "`,`", ";": "`;`", "\t": "a tab", "|": "`|`"}
# Excel declares a delimiter that differs from the locale's in a line before the header
_DECLARED = re.compile(r"sep=([^\r\n])\r?\n")


class Grid(NamedTuple):
    """A header, the rows below it, and the line at which each row starts."""

    names: list[str]
    rows: list[list[Any]]
    lines: list[int]


def read_csv(where: str, text: str) -> tuple[Grid, list[Fault]]:
    """Read CSV, keeping cells byte for byte.

    The delimiter is whichever of comma, ``;``, tab and ``|`` divides the header. It is a fault if several do;
    a header that none divides is a single column.

    Parameters
    ----------
    where
        Name of the file.
    text
        Its content.
    """
    if declared := _DECLARED.match(text):
        return _read(where, text, declared[1], skipped=1)
    dividing = [delimiter for delimiter in _NAMES if _divides(text, delimiter)]
    if len(dividing) > 1:
        what = f"can be divided by {' and by '.join(_NAMES[delimiter] for delimiter in dividing)}"
        return Grid([], [], []), [Fault(f"{where}, line 1", what, "quote the names that hold one of them")]
    return _read(where, text, dividing[0] if dividing else ",")


def read_tsv(where: str, text: str) -> tuple[Grid, list[Fault]]:
    """Read tab-separated cells; otherwise like :func:`read_csv`."""
    return _read(where, text, "\t")


def _divides(text: str, delimiter: str) -> bool:
    """Return whether a delimiter divides the header into several names without splitting a quoted one."""
    try:
        # newline="" leaves line breaks to the csv module: a "\r\n" within quotes is part of the cell
        names = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
    except csv.Error:
        return False
    return len(names) > 1 and not any('"' in name for name in names)


def _read(where: str, text: str, delimiter: str, skipped: int = 0) -> tuple[Grid, list[Fault]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[list[Any]] = []
    lines: list[int] = []
    faults = []
    start = 1
    limit = csv.field_size_limit(max(len(text), 1))  # a long prompt is not a broken quote
    try:
        for _ in range(skipped):
            next(reader)
        header = next(reader, [])
        start = reader.line_num + 1
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        faults.append(Fault(f"{where}, line {start}", str(error), "correct the quoting"))
    finally:
        csv.field_size_limit(limit)
    divided = f"divided by {_NAMES.get(delimiter, f'`{delimiter}`')}"
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            what = f"has {len(row)} cells where the header has {len(header)}, {divided}"
            faults.append(Fault(f"{where}, line {line}", what, "quote cells that hold the delimiter"))
    return Grid(header, rows, lines), faults
