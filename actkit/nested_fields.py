"""Fields of nested objects as columns: `task.prompt` is the field `prompt` of the column `task`."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

from .errors import Fault
from .tables import Kind, Record, kind_of

LOOKAHEAD = 1000  # number of rows, at least one of which must have the field


class Data(Protocol):
    """A file or dataset with columns, whose rows can be read repeatedly."""

    @property
    def columns(self) -> Collection[str]:
        """Names of the columns, in the order of the data."""

    @property
    def digest(self) -> str | None:
        """SHA-256 of the file; None for a stream."""

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the cells of some columns, row by row."""

    def kind(self, name: str) -> Kind:
        """Return the kind of the cells of a column."""


class NestedFields:
    """Data whose nested fields are also available as columns, under dotted paths.

    Parameters
    ----------
    data
        The data.
    names
        Requested names; those that are neither columns nor paths to a field are ignored.
    """

    def __init__(self, data: Data, names: Iterable[str]) -> None:
        self._data = data
        self._paths: dict[str, tuple[str, ...]] = {}
        self._kinds: dict[str, Kind] = {}
        self.fields: dict[str, list[str]] = {}
        roots = {name: _root(name, data) for name in names if name not in data.columns}
        paths = {name: (root, *name[len(root) + 1 :].split(".")) for name, root in roots.items() if root}
        first: list[Record] = []
        if paths:
            first = list(islice(data.records(dict.fromkeys(path[0] for path in paths.values())), LOOKAHEAD))
        for name, path in paths.items():
            cells = [record.cells for record in first if record.fault is None]
            if any(_has(row, path) for row in cells):
                self._paths[name] = path
                values = (_walk(row, path)[0] for row in cells)
                self._kinds[name] = kind_of(next((value for value in values if value is not None), None))
            known = (field for row in cells if isinstance(row[path[0]], dict) for field in row[path[0]])
            self.fields[path[0]] = list(dict.fromkeys(known))

    @property
    def columns(self) -> Collection[str]:
        """Names of the columns, followed by the requested paths."""
        return (*self._data.columns, *self._paths)

    @property
    def digest(self) -> str | None:
        """Digest of the data."""
        return self._data.digest

    def kind(self, name: str) -> Kind:
        """Return the kind of the first non-empty cell of a column."""
        return self._kinds[name] if name in self._kinds else self._data.kind(name)

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the cells of some columns, row by row; a path through anything but an object is a fault."""
        names = list(names)
        roots = dict.fromkeys(self._paths[name][0] if name in self._paths else name for name in names)
        for record in self._data.records(roots):
            if record.fault is not None:
                yield record
                continue
            cells, fault = {}, None
            for name in names:
                cells[name], what = _walk(record.cells, self._paths.get(name, (name,)))
                if what and fault is None:
                    fault = Fault(record.where, what, "write an object, or null")
            yield Record(record.where, cells, fault)


def _root(name: str, data: Data) -> str:
    """Return the longest prefix of a path that is a column of objects; ``""`` if there is none."""
    parts = name.split(".")
    prefixes = (".".join(parts[:stop]) for stop in range(len(parts) - 1, 0, -1))
    return next((name for name in prefixes if name in data.columns and data.kind(name) == "object"), "")


def _has(cells: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    cell: Any = cells
    for name in path:
        if not isinstance(cell, dict) or name not in cell:
            return False
        cell = cell[name]
    return True


def _walk(cells: Mapping[str, Any], path: tuple[str, ...]) -> tuple[Any, str]:
    """Return the cell at the end of a path, or None if it is missing, and the fault of the path."""
    cell: Any = cells
    for at, name in enumerate(path):
        if cell is None:
            return None, ""
        if not isinstance(cell, dict):
            kind, where = type(cell).__name__, ".".join(path[:at])
            return None, f"`{where}` holds a {kind}, which has no field `{name}`"
        cell = cell.get(name)
    return cell, ""
