"""Shards, read row by row: Parquet and JSONL files, one after the other."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import Fault, InputError
from .tables import ONE_OBJECT, Record, parse_line, repeated, utf8_fault

LOOKAHEAD = 1000  # rows of JSONL in which every column has to occur


class ParquetShards:
    """Parquet files, one after the other.

    Parameters
    ----------
    files
        In their order.
    names
        What to put before the numbers of each one's rows.

    Raises
    ------
    InputError
        If a file cannot be read, or has a column twice.

    Notes
    -----
    Not read by `datasets`, which keeps a row group in memory, often all of a file, and leaves
    checksums unread.
    """

    digest = None

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        faults, self._schemas = [], []
        for path in files:
            try:
                self._schemas.append(pq.read_schema(path))
                faults += repeated(path, self._schemas[-1].names)
            except (pa.ArrowException, OSError, ValueError) as error:
                faults.append(_unreadable(path, error))
        if faults:
            raise InputError(faults)
        self._files, self._names = files, names

    @property
    def columns(self) -> Collection[str]:
        """Names of the columns of the first file."""
        return tuple(self._schemas[0].names)

    def holds_text(self, name: str) -> bool:
        """Tell whether a column is one of strings."""
        import pyarrow as pa

        kind = self._schemas[0].field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Give the cells of some columns, row by row."""
        names = list(names)
        faults = [
            Fault(str(path), f"has no column `{name}`, which {self._files[0]} has", "write it again")
            for path, schema in zip(self._files, self._schemas, strict=True)
            for name in names
            if name not in schema.names
        ]
        if faults:
            raise InputError(faults)
        for path, prefix in zip(self._files, self._names, strict=True):
            for number, cells in enumerate(_cells(path, names), start=1):
                yield Record(f"{prefix}row {number}", cells)


def _cells(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    try:
        # pages are read one by one: a row group may hold thousands of images
        careful = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": 2**16}
        with pq.ParquetFile(path, **careful) as file:
            kinds = [file.schema_arrow.field(name).type for name in names]
            for batch in file.iter_batches(batch_size(kinds), columns=names, use_threads=False):
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    yield cells
                    count += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError([_unreadable(path, error, f" after row {count}")]) from None


def batch_size(kinds: Iterable[Any]) -> int:
    """Return how many rows to hold at once: few where they may hold images."""
    import pyarrow as pa

    images = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    return 16 if any(test(kind) for kind in kinds for test in images) else 256


def _unreadable(path: Path, error: Exception, where: str = "") -> Fault:
    return Fault(str(path), f"cannot be read as Parquet{where}: {error}", "write it again")


class JsonlShards:
    """JSONL files, one after the other.

    Parameters
    ----------
    files, names
        As of :class:`ParquetShards`.
    complete
        Whether a row is at fault that has a column which the first rows lack.

    Raises
    ------
    InputError
        If there is no row to be read among the first.

    Notes
    -----
    Not read by `datasets`, which takes dates for timestamps and turns columns of several types into
    JSON.
    """

    digest = None

    def __init__(self, files: Sequence[Path], names: Sequence[str], *, complete: bool) -> None:
        self._files, self._names, self._complete = files, names, complete
        self._columns: dict[str, Any] = {}
        faults = []
        for _, cells, fault in islice(self._parsed(), LOOKAHEAD):
            faults += [fault] if fault else []
            for name, cell in cells.items():
                if self._columns.get(name) is None:
                    self._columns[name] = cell
        if not self._columns:
            raise InputError(faults or [Fault(str(files[0]), "holds no rows")])

    @property
    def columns(self) -> Collection[str]:
        """Names of the columns of the first rows, by first occurrence."""
        return tuple(self._columns)

    def holds_text(self, name: str) -> bool:
        """Tell whether the first cell of a column that is not empty is text."""
        return isinstance(self._columns[name], str)

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Give the cells of some columns, row by row; a line that cannot be read is a row at fault."""
        names = list(names)
        for where, cells, fault in self._parsed():
            new = cells.keys() - self._columns.keys() if self._complete else ()
            if new:
                what = f"has a column `{min(new)}`, which none of the first {LOOKAHEAD:,} rows has"
                fault = Fault(where, what, "choose the columns with `labels`")
            yield Record(where, {name: cells.get(name) for name in names}, fault)

    def _parsed(self) -> Iterator[Record]:
        row = 0
        for path, prefix in zip(self._files, self._names, strict=True):
            try:
                with path.open("rb") as lines:
                    for number, line in enumerate(lines, start=1):
                        if not line.strip():
                            continue
                        row += 1
                        where = f"{prefix}line {number}" if prefix else f"row {row} (line {number})"
                        what = utf8_fault(line)
                        cells: dict[str, Any] = {}
                        if not what:
                            cells, what = parse_line(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                        yield Record(where, cells, Fault(where, what, ONE_OBJECT) if what else None)
            except OSError as error:
                raise InputError([Fault(str(path), f"cannot be read: {error}", "check the path")]) from None
