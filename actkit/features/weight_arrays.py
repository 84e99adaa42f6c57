"""Weights in safetensors files and NumPy archives, checked before memory is allocated for them."""

import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import CorruptError, Fault
from ..regular_files import MB, open_archive, open_regular

_MOST_HEADER = MB  # far more than the names and shapes of ten tensors take
_FLOATS = ("F64", "F32", "BF16", "F16")
_HINT = "download or copy it again"
# RuntimeError: an encrypted archive, or an unknown method of compression
_UNREADABLE = (
    EOFError,
    LZMAError,
    OSError,
    RuntimeError,
    SafetensorError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)

Shapes = Mapping[str, tuple[int, ...]]


def tensor_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], list[Fault]]:
    """Return the shapes of the tensors of a safetensors file by name, without reading their values.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict, list of Fault
        The shapes, and the faults of the file: it is missing or no regular file, its header is implausibly
        large or disagrees with its size, or a tensor is not of a floating-point type.
    """
    where = str(path)
    try:
        with open_regular(path) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > _MOST_HEADER:
            return {}, [Fault(where, f"has a header of {header_bytes:,} bytes", _HINT)]
        with safe_open(path, framework="np") as file:  # compares the header with the size of the file
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
            others = [name for name, part in slices.items() if part.get_dtype() not in _FLOATS]
    except FileNotFoundError:
        return {}, [Fault(where, "is missing", _HINT)]
    except (OSError, SafetensorError) as error:
        return {}, [Fault(where, f"is not a valid safetensors file: {error}", _HINT)]
    return shapes, [Fault(where, f"`{name}` is not of a floating-point type") for name in others]


def read_tensors(path: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return tensors of a file that :func:`tensor_shapes` found no fault in, as float32, those that it has.

    Parameters
    ----------
    path
        The file.
    names
        Names of the tensors.

    Raises
    ------
    CorruptError
        If the file cannot be read.
    """
    with _damage(path), safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name).to(torch.float32) for name in file.keys() if name in names}  # noqa: SIM118


def array_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], list[Fault]]:
    """Return the shapes of the arrays of an ``.npz`` file by name, without reading their values.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict, list of Fault
        The shapes, and the faults of the file: it cannot be opened, or holds pickled objects, compressed
        arrays that unpack to more than they declare, or types other than floating-point numbers.
    """
    where, shapes, faults = str(path), {}, []
    try:
        with open_archive(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as file:
                    shape, _, dtype = _npy_header(file)
                if dtype.kind != "f":
                    faults.append(Fault(where, f"`{name}` is not of a floating-point type"))
                elif int(np.prod(shape, dtype=object)) * dtype.itemsize > member.file_size:
                    faults.append(Fault(where, f"`{name}` is shorter than its header says", _HINT))
                shapes[name] = shape
    except FileNotFoundError:
        return {}, [Fault(where, "is missing", _HINT)]
    except _UNREADABLE as error:
        return {}, [Fault(where, f"is not a valid .npz file: {error}", _HINT)]
    return shapes, faults


def read_arrays(path: Path, names: Collection[str]) -> dict[str, torch.Tensor]:
    """Return arrays of a file that :func:`array_shapes` found no fault in, as float32, those that it has.

    Parameters
    ----------
    path
        The file.
    names
        Names of the arrays.

    Raises
    ------
    CorruptError
        If the file cannot be read, or the checksum of an array is wrong.
    """
    with _damage(path), np.load(path, allow_pickle=False) as archive:
        return {
            name: torch.from_numpy(archive[name].astype(np.float32, copy=False))
            for name in archive.files
            if name in names
        }


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn errors of reading a file into a CorruptError that names it."""
    try:
        yield
    except _UNREADABLE as error:
        raise CorruptError([Fault(str(path), f"cannot be read: {error}", _HINT)]) from error


def _npy_header(file: object) -> tuple[tuple[int, ...], bool, np.dtype]:
    major, _ = np.lib.format.read_magic(file)  # type: ignore[arg-type]
    read = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    return read(file)  # type: ignore[arg-type]
