"""Selections read by range are those that zarr reads, with few requests, and damage is named."""

import os
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from actkit import open_cube
from actkit.errors import CorruptError
from actkit.store import shard_reader
from actkit.store.byte_ranges import LocalRanges
from actkit.store.layout import CUBE, Array, array_of, open_group
from actkit.store.shard_reader import ShardReader
from actkit.testing import write_cube


class CountedRanges(LocalRanges):
    """Ranges that are not divided, as in an object store, and that are counted."""

    request_bytes = 2**30

    def __init__(self, root: Path, name: str) -> None:
        super().__init__(root, {name: 2**30})
        self.reads: list[str] = []

    def read(self, key: str, start: int, stop: int) -> bytes:
        self.reads.append(key)
        return super().read(key, start, stop)


def counted(run: Path, name: str = "residual") -> tuple[ShardReader, CountedRanges]:
    ranges = CountedRanges(run / CUBE, name)
    reader = ShardReader.of(array_of(open_group(run / CUBE), name), ranges)
    assert reader is not None
    return reader, ranges


def sharded(folder: Path, shape: tuple[int, ...], chunk: tuple[int, ...], **options: Any) -> Array:
    """Create an array whose files hold two chunks along each axis; chunks of fill values are absent."""
    defaults = {
        "dtype": "float32",
        "fill_value": np.nan,
        "shards": tuple(2 * size for size in chunk),
        "compressors": [BloscCodec(cname="lz4", shuffle="bitshuffle"), Crc32cCodec()],
        "chunk_key_encoding": {"name": "default", "separator": "."},
    }
    return zarr.create_group(folder).create_array("values", shape=shape, chunks=chunk, **(defaults | options))


# what is read


@st.composite
def selections(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...], tuple[Any, ...]]:
    """Return values, many of which are the fill value, the shape of a chunk, and a key."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    chunk = tuple(draw(st.integers(1, length)) for length in shape)
    dtype = np.dtype(draw(st.sampled_from(["float32", "float64", "int32", "int8", "uint16"])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(1, 100, shape).astype(dtype)
    values[rng.random(shape) < draw(st.sampled_from([0, 0.5, 0.95, 1]))] = fill_of(dtype)
    # a file without any value would not be written
    for first in product(*[range(0, length, 2 * size) for length, size in zip(shape, chunk, strict=True)]):
        values[first] = 1
    return values, chunk, tuple(draw(keys(length)) for length in shape)


def fill_of(dtype: np.dtype[Any]) -> float:
    return np.nan if dtype.kind == "f" else 0


def keys(length: int) -> st.SearchStrategy[Any]:
    index = st.integers(-length, length - 1)
    flags = st.lists(st.booleans(), min_size=length, max_size=length).map(
        lambda one: np.array(one, dtype=bool)
    )
    indices = st.lists(index, max_size=2 * length).map(lambda one: np.array(one, dtype=np.int64))
    return st.one_of(st.slices(length), index, indices, flags)


def select(values: np.ndarray, key: tuple[Any, ...]) -> np.ndarray:
    """Apply the index of each axis independently."""
    for axis in reversed(range(len(key))):
        values = values[(slice(None),) * axis + (key[axis],)]
    return values


@settings(max_examples=60, deadline=None)
@given(selections())
def test_selections_equal_those_of_zarr(drawn: Any) -> None:
    values, chunk, key = drawn
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "a.zarr")
        options = {"dtype": values.dtype, "fill_value": fill_of(values.dtype)}
        array = sharded(folder, values.shape, chunk, **options)
        array[...] = values
        reader = ShardReader.of(array, LocalRanges(folder, {"values": 2**20}))
        assert reader is not None
        read = reader[key]
        expected = select(np.asarray(array[...]), key)
        assert read.shape == expected.shape
        assert read.dtype == expected.dtype
        assert read.tobytes() == expected.tobytes()
        assert reader[...].tobytes() == values.tobytes()


def test_all_threads_read_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_WHOLE_BYTES", 0)
    monkeypatch.setattr(shard_reader, "_GAP_BYTES", 0)
    array = sharded(tmp_path / "a.zarr", (3, 11, 70), (1, 4, 64))
    array[...] = values = np.random.default_rng(0).normal(size=array.shape).astype("float32")
    reader = ShardReader.of(array, LocalRanges(tmp_path / "a.zarr", {"values": 2**20}))
    assert reader is not None
    monkeypatch.setattr(LocalRanges, "inline_bytes", 0)
    monkeypatch.setattr(LocalRanges, "threads", 3)
    np.testing.assert_array_equal(reader[...], values)
    np.testing.assert_array_equal(reader[:, ::2, [69, 0]], values[:, ::2][:, :, [69, 0]])


@pytest.mark.parametrize("key", [3, slice(None), [0, 3], [-4], np.array([True, False])], ids=str)
def test_indices_out_of_range(tmp_path: Path, key: Any) -> None:
    array = sharded(tmp_path / "a.zarr", (3,), (2,))
    array[...] = 1
    reader = ShardReader.of(array, LocalRanges(tmp_path / "a.zarr", {"values": 2**20}))
    assert reader is not None
    if isinstance(key, slice):
        assert reader[key].tolist() == [1, 1, 1]
        return
    with pytest.raises(IndexError, match="for an axis of length 3"):
        reader[key]


BYTES, BLOSC, CRC = BytesCodec(), BloscCodec(cname="lz4"), Crc32cCodec()


def sharding(**options: Any) -> dict[str, Any]:
    codec = ShardingCodec(chunk_shape=(1,), codecs=[BYTES, BLOSC, CRC], **options)
    return {"shards": None, "compressors": None, "serializer": codec}


FOREIGN = {
    "not sharded": {"shards": None},
    "zstd": {"compressors": [ZstdCodec(), CRC]},
    "not compressed": {"compressors": [CRC]},
    "without checksums": {"compressors": [BLOSC]},
    "big-endian": {"serializer": BytesCodec(endian="big")},
    "other keys": {"chunk_key_encoding": {"name": "default", "separator": "/"}},
    "index at the start": sharding(index_location="start"),
    "index without checksums": sharding(index_codecs=[BYTES]),
}


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN)
def test_zarr_reads_what_actkit_does_not_write(tmp_path: Path, options: dict[str, Any]) -> None:
    array = sharded(tmp_path / "a.zarr", (6,), (2,), **options)
    assert ShardReader.of(array, LocalRanges(tmp_path, {})) is None


# how many requests


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cube of ten windows, whose files have several tiles a layer."""
    folder = tmp_path_factory.mktemp("requests") / "run"
    return write_cube(folder, n_layers=4, n_samples=40, n_tokens=70, hidden=32, window=4)


