"""Files of prompts, read into columns: CSV, TSV, JSONL and Parquet."""

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Fault


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
        return None, [
            Fault(str(path), f"is of unknown type `{path.suffix}`", f"known: {', '.join(_READERS)}")
        ]
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


_Reading = tuple[Table | None, list[Fault]]


def _decode(path: Path, content: bytes) -> tuple[str, list[Fault]]:
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    faults = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"byte 0x{line[error.start]:02x} at position {error.start + 1} is not UTF-8"
            faults.append(Fault(f"{path}, line {number}", what, "save the file as UTF-8"))
    return "", faults


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
    faults += _repeated(path, header)
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
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            what = f"is not JSON at column {error.colno}: {error.msg}"
            faults.append(Fault(where, what, "write one object a line"))
            continue
        except (ValueError, RecursionError) as error:
            faults.append(Fault(where, f"cannot be read: {error}", "write one object a line"))
            continue
        if not isinstance(row, dict):
            faults.append(
                Fault(where, f"holds a {type(row).__name__}, not an object", "write one object a line")
            )
            continue
        rows.append(row)
        lines.append(number)
    if faults:
        return None, faults
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return Table(columns, hashlib.sha256(content).hexdigest(), lines), []


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
    faults = _repeated(path, read.column_names)
    columns = dict(zip(read.column_names, values, strict=True))
    return Table(columns, hashlib.sha256(content).hexdigest()), faults


def _repeated(path: Path, names: list[str]) -> list[Fault]:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return [Fault(str(path), f"column `{name}` occurs twice", "rename one") for name in twice]


_READERS: dict[str, Callable[[Path, bytes], _Reading]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
