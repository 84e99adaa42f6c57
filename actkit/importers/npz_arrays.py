"""Arrays in NumPy's ``.npz`` files: what they are, without reading them; their rows, a few at a time."""

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
_MOST_ROW = 2**31  # bytes of a sample at a layer
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class NumberedFiles:
    """The files of each layer, in the order of their numbers, and arrays of those of the first layer.

    Parameters
    ----------
    paths
        Layer to its files.
    hidden
        Length of the last dimension of ``activations``.
    beside
        Name to the other arrays, one a file; None where the files have none of that name.
    dtypes
        Of ``activations``.
    """

    paths: dict[int, list[Path]]
    hidden: int
    beside: dict[str, list[np.ndarray] | None]
    dtypes: tuple[str, ...]


def examine(
    folder: Path,
    paths: Mapping[int, Mapping[int, Path]],
    *,
    dims: Sequence[str],
    beside: Mapping[str, Sequence[str]],
    optional: Collection[str] = (),
) -> tuple[NumberedFiles | None, list[Fault]]:
    """Check files of which each layer has as many, of the same samples.

    Parameters
    ----------
    folder
        That of all of them.
    paths
        Layer to number to file.
    dims
        Of ``activations``.
    beside
        Name of another array to its dimensions, which are among those of ``activations``.
    optional
        Which of them may be absent from all files.

    Returns
    -------
    NumberedFiles or None
    list of Fault
        Everything that is wrong with them.
    """
    shapes, dtypes, hidden = Shapes(), set(), 0
    kept: dict[str, list[np.ndarray] | None] = {name: [] for name in beside}
    first = min(paths, default=0)
    for layer, files in paths.items():
        for number, path in files.items():
            where = str(path.relative_to(folder))
            headers, arrays, what = _look(path, beside)
            lacking = {"activations", *beside} - set(optional) - headers.keys()
            if not what and lacking:
                what = f"holds no {', '.join(f'`{name}`' for name in sorted(lacking))}"
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
                wanted = tuple(shape[dims.index(dim)] for dim in beside[name])
                _compare(shapes, where, number, name, array, wanted)
            for name in beside if layer == first else ():
                own, array_ = kept[name], arrays.get(name)
                kept[name] = None if own is None or array_ is None else [*own, array_]
    if shapes.faults:
        return None, shapes.faults
    ordered = {layer: [files[number] for number in sorted(files)] for layer, files in paths.items()}
    return NumberedFiles(ordered, hidden, kept, tuple(sorted(dtypes))), []


def _compare(
    shapes: Shapes, where: str, number: int, name: str, array: np.ndarray, wanted: tuple[int, ...]
) -> None:
    """Check an array beside activations, and that it is the same in each layer."""
    if array.dtype.kind not in "biuU":
        what = f"`{name}` holds {array.dtype}, not whole numbers or text"
        shapes.faults.append(Fault(where, what, _WRITE_AGAIN))
    if array.shape != wanted:
        what = f"`{name}` has shape {array.shape}, where `activations` asks for {wanted}"
        shapes.faults.append(Fault(where, what, _WRITE_AGAIN))
    digest = hashlib.sha256(array.tobytes()).digest()
    shapes.same(str(number), where, f"`{name}`", digest, _ONE_RUN)


def missing_numbers(paths: Mapping[int, Mapping[int, Path]]) -> list[Fault]:
    """Name the numbers, from 0 to the largest of any layer, of which a layer has no file."""
    wanted = range(max((number for files in paths.values() for number in files), default=-1) + 1)
    return [
        Fault(f"layer {layer}", f"lacks files {describe(lacking)}", "write them, or number the others from 0")
        for layer, files in paths.items()
        if (lacking := [number for number in wanted if number not in files])
    ]


def _look(
    path: Path, beside: Collection[str]
) -> tuple[dict[str, tuple[tuple[int, ...], str]], dict[str, np.ndarray], str]:
    """Return shape and dtype of every array, the small ones whole, and what is wrong with the file."""
    headers: dict[str, tuple[tuple[int, ...], str]] = {}
    arrays: dict[str, np.ndarray] = {}
    try:
        with open_archive(path) as archive:
            for name in (entry[:-4] for entry in archive.namelist() if entry.endswith(".npy")):
                with archive.open(f"{name}.npy") as member:
                    shape, by_column, dtype = _header(member)
                if dtype.hasobject and name in ("activations", *beside):
                    return {}, {}, f"`{name}` holds Python objects, which are not loaded: they can run code"
                if by_column and name == "activations" and len(shape) > 1:
                    return {}, {}, "`activations` is stored column by column: use numpy.ascontiguousarray"
                size = prod(shape) * dtype.itemsize
                if size > archive.getinfo(f"{name}.npy").file_size:
                    return {}, {}, f"`{name}` has shape {shape}, and is too short for that"
                if size > (_MOST_ROW * max(shape[:1], default=1) if name == "activations" else MOST_TABLE):
                    return {}, {}, f"`{name}` has shape {shape}, which is too large to be read"
                headers[name] = shape, dtype.name
                if name in beside:
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
    """The rows of ``activations`` of some files, each once: compressed files are read from their start.

    Parameters
    ----------
    paths
        In the order of their samples.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = iter(enumerate(paths))
        self._open = ExitStack()
        self._number, self._path = -1, Path()
        self._at = self._rows = 0

    def take(self, count: int) -> Iterator[tuple[int, slice, np.ndarray]]:
        """Yield the next rows in parts: the number of their file, which of its rows they are, and these."""
        while count:
            while self._at == self._rows:
                self._next()
            most = max(1, BLOCK_BYTES // self._row_bytes)
            rows = slice(self._at, self._at + min(count, most, self._rows - self._at))
            with reading(str(self._path)):
                content = self._member.read((rows.stop - rows.start) * self._row_bytes)
                # what follows is nothing, but only then is the checksum compared
                rest = self._member.read(1) if rows.stop == self._rows else b""
                if rest or len(content) < (rows.stop - rows.start) * self._row_bytes:
                    raise ValueError("it has another length than it says")
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
        """Close the file that is open."""
        self._open.close()
