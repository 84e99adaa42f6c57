"""Copies that xarray wrote and others may have changed: every damage is an error that names the file."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.codecs import BloscCodec

import actkit
from actkit.errors import CorruptError
from actkit.reports.summaries import Summaries
from actkit.testing import write_cube

FIRST = "residual/c/0/0/0/0"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    actkit.open_cube(write_cube(folder / "source")).load().to_zarr(folder / "cube.zarr", consolidated=False)
    return folder / "cube.zarr"


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "cube.zarr"))


def read(copy: Path) -> xr.Dataset:
    return actkit.open_cube(copy).load()


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link(path: Path) -> None:
    moved = path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(moved)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (make_fifo, "is not a regular file"),
    "link": (make_link, "is a link, which is not followed"),
    "cut": (cut, "is truncated or corrupted: "),
    "folder": (make_folder, "is a folder"),
}


@pytest.mark.parametrize("file", [FIRST, "sample/c/0", "language/c/0", "norm/zarr.json"])
@pytest.mark.parametrize("change", ["FIFO", "link", "cut", "folder"])
def test_a_damaged_file_is_named(copy: Path, file: str, change: str) -> None:
    act, what = CHANGES[change]
    act(copy / file)
    with pytest.raises(CorruptError) as error:
        read(copy)
    fault = error.value.faults[0]
    assert fault.where == file
    if file.endswith("zarr.json") and change == "cut":
        what = "Unterminated string"
    assert fault.what.startswith(what)
    assert fault.hint == "write the copy again"


@pytest.mark.parametrize("file", [FIRST, "sample/c/0"])
@pytest.mark.parametrize("size", [10**6, 2**40, None])
def test_chunks_that_claim_to_be_large(copy: Path, file: str, size: int | None) -> None:
    # a frame of zstd with its size in eight bytes, or without, and one empty raw block
    claimed = b"\xe0" + struct.pack("<Q", size) if size else b"\x00\x00"
    frame = b"\x28\xb5\x2f\xfd" + claimed + b"\x01\x00\x00"
    (copy / file).write_bytes(frame)
    with pytest.raises(CorruptError) as error:
        read(copy)
    what = (
        f"claims to hold {size:,} bytes in {len(frame)}" if size else "does not state its decompressed size"
    )
    (fault,) = error.value.faults
    assert str(fault) == f"{file}: is truncated or corrupted: {what} (write the copy again)"


def test_a_chunk_behind_a_linked_folder(copy: Path) -> None:
    make_link(copy / "residual/c/0")
    with pytest.raises(CorruptError) as error:
        read(copy)
    assert str(error.value.faults[0]) == (
        "residual/c/0/0/0/0: cannot be read: residual/c/0/0/0/0 lies behind a link, which is not followed "
        "(write the copy again)"
    )


def rewrite(copy: Path, name: str, **entries: Any) -> None:
    path = copy / name / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries).replace("pickle", r"p\u0069ckle"))


BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
HUGE = {"name": "regular", "configuration": {"chunk_shape": [2**31]}}
METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "pickles": (
        {"codecs": [BYTES, {"name": "numcodecs.pickle", "configuration": {}}]},
        "needs the codec numcodecs.pickle, which the format does not use",
    ),
    "compressed twice": ({"codecs": [BYTES, ZSTD, ZSTD]}, "is compressed more than once"),
    "a chunk of 16 GB": ({"chunk_grid": HUGE, "shape": [2**31]}, "has chunks of 17,179,869,184 bytes"),
    "no files": ({"shape": [2**31]}, "has 2,147,483,648 elements, but lacks the files for them"),
    "no shape": ({"shape": None}, "is not the metadata of an array"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_that_cannot_be(copy: Path, case: str) -> None:
    entries, what = METADATA[case]
    rewrite(copy, "sample", **entries)
    with pytest.raises(CorruptError) as error:
        actkit.open_cube(copy)
    assert str(error.value) == (
        f"{copy}: cannot be read: 1 fault(s) of its metadata\n"
        f"  - sample/zarr.json: {what} (write the copy again)"
    )


def test_shards_and_chunks_compressed_by_blosc(sound: Path, tmp_path: Path) -> None:
    cube = actkit.open_cube(sound).load()
    encoding = {"chunks": (1, 2, 5, 16), "shards": (3, 4, 5, 16), "compressors": BloscCodec()}
    for variable in cube.variables.values():
        variable.encoding.clear()
    cube.to_zarr(tmp_path / "cube.zarr", consolidated=False, encoding={"residual": encoding})
    xr.testing.assert_identical(read(tmp_path / "cube.zarr").residual, cube.residual)


@pytest.mark.slow
def test_a_summary_of_a_copy_is_that_of_its_values(sound: Path, copy: Path) -> None:
    kept = Summaries()
    before = kept.get(actkit.open_cube(copy), "layer_norms")
    cube = actkit.open_cube(sound).load()
    for variable in cube.variables.values():
        variable.encoding = {}
    cube["norm"] = cube.norm * 2
    other = copy.parent / "other.zarr"
    cube.to_zarr(other, consolidated=False)
    opened = actkit.open_cube(copy)
    for file in (copy / "norm").rglob("*"):
        if file.is_file():
            status = file.stat()
            file.write_bytes((other / "norm" / file.relative_to(copy / "norm")).read_bytes())
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    for summaries in (kept, Summaries()):
        summary = summaries.get(opened, "layer_norms")
        np.testing.assert_allclose(summary["mean"], 2 * before["mean"])
    assert not (copy.parent / "summaries").exists()