@pytest.mark.parametrize("whole", [0, 2**18])
def test_a_layer_takes_two_requests_a_window(run: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(shard_reader, "_WHOLE_BYTES", whole)
    reader, ranges = counted(run)
    layer = reader[2]
    windows = sorted((run / CUBE / "residual").glob("c.*"))
    assert len(windows) == 10
    assert len(ranges.reads) == (10 if whole else 20)
    np.testing.assert_array_equal(layer, zarr.open_array(run / CUBE / "residual", mode="r")[2])
    ranges.reads.clear()
    reader[...]
    assert len(ranges.reads) == (10 if whole else 20)
    ranges.reads.clear()
    reader[:, 5]
    assert set(ranges.reads) == {"residual/c.0.1.0.0"}


def test_ranges_are_divided_where_requests_are_limited(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_WHOLE_BYTES", 0)
    reader, ranges = counted(run)
    ranges.request_bytes = 1
    reader[2]
    assert len(ranges.reads) > 20


# what is damaged


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_layers=2, n_samples=2, n_tokens=40, hidden=8, window=2)


def rewrite(run: Path, change: Any) -> Path:
    """Change the content and the index of a file, with checksums that are right."""
    file = run / CUBE / "residual" / "c.0.0.0.0"
    content = bytearray(file.read_bytes())
    chunks = int(np.prod(counted(run)[0]._grid))
    index = np.frombuffer(content[-16 * chunks - 4 : -4], "<u8").reshape(-1, 2).copy()
    body = content[: -16 * chunks - 4]
    change(body, index)
    start, size = index[0].tolist()
    if start + size <= len(body):
        checked = bytes(body[start : start + size - 4])
        body[start + size - 4 : start + size] = google_crc32c.value(checked).to_bytes(4, "little")
    tail = index.tobytes()
    file.write_bytes(bytes(body) + tail + google_crc32c.value(tail).to_bytes(4, "little"))
    return file


def claim(start: int, value: int) -> Any:
    def change(body: bytearray, index: np.ndarray) -> None:
        body[start : start + 4] = value.to_bytes(4, "little")

    return change


def point(start: int, size: int) -> Any:
    def change(body: bytearray, index: np.ndarray) -> None:
        index[0] = start, size

    return change


FORGED = {
    "a larger chunk": claim(4, 2**31 - 1),
    "a smaller chunk": claim(4, 64),
    "a longer compressed chunk": claim(12, 2**20),
    "a chunk after the end": point(2**40, 100),
    "a chunk longer than the file": point(0, 2**40),
    "a start that overflows": point(2**64 - 2, 100),
    "a chunk without bytes": point(0, 4),
    "a chunk shorter than a checksum": point(0, 3),
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED)
@pytest.mark.parametrize("whole", [0, 2**18])
def test_forged_files_are_named(own: Path, monkeypatch: pytest.MonkeyPatch, change: Any, whole: int) -> None:
    monkeypatch.setattr(shard_reader, "_WHOLE_BYTES", whole)
    cube = open_cube(own)
    rewrite(own, change)
    with pytest.raises(CorruptError) as caught:
        cube.residual.sel(layer=0).load()
    assert [fault.where for fault in caught.value.faults] == ["residual/c.0.0.0.0"]


IRREGULAR = {
    "is missing": lambda file, content: None,
    "is empty": lambda file, content: file.write_bytes(b""),
    "is not a regular file": lambda file, content: os.mkfifo(file),
    "is a link": lambda file, content: file.symlink_to("/dev/zero"),
    "is a folder": lambda file, content: file.mkdir(),
    "is larger than": lambda file, content: (file.touch(), os.truncate(file, 2**40)),
    "is truncated or corrupted": lambda file, content: file.write_bytes(content[:-1]),
    "is truncated or corrupted: ": lambda file, content: file.write_bytes(content[:7]),
}


@pytest.mark.parametrize(("what", "replace"), IRREGULAR.items(), ids=IRREGULAR)
def test_irregular_files_are_refused(own: Path, what: str, replace: Any) -> None:
    cube = open_cube(own)
    file = own / CUBE / "residual" / "c.0.0.0.0"
    content = file.read_bytes()
    file.unlink()
    replace(file, content)
    with pytest.raises(CorruptError, match=rf"residual/c\.0\.0\.0\.0: {what}"):
        cube.residual.sel(layer=0).load()
