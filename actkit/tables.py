"""Files of prompts, read into columns: CSV, TSV, JSONL and Parquet."""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .errors import Fault


class Record(NamedTuple):
    """One row of a file or dataset: where it is, its cells, and what keeps it from being read."""

    where: str
    cells: dict[str, Any]
    fault: Fault | None = None


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Parameters
    ----------
    columns
        Name to values, in the file's order; ``None`` where a row has no value.
    digest
        SHA-256 of the file.
    lines
        The line of the file at which each row starts, where it has lines.
    """

    columns: dict[str, list[Any]]
    digest: str
    lines: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def where(self, row: int) -> str:
        """Name a row as its user counts it: rows from 1, lines of the file from 1."""
        return f"row {row + 1}" + (f" (line {self.lines[row]})" if self.lines else "")

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Give the cells of some columns, row by row; as often as asked."""
        chosen = {name: self.columns[name] for name in names}
        for row in range(len(self)):
            yield Record(self.where(row), {name: cells[row] for name, cells in chosen.items()})

    def holds_text(self, name: str) -> bool:
        """Tell whether the first cell of a column that is not empty is text."""
        return isinstance(next((cell for cell in self.columns[name] if cell is not None), None), str)


def read_table(path: Path) -> tuple[Table | None, list[Fault]]:
    """Read a file of prompts, whatever its format.

    Parameters
    ----------
    path
        A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file. Cells of CSV and TSV stay strings,
        byte for byte; JSONL and Parquet keep their types.

    Returns
    -------
    table : Table or None
    faults : list of Fault
        Everything that keeps the file from being read, row by row where rows are at fault.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        if not os.path.exists(path):
            return None, [Fault(str(path), "does not exist", "check the path")]
        return None, [Fault(str(path), f"is of unknown type `{path.suffix}`", f"known: {', '.join(FORMATS)}")]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None, [Fault(str(path), "does not exist", "check the path")]
    except (OSError, ValueError) as error:
        return None, [Fault(str(path), f"cannot be read: {error}", "check the path")]
    table, faults = reader(path, content)
    if table is not None and not faults and not len(table):
        faults.append(Fault(str(path), "holds no rows"))
    return (None, faults) if faults else (table, faults)


ONE_OBJECT = "write one object a line"
_Reading = tuple[Table | None, list[Fault]]


def _decode(path: Path, content: bytes) -> tuple[str, list[Fault]]:
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    whats = enumerate(map(utf8_fault, content.split(b"\n")), start=1)
    return "", [
        Fault(f"{path}, line {number}", what, "save the file as UTF-8") for number, what in whats if what
    ]


def utf8_fault(line: bytes) -> str:
    """Return which byte of a line keeps it from being UTF-8; ``""`` where none does."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8"
    return ""


def _read_csv(path: Path, content: bytes, delimiter: str = ",") -> _Reading:
    text, faults = _decode(path, content)
    if faults:
        return None, faults
    # newline handling is the csv module's: a "\r\n" within quotes is part of the cell
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    limit = csv.field_size_limit(max(len(text), 1))  # a long prompt is no broken quote
    try:
        header = next(reader, [])
        start = reader.line_num + 1
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        faults.append(Fault(f"{path}, line {start}", str(error), "mend the quoting"))
    finally:
        csv.field_size_limit(limit)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            what = f"has {len(row)} cells where the header has {len(header)}"
            faults.append(Fault(f"{path}, line {line}", what, "quote cells that hold the delimiter"))
    faults += repeated(path, header)
    if faults:
        return None, faults
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return Table(columns, hashlib.sha256(content).hexdigest(), lines), []


def _read_tsv(path: Path, content: bytes) -> _Reading:
    return _read_csv(path, content, delimiter="\t")


def _read_jsonl(path: Path, content: bytes) -> _Reading:
    text, faults = _decode(path, content)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row, what = parse_line(line)
        if what:
            faults.append(Fault(f"{path}, line {number}", what, ONE_OBJECT))
            continue
        rows.append(row)
        lines.append(number)
    if faults:
        return None, faults
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(columns, hashlib.sha256(content).hexdigest(), lines), []


def parse_line(line: str) -> tuple[dict[str, Any], str]:
    """Read one line of a JSONL file.

    Returns
    -------
    row : dict
        Empty where the line is at fault.
    what : str
        What is wrong with the line; empty if nothing is.
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


def _read_parquet(path: Path, content: bytes) -> _Reading:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
        # Arrow trusts what a file declares to be UTF-8; full validation does not
        read.validate(full=True)
        values = [column.to_pylist() for column in read.columns]
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        return None, [Fault(str(path), f"cannot be read as Parquet: {error}", "write it again")]
    faults = repeated(path, read.column_names)
    columns = dict(zip(read.column_names, values, strict=True))
    return Table(columns, hashlib.sha256(content).hexdigest()), faults


def repeated(path: Path, names: list[str]) -> list[Fault]:
    """Name the columns that a file has more than once."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return [Fault(str(path), f"column `{name}` occurs twice", "rename one") for name in twice]


_READERS: dict[str, Callable[[Path, bytes], _Reading]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}

FORMATS = tuple(_READERS)
