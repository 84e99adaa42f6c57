"""Parquet and JSONL shards, read row by row, one after the other."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .errors import Fault, InputError
from .json_rows import ONE_OBJECT, parse_line
from .regular_files import MB, check_regular, open_regular
from .tables import Kind, Record, kind_of, repeated, rows_at_once, utf8_fault

_MOST_LINE = 256 * MB
LOOKAHEAD = 1000  # rows of JSONL in which every column has to occur


class ParquetShards:
    """Parquet files, one after the other.

    Parameters
    ----------
    files
        Files, in order.
    names
        Prefix of the row numbers of each file.

    Raises
    ------
    InputError
        If a file cannot be read, or has a column twice.

    Notes
    -----
    These are not read with `datasets`, which holds a row group in memory, often the whole file, and does not
    verify checksums.
    """

    digest = None

    def __init__(self, files: Sequence[Path], names: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        faults, self._schemas = [], []
        for path in files:
            try:
                check_regular([path])
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

    def kind(self, name: str) -> Kind:
        """Return the kind of the cells of a column."""
        return arrow_kind(self._schemas[0].field(name).type)

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the cells of some columns, row by row."""
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
        # pages are read one by one, since a row group may hold thousands of images
        options = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": 2**16}
        with open_regular(path) as headers, pq.ParquetFile(path, **options) as file:
            kinds = [file.schema_arrow.field(name).type for name in names]
            size = min(batch_size(kinds), rows_at_once(headers, file.metadata))
            for batch in file.iter_batches(size, columns=names, use_threads=False):
                batch.validate(full=True)
                for cells in batch.to_pylist():
                    yield cells
                    count += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError([_unreadable(path, error, f" after row {count}")]) from None


def batch_size(kinds: Iterable[Any]) -> int:
    """Return the number of rows to hold at once: few if they may hold images."""
    import pyarrow as pa

    images = (pa.types.is_nested, pa.types.is_binary, pa.types.is_large_binary)
    return 16 if any(test(kind) for kind in kinds for test in images) else 256


def arrow_kind(dtype: Any) -> Kind:
    """Return the kind of cells of an Arrow type."""
    import pyarrow as pa

    dtype = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        return "list"
    return "object" if pa.types.is_struct(dtype) else "other"


def _unreadable(path: Path, error: Exception, where: str = "") -> Fault:
    return Fault(str(path), f"cannot be read as Parquet{where}: {error}", "write it again")


class JsonlShards:
    """JSONL files, one after the other.

    Parameters
    ----------
    files, names
        As for :class:`ParquetShards`.
    complete
        Whether a column that the first rows lack is a fault.

    Raises
    ------
    InputError
        If none of the first rows can be read.

    Notes
    -----
    These are not read with `datasets`, which parses dates as timestamps and turns columns of several
    types into JSON.
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
        """Names of the columns of the first rows, in order of first occurrence."""
        return tuple(self._columns)

    def kind(self, name: str) -> Kind:
        """Return the kind of the first non-empty cell of a column."""
        return kind_of(self._columns[name])

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the cells of some columns, row by row; a line that cannot be read yields a fault."""
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
                with open_regular(path) as file:
                    lines = iter(lambda: file.readline(_MOST_LINE + 1), b"")
                    for number, line in enumerate(lines, start=1):
                        if len(line) > _MOST_LINE:
                            raise OSError(f"line {number} is longer than {_MOST_LINE // MB} MB")
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
