"""PyTorch files that were made to keep their reader busy, or to fill its memory, are refused at once."""

import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit
from actkit.errors import InputError
from actkit.importers import pt, torch_files
from actkit.importers.pt_tensors import try_load
from tests.importers import scripts
from tests.importers.scripts import save_checkpoint

ENGLISH = "layer_checkpoints/layer_1_english.pt"
CODE = "holds objects that are not loaded, as they can run code"


def fault(folder: Path) -> str:
    """Return the first fault of an import, without the name of the file and how to repair it."""
    with pytest.raises(InputError) as error:
        actkit.import_files(folder, format="pt", out=folder.parent / "run")
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    _, line, *_ = str(error.value).splitlines()
    assert line.startswith(f"  - {ENGLISH}: ")
    return line.removeprefix(f"  - {ENGLISH}: ").rpartition(" (")[0]


class Call:
    """A value whose pickle calls a function."""

    def __init__(self, called: Callable[..., object], *arguments: object) -> None:
        self.call = called, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def tensor(size: tuple[int, ...], stride: tuple[int, ...], start: int = 0) -> Call:
    """Return a tensor that says to have four values, the size and the strides."""
    storage = torch.ones(4)._typed_storage()
    rebuild = torch._utils._rebuild_tensor_v2
    return Call(rebuild, storage, start, size, stride, False, OrderedDict())


def nested(depth: int = 60) -> tuple[Any, ...]:
    """Return a tuple of few bytes in a pickle, and of 2**depth once it is walked through."""
    value: tuple[Any, ...] = ()
    for _ in range(depth):
        value = value, value
    return value


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"timestamp": Call(bytearray, 2**36)}, CODE),
        ({"timestamp": {1, 2}}, CODE),
        ({"genders": [nested()] * 4}, "`genders` holds a tuple, which cannot be the value of a label"),
        (
            {"genders": ("a", "b", torch.ones(2), "d")},
            "`genders` holds a Tensor, which cannot be the value of a label",
        ),
        ({"genders": torch.ones(5)}, "`genders` is not a list, where `activations` has 4 samples"),
        ({"layer": nested()}, "`layer` is a tuple, not a number"),
        ({"layer": torch.ones(2)}, "`layer` is a Tensor, not a number"),
        ({"timestamp": {2**63: 1}}, "cannot be read: a key of a dict has more than 64 bits"),
        ({"timestamp": {(1,): 1}}, "cannot be read: a key of a dict is a tuple"),
        ({"timestamp": tensor((1,) * 65, (1,) * 65)}, "cannot be read: a tensor has 65 dimensions"),
    ],
)  # fmt: skip
def test_values_that_no_script_saves(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    save_checkpoint(folder, "english", 1, **other)
    assert fault(folder) == message


def test_a_text_named_once_for_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    monkeypatch.setattr(pt, "MOST_JSON", 100)
    save_checkpoint(folder, "english", 1, genders=["x" * 30] * 4)
    assert fault(folder) == "`genders` holds more text than a cube can store"


@pytest.mark.parametrize(
    ("size", "stride", "start"),
    [((2**36, 1, 1), (1, 1, 1), 0), ((4, 1, 1), (2**40, 1, 1), 0), ((4, 1, 1), (1, 1, 1), 1)],
)
def test_a_tensor_beyond_its_values(
    tmp_path: Path, size: tuple[int, ...], stride: tuple[int, ...], start: int
) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    save_checkpoint(folder, "english", 1, activations=tensor(size, stride, start))
    assert fault(folder).startswith("cannot be read: setStorage: sizes")


def test_values_of_the_whole_import_are_those_of_torch(tmp_path: Path) -> None:
    shared = [1, 2**40, -3, 1.5, None, True, "é"]
    saved = {
        "transposed": torch.rand(3, 4).T,
        "cut": torch.arange(10)[2:5],
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "ordered": OrderedDict(a=[shared, shared]),
        3: {"size": torch.Size([1, 2]), "dtype": torch.float16, "tuples": ((), (1,), (1, 2), (1, 2, 3, 4))},
        "many": list(range(3000)),
    }
    torch.save(saved, tmp_path / "file.pt")
    wanted = torch.load(tmp_path / "file.pt", weights_only=True)
    loaded, what = try_load(tmp_path / "file.pt")
    assert what == ""
    assert list(loaded) == list(wanted)
    for name in ("transposed", "cut", "empty", "parameter"):
        ours, theirs = loaded.pop(name), wanted.pop(name)
        assert (ours.dtype, ours.stride()) == (theirs.dtype, theirs.stride())
        assert torch.equal(ours, theirs)
    assert loaded == wanted
    assert loaded["ordered"]["a"][0] is loaded["ordered"]["a"][1]


def save_pickle(path: Path, opcodes: bytes, **members: bytes) -> Path:
    """Write a file with a pickle of protocol 2 that was put together by hand."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickle.PROTO + b"\x02" + opcodes + pickle.STOP)
        for name, content in members.items():
            archive.writestr(f"x/{name}", content)
    return path


NESTED = b")" + b"q\x00h\x00\x86" * 60
STORAGE = b"(X\x07\x00\x00\x00storage%sX\x03\x00\x00\x00cpuK\x01tQ"


@pytest.mark.parametrize(
    ("opcodes", "message"),
    [
        (b"}" + NESTED + b"Ns", "cannot be read: a key of a dict is a tuple"),
        (STORAGE % (b"ctorch\nFloatStorage\n" + NESTED), CODE),
        (STORAGE % (NESTED + NESTED), CODE),
        (b"}" + NESTED + b"b", CODE),
        (b"]" + NESTED + b"Ns", CODE),
        (b"}" + NESTED + b"a", CODE),
        (b"ccollections\nCounter\n)R", CODE),
        (b"K\x01)R", CODE),
        (b"R", "cannot be read: its pickle pops more values than it pushed"),
        (NESTED, "holds a tuple, not a dict"),
    ],
)  # fmt: skip
def test_pickles_that_torch_does_not_write(tmp_path: Path, opcodes: bytes, message: str) -> None:
    assert try_load(save_pickle(tmp_path / "file.pt", opcodes)) == ({}, message)


def test_more_values_than_scripts_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "_MOST_OPCODES", 100)
    message = "cannot be read: it holds more than 50 values besides its tensors"
    assert try_load(save_pickle(tmp_path / "file.pt", b"}" * 1000)) == ({}, message)


def test_a_pickle_too_large_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MOST_JSON", 100)
    message = "cannot be read: x/data.pkl is too large"
    assert try_load(save_pickle(tmp_path / "file.pt", b"}" * 1000)) == ({}, message)


def test_another_byte_order(tmp_path: Path) -> None:
    message = "cannot be read: its byte order is that of another kind of processor"
    assert try_load(save_pickle(tmp_path / "file.pt", b"}", byteorder=b"middle")) == ({}, message)


def test_a_directory_that_fills_memory(tmp_path: Path) -> None:
    path, size = tmp_path / "file.pt", 2**34
    with path.open("wb") as file:
        file.truncate(size)  # takes no space on a disk
        file.seek(size)
        end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 2**32 - 2, 0, 0)
        file.write(end)
    assert try_load(path) == ({}, "is not a torch.save file, or has the old format")
