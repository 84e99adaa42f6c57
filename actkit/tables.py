"""Tables of prompts, read from CSV, TSV, JSON, JSONL, Parquet and .xlsx files."""

import codecs
import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

from .csv_rows import Grid, read_csv, read_tsv
from .errors import Fault
from .json_rows import Rows, read_json, read_jsonl
from .parquet_pages import largest_cell
from .regular_files import MB, MOST_TABLE, read_regular
from .spreadsheets import read_xlsx

_AT_ONCE = 64 * MB  # uncompressed size of the rows held at once
_POINTER = 8  # bytes of a cell without its content
_SMALLER = "make smaller files; Parquet and JSONL can be read row by row with `streaming: true`"
Kind = Literal["text", "list", "object", "other"]


class Record(NamedTuple):
    """One row of a file or dataset: its location, its cells, and a fault that keeps it from being read."""

    where: str
    cells: dict[str, Any]
    fault: Fault | None = None


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Parameters
    ----------
    columns
        Name to values, in the order of the file; ``None`` for missing values.
    digest
        SHA-256 of the file.
    lines
        Line of the file at which each row starts, if it has lines.
    """

    columns: dict[str, list[Any]]
    digest: str
    lines: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def where(self, row: int) -> str:
        """Return the location of a row as a user counts it: rows and lines from 1."""
        return f"row {row + 1}" + (f" (line {self.lines[row]})" if self.lines else "")

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the cells of some columns, row by row."""
        chosen = {name: self.columns[name] for name in names}
        for row in range(len(self)):
            yield Record(self.where(row), {name: cells[row] for name, cells in chosen.items()})

    def kind(self, name: str) -> Kind:
        """Return the kind of the first non-empty cell of a column."""
        return kind_of(next((cell for cell in self.columns[name] if cell is not None), None))


def read_table(path: Path, most: int = MOST_TABLE) -> tuple[Table | None, list[Fault]]:
    """Read a file of prompts of any known format.

    Parameters
    ----------
    path
        File whose name ends in one of ``FORMATS``. Cells of CSV and TSV stay strings, byte for byte; the
        other formats keep their types.
    most
        Maximum size of the file in bytes, compressed and uncompressed.

    Returns
    -------
    table : Table or None
    faults : list of Fault
        All faults that keep the file from being read, one for each faulty row.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        if not os.path.exists(path):
            return None, [Fault(str(path), "does not exist", "check the path")]
        return None, [Fault(str(path), f"is of unknown type `{path.suffix}`", f"known: {', '.join(FORMATS)}")]
    try:
        content = read_regular(path, most)
    except FileNotFoundError:
        return None, [Fault(str(path), "does not exist", "check the path")]
    except (OSError, ValueError) as error:
        return None, [Fault(str(path), f"cannot be read: {error}", "check the path")]
    try:
        table, faults = reader(path, content, most)
    except MemoryError:
        return None, [Fault(str(path), "does not fit into memory", _SMALLER)]
    if table is not None and not faults and not len(table):
        faults.append(Fault(str(path), "holds no rows"))
    return (None, faults) if faults else (table, faults)


_Result = tuple[Table | None, list[Fault]]


def _decode(path: Path, content: bytes) -> tuple[str, list[Fault]]:
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        pass
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "", [Fault(str(path), "is UTF-16", "save the file as UTF-8")]
    whats = enumerate(map(utf8_fault, content.split(b"\n")), start=1)
    return "", [
        Fault(f"{path}, line {number}", what, "save the file as UTF-8") for number, what in whats if what
    ]


def utf8_fault(line: bytes) -> str:
    """Return the first byte of a line that is not valid UTF-8, as a fault; ``""`` if there is none."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start : error.start + 1]
        letter = byte.decode("cp1252", errors="replace")
        other = f" (in Windows-1252 it is `{letter}`)" if letter.isalpha() else ""
        return f"byte 0x{byte.hex()} at position {error.start + 1} is not UTF-8{other}"
    return ""


def _of_text(parse: Callable[[str, str], tuple[Grid, list[Fault]]]) -> "_Reader":
    """Return a reader of delimited text."""

    def read(path: Path, content: bytes, _most: int) -> _Result:
        text, faults = _decode(path, content)
        return (None, faults) if faults else _of_grid(path, content, *parse(str(path), text))

    return read


