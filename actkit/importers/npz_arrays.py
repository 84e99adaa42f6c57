"""Arrays in NumPy's ``.npz`` files: checked by their headers, and read a few rows at a time."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import Fault
from ..layer_spec import describe
from ..regular_files import MOST_TABLE, open_archive
from .folder_contents import BLOCK_BYTES, Shapes, brief, reading

_ONE_RUN = "write all layers from one run"
_WRITE_AGAIN = "write it again with numpy.savez or savez_compressed"
_MAX_ROW_BYTES = 2**31  # of one sample at one layer
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class NumberedFiles:
    """Files of each layer in the order of their numbers, and arrays from the files of the first layer.

    Parameters
    ----------
    paths
        Layer to files.
    hidden
        Length of the last dimension of ``activations``.
    other_arrays
        Name to the other arrays, one per file; None if the files have no array of that name.
    dtypes
        Types of ``activations``.
    """

    paths: dict[int, list[Path]]
    hidden: int
    other_arrays: dict[str, list[np.ndarray] | None]
    dtypes: tuple[str, ...]


def examine(
    folder: Path,
    paths: Mapping[int, Mapping[int, Path]],
    *,
    dims: Sequence[str],
    other_arrays: Mapping[str, Sequence[str]],
    optional: Collection[str] = (),
) -> tuple[NumberedFiles | None, list[Fault]]:
    """Check files, of which each layer has the same number with the same samples.

    Parameters
    ----------
    folder
        Folder of the files.
    paths
        Layer to number to file.
    dims
        Dimensions of ``activations``.
    other_arrays
        Name of another array to its dimensions, a subset of those of ``activations``.
    optional
        Names of the other arrays that may be absent from all files.

    Returns
    -------
    files : NumberedFiles or None
        The files; None if there are faults.
    faults : list of Fault
        Every fault of the files.
    """
    shapes, dtypes, hidden = Shapes(), set(), 0
    kept: dict[str, list[np.ndarray] | None] = {name: [] for name in other_arrays}
    first = min(paths, default=0)
    for layer, files in paths.items():
        for number, path in files.items():
            where = str(path.relative_to(folder))
            headers, arrays, what = _inspect(path, other_arrays)
            missing = {"activations", *other_arrays} - set(optional) - headers.keys()
            if not what and missing:
                what = f"holds no {', '.join(f'`{name}`' for name in sorted(missing))}"
            if what:
                shapes.faults.append(Fault(where, what, _WRITE_AGAIN))
                continue
            shape, dtype = headers["activations"]
            if not shapes.activations(where, shape, dtype, dims):
                continue
            hidden = shape[-1]
            dtypes.add(dtype)
            shapes.same("", where, "hidden size", hidden)
            shapes.same("", where, "arrays", sorted(arrays))
            shapes.same(str(number), where, "shape", shape, _ONE_RUN)
            for name, array in arrays.items():
                expected = tuple(shape[dims.index(dim)] for dim in other_arrays[name])
                _check_other_array(shapes, where, number, name, array, expected)
            for name in other_arrays if layer == first else ():
                previous, current = kept[name], arrays.get(name)
                kept[name] = None if previous is None or current is None else [*previous, current]
    if shapes.faults:
        return None, shapes.faults
    ordered = {layer: [files[number] for number in sorted(files)] for layer, files in paths.items()}
    return NumberedFiles(ordered, hidden, kept, tuple(sorted(dtypes))), []


def _check_other_array(
    shapes: Shapes, where: str, number: int, name: str, array: np.ndarray, expected: tuple[int, ...]
) -> None:
    """Check the type and shape of an array, and that it is the same in each layer."""
    if array.dtype.kind not in "biuU":
        what = f"`{name}` holds {array.dtype}, not whole numbers or text"
        shapes.faults.append(Fault(where, what, _WRITE_AGAIN))
    if array.shape != expected:
        what = f"`{name}` has shape {array.shape}, where `activations` requires {expected}"
        shapes.faults.append(Fault(where, what, _WRITE_AGAIN))
    digest = hashlib.sha256(array.tobytes()).digest()
    shapes.same(str(number), where, f"`{name}`", digest, _ONE_RUN)


def missing_numbers(paths: Mapping[int, Mapping[int, Path]]) -> list[Fault]:
    """Return a fault for each layer that lacks files numbered from 0 to the largest number of any layer."""
    expected = range(max((number for files in paths.values() for number in files), default=-1) + 1)
    return [
        Fault(f"layer {layer}", f"lacks files {describe(missing)}", "write them, or number the others from 0")
        for layer, files in paths.items()
        if (missing := [number for number in expected if number not in files])
    ]


def _inspect(
    path: Path, other_arrays: Collection[str]
) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, np.ndarray], str]:
    """Return the shape and dtype of every array, the values of the small ones, and any fault."""
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    arrays: dict[str, np.ndarray] = {}
    try:
        with open_archive(path) as archive:
            for name in (entry[:-4] for entry in archive.namelist() if entry.endswith(".npy")):
                with archive.open(f"{name}.npy") as member:
                    shape, by_column, dtype = _header(member)
                if dtype.hasobject and name in ("activations", *other_arrays):
                    return {}, {}, f"`{name}` holds Python objects, which are not loaded: they can run code"
                if by_column and name == "activations" and len(shape) > 1:
                    return {}, {}, "`activations` is stored column by column: use numpy.ascontiguousarray"
                size = prod(shape) * dtype.itemsize
                if size > archive.getinfo(f"{name}.npy").file_size:
                    return {}, {}, f"`{name}` has shape {shape}, but too few bytes for it"
                limit = _MAX_ROW_BYTES * max(shape[:1], default=1) if name == "activations" else MOST_TABLE
                if size > limit:
                    return {}, {}, f"`{name}` has shape {shape}, which is too large to be read"
                headers[name] = shape, dtype.name
                if name in other_arrays:
                    with archive.open(f"{name}.npy") as member:
                        arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # zipfile, zlib and NumPy each raise their own
        return {}, {}, f"cannot be read: {brief(error)}"
    return headers, arrays, ""


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    return _HEADERS[np.lib.format.read_magic(member)](member)


class RowStream:
    """Rows of ``activations`` from several files, in order, since compressed files allow no random access.

    Parameters
    ----------
    paths
        Files in the order of their samples.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = iter(enumerate(paths))
        self._open = ExitStack()
        self._number, self._path = -1, Path()
        self._at = self._rows = 0

    def take(self, count: int) -> Iterator[tuple[int, slice, np.ndarray]]:
        """Yield the next rows in blocks: number of the file, slice of its rows, and their values."""
        while count:
            while self._at == self._rows:
                self._next()
            block_rows = max(1, BLOCK_BYTES // self._row_bytes)
            rows = slice(self._at, self._at + min(count, block_rows, self._rows - self._at))
            with reading(str(self._path)):
                content = self._member.read((rows.stop - rows.start) * self._row_bytes)
                # zipfile compares the checksum only at the end of a member
                rest = self._member.read(1) if rows.stop == self._rows else b""
                if rest or len(content) < (rows.stop - rows.start) * self._row_bytes:
                    raise ValueError("its length differs from that in its header")
            self._at = rows.stop
            count -= rows.stop - rows.start
            yield self._number, rows, np.frombuffer(content, self._dtype).reshape(-1, *self._shape)

    def _next(self) -> None:
        self.close()
        with reading(str(self._path)):
            self._number, self._path = next(self._paths)
        with reading(str(self._path)):
            archive = self._open.enter_context(open_archive(self._path))
            self._member = self._open.enter_context(archive.open("activations.npy"))
            (self._rows, *self._shape), _, self._dtype = _header(self._member)
        self._at, self._row_bytes = 0, int(np.prod(self._shape)) * self._dtype.itemsize

    def close(self) -> None:
        """Close the open file."""
        self._open.close()
