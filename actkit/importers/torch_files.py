"""Files of torch.save, read as data: the pickle yields plain values and mapped tensors, and runs no code."""

import mmap
import pickle
import pickletools
import struct
import sys
import zipfile
from dataclasses import dataclass
from typing import Any

import torch

from ..regular_files import MOST_JSON

_MOST_OPCODES = 10**7
SCALARS = (str, int, float, bool, type(None))
_DTYPES = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}
_ORDERED, _SIZE, _DEVICE = "collections OrderedDict", "torch Size", "torch device"
_TENSOR, _PARAMETER = "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"
_CALLED = (_ORDERED, _SIZE, _DEVICE, _TENSOR, _PARAMETER)
_STORAGES = {f"torch {name}": dtype for name, dtype in _DTYPES.items()}
_NAMED_DTYPES = {f"torch {str(dtype).removeprefix('torch.')}": dtype for dtype in _DTYPES.values()}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MOST_DIMS = 64
# header before each member; only the lengths of the name and of the extra field are not in the directory
_LOCAL_HEADER = struct.Struct("<26xHH")


@dataclass(frozen=True)
class _Global:
    """A class or function named in a pickle, which is neither imported nor called."""

    name: str


class TorchArchive:
    """An open file of torch.save.

    Parameters
    ----------
    archive
        The file, which may be closed once it is loaded.

    Notes
    -----
    Supports only the pickle opcodes that :func:`torch.save` needs for dicts, lists, strings, numbers and
    dense tensors; each takes time and memory proportional to its input. Keys of dicts must be strings or
    numbers, because hashing nested tuples can take time exponential in their depth.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl, or several")
        self._pickle = pickles[0]
        self._folder = self._pickle.removesuffix("data.pkl")
        self._members = {member.filename: member for member in archive.infolist()}
        assert archive.fp is not None
        # copy on write, so that changing a tensor does not change the file
        self._bytes = mmap.mmap(archive.fp.fileno(), 0, access=mmap.ACCESS_COPY)
        self._flat: dict[str, torch.Tensor] = {}

    def load(self) -> Any:
        """Return the value that was saved; its tensors keep the file mapped.

        Raises
        ------
        pickle.UnpicklingError
            If the pickle needs unsupported opcodes, classes or functions.
        Exception
            If the file is damaged or too large.
        """
        order = self._folder + "byteorder"
        if order in self._members and self._read(order, 16) != sys.byteorder.encode():
            raise ValueError("its byte order is that of another kind of processor")
        content = self._read(self._pickle, MOST_JSON)
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        argument: Any
        for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if number == _MOST_OPCODES:
                raise ValueError(f"it holds more than {_MOST_OPCODES // 2:,} values besides its tensors")
            match opcode.name:
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE" as name:
                    stack.append(_CONSTANTS[name])
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_DICT":
                    stack.append({})
                case "TUPLE":
                    stack.append(tuple(_cut(stack, marks.pop())))
                case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                    stack.append(tuple(_cut(stack, len(stack) - int(name[-1]))))
                case "APPEND" | "APPENDS" as name:
                    values = _cut(stack, marks.pop() if name == "APPENDS" else len(stack) - 1)
                    _extend(stack[-1], values)
                case "SETITEM" | "SETITEMS" as name:
                    values = _cut(stack, marks.pop() if name == "SETITEMS" else len(stack) - 2)
                    _update(stack[-1], values)
                case "GLOBAL":
                    stack.append(_named(argument))
                case "BINPERSID":
                    stack.append(self._storage(*stack.pop()))
                case "REDUCE":
                    called, arguments = _cut(stack, len(stack) - 2)
                    stack.append(self._made(called, arguments))
                case "PROTO":
                    pass
                case "STOP":
                    return stack.pop()
                case name:
                    raise pickle.UnpicklingError(name)

    def _made(self, called: Any, arguments: Any) -> Any:
        """Return the result that a call of a supported name would have."""
        match called, arguments:
            case _Global(name=name), () if name == _ORDERED:
                return {}
            case _Global(name=name), (value, *_) if name in (_SIZE, _DEVICE, _PARAMETER):
                return value
            case _Global(name=name), (torch.Tensor() as flat, start, size, stride, _, _) if name == _TENSOR:
                if len(size) > _MOST_DIMS:
                    raise ValueError(f"a tensor has {len(size):,} dimensions")
                # torch refuses views outside the storage, and allocates nothing
                return flat.as_strided(size, stride, start)
            case _:
                raise pickle.UnpicklingError(str(getattr(called, "name", type(called).__name__)))

    def _storage(self, kind: Any, dtype: Any, key: Any, _device: Any, count: Any) -> torch.Tensor:
        """Map a storage, dims ``(value,)``."""
        is_storage_type = isinstance(dtype, _Global) and dtype.name in _STORAGES
        if kind != "storage" or not is_storage_type or type(key) is not str or type(count) is not int:
            raise pickle.UnpicklingError("not a storage")
        flat = self._flat.get(key)
        if flat is None:
            flat = self._flat[key] = self._mapped(f"{self._folder}data/{key}", _STORAGES[dtype.name], count)
        if flat.dtype != _STORAGES[dtype.name]:
            raise pickle.UnpicklingError("a storage of two types")
        return flat

    def _mapped(self, name: str, dtype: torch.dtype, count: int) -> torch.Tensor:
        member = self._members[name]
        if member.compress_type != zipfile.ZIP_STORED or not 0 <= count * dtype.itemsize <= member.file_size:
            raise ValueError(f"{name} does not have the stated size")
        if not count:
            return torch.empty(0, dtype=dtype)
        lengths = _LOCAL_HEADER.unpack_from(self._bytes, member.header_offset)
        start = member.header_offset + _LOCAL_HEADER.size + sum(lengths)
        return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=start)

    def _read(self, name: str, most: int) -> bytes:
        if self._members[name].file_size > most:
            raise ValueError(f"{name} is too large")
        return self._archive.read(self._members[name])


def _cut(stack: list[Any], start: int) -> list[Any]:
    """Pop the values from an index to the top of a stack."""
    if start < 0:
        raise ValueError("its pickle pops more values than it pushed")
    values = stack[start:]
    del stack[start:]
    return values


def _extend(target: Any, values: list[Any]) -> None:
    if not isinstance(target, list):
        raise pickle.UnpicklingError(type(target).__name__)
    target.extend(values)


def _update(target: Any, values: list[Any]) -> None:
    if not isinstance(target, dict):
        raise pickle.UnpicklingError(type(target).__name__)
    for key, value in zip(values[::2], values[1::2], strict=True):
        if not isinstance(key, SCALARS):
            raise ValueError(f"a key of a dict is a {type(key).__name__}")
        if isinstance(key, int) and not -(2**63) <= key < 2**63:  # larger integers can be chosen to collide
            raise ValueError("a key of a dict has more than 64 bits")
        target[key] = value


def _named(name: str) -> Any:
    if name in _NAMED_DTYPES:
        return _NAMED_DTYPES[name]
    if name in _CALLED or name in _STORAGES:
        return _Global(name)
    raise pickle.UnpicklingError(name)