def _of_json(parse: Callable[[str, str], Rows]) -> "_Reader":
    """Return a reader of JSON objects."""

    def read(path: Path, content: bytes, most: int) -> _Result:
        text, faults = _decode(path, content)
        rows, lines, more = ([], [], []) if faults else parse(str(path), text)
        if faults := faults + more:
            return None, faults
        names = dict.fromkeys(name for row in rows for name in row)
        if len(names) * len(rows) * _POINTER > most:
            what = f"unpacks to {len(names):,} columns of {len(rows):,} rows"
            return None, [Fault(str(path), what, "give all rows the same names")]
        columns = {name: [row.get(name) for row in rows] for name in names}
        return Table(columns, hashlib.sha256(content).hexdigest(), lines), []

    return read


def _read_xlsx(path: Path, content: bytes, most: int) -> _Result:
    return _of_grid(path, content, *read_xlsx(str(path), content, most))


def _of_grid(path: Path, content: bytes, grid: Grid, faults: list[Fault]) -> _Result:
    """Return the columns of a grid, without the nameless empty ones that spreadsheets leave at its edge."""
    named = [
        at
        for at, name in enumerate(grid.names)
        if name or any(row[at : at + 1] not in ([""], [None]) for row in grid.rows)
    ]
    faults = faults + repeated(path, [grid.names[at] for at in named])
    if faults:
        return None, faults
    columns = {grid.names[at]: [row[at] for row in grid.rows] for at in named}
    return Table(columns, hashlib.sha256(content).hexdigest(), grid.lines), []


def _read_parquet(path: Path, content: bytes, most: int) -> _Result:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        names = file.schema_arrow.names
        values: list[list[Any]] = [[] for _ in names]
        held = file.metadata.num_rows * len(names) * _POINTER
        size = rows_at_once(io.BytesIO(content), file.metadata)
        for batch in file.iter_batches(size, use_threads=False) if held <= most else ():
            # Arrow trusts text declared as UTF-8 unless fully validated
            batch.validate(full=True)
            if (held := held + batch.nbytes) > most:
                break
            for column, cells in zip(values, batch.columns, strict=True):
                column += cells.to_pylist()
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        return None, [Fault(str(path), f"cannot be read as Parquet: {error}", "write it again")]
    if held > most:
        return None, [Fault(str(path), f"unpacks to more than {most // MB:,} MB", _SMALLER)]
    faults = repeated(path, names)
    columns = dict(zip(names, values, strict=True))
    return Table(columns, hashlib.sha256(content).hexdigest()), faults


def rows_at_once(file: BinaryIO, metadata: Any) -> int:
    """Return the number of rows of a Parquet file that may be uncompressed at once.

    Parameters
    ----------
    file
        The file.
    metadata
        Metadata of the file.

    Raises
    ------
    ValueError
        As for :func:`~actkit.parquet_pages.largest_cell`.

    Notes
    -----
    With dictionaries or shared prefixes, every row could hold the largest cell. Otherwise rows take no more
    than the metadata state, and in most files about the mean.
    """
    most = 4096
    if cell := largest_cell(file, metadata):
        most = min(most, _AT_ONCE // cell)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        sizes = [group.column(at).total_uncompressed_size for at in range(group.num_columns)]
        most = min(most, _AT_ONCE * group.num_rows // max([1, *sizes]))
    return max(most, 1)


def kind_of(cell: Any) -> Kind:
    """Return the kind of a cell."""
    kinds: dict[type, Kind] = {str: "text", list: "list", dict: "object"}
    return kinds.get(type(cell), "other")


def repeated(path: Path, names: list[str]) -> list[Fault]:
    """Return a fault for each column name that occurs more than once."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    return [Fault(str(path), f"column `{name}` occurs twice", "rename one") for name in twice]


_Reader = Callable[[Path, bytes, int], _Result]

_READERS: dict[str, _Reader] = {
    ".csv": _of_text(read_csv),
    ".tsv": _of_text(read_tsv),
    ".jsonl": _of_json(read_jsonl),
    ".ndjson": _of_json(read_jsonl),
    ".json": _of_json(read_json),
    ".parquet": _read_parquet,
    ".xlsx": _read_xlsx,
}

FORMATS = tuple(_READERS)
