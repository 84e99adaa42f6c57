"""The shards that we write ourselves are zarr's, to the last bit."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from actkit import verify
from actkit.schema import VARIABLES
from actkit.store.layout import CUBE, Array, array_of, create_array, open_group, shard_region, shards
from actkit.store.ragged import Ragged
from actkit.store.shard_files import ShardWriter, encoded, in_memory, storable
from actkit.testing import flip_bit, synthetic
from tests.store.test_ragged import KINDS, PAYLOAD, bits, drawn


def array_in(
    folder: Path,
    *,
    name: str = "residual",
    n_layers: int = 2,
    n_samples: int = 4,
    n_tokens: int = 6,
    hidden: int = 3,
    window: int = 4,
    chunk: tuple[int, int] = (2, 4),
) -> Array:
    """Create an empty array of a cube."""
    lengths = {"layer": n_layers, "sample": n_samples, "token": n_tokens, "hidden": hidden}
    group = zarr.create_group(folder / "a.zarr", zarr_format=3)
    return create_array(group, VARIABLES[name], lengths, window=window, chunk=chunk, attrs={})


def file_of(folder: Path, array: Array, window: int = 0) -> Path:
    return list(shards(folder / "a.zarr", array))[window].path


def write(path: Path, array: Array, values: Ragged, writer: ShardWriter | None = None) -> None:
    """Write a file of an array."""
    with path.open("wb") as file:
        (writer or ShardWriter()).write_to(file, array, values)


def ragged(lengths: list[int], layers: tuple[int, ...], hidden: int, kind: str = "float32") -> Ragged:
    """Any bits, as numbers of a kind."""
    values, _ = drawn((len(layers), sum(lengths), hidden), kind)
    return Ragged(values, np.cumsum([0, *lengths[:-1]]), np.array(lengths), layers)


def meant_by(values: Ragged, kind: str, n_layers: int, n_tokens: int) -> np.ndarray:
    """Return what should be read, put together here."""
    _, meant = drawn(values.values.shape, kind)
    dense = np.full((n_layers, len(values.lengths), n_tokens, meant.shape[-1]), np.nan, dtype=np.float32)
    for row, layer in enumerate(values.layers):
        for sample, (start, length) in enumerate(zip(values.starts, values.lengths, strict=True)):
            dense[layer, sample, :length] = meant[row, start : start + length]
    return dense


def index_of(content: bytes, array: Array) -> np.ndarray:
    """Return where the chunks of a shard lie, dims ``(layer, group, tile, offset and length)``."""
    assert array.shards is not None
    grid = [shard // chunk for shard, chunk in zip(array.shards, array.chunks, strict=True)]
    size = 16 * int(np.prod(grid))
    listed = content[-size - 4 : -4]
    assert int.from_bytes(content[-4:], "little") == google_crc32c.value(listed)
    return np.frombuffer(listed, dtype="<u8").reshape(*grid, 2)


ABSENT = 2**64 - 1

shapes = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(0, 9), min_size=1, max_size=9),
        "samples": st.sampled_from([1, 2, 4]),
        "groups": st.integers(1, 3),
        "tile": st.integers(1, 5),
        "hidden": st.integers(1, 20),
        "layers": st.sets(st.integers(0, 3), min_size=1).map(sorted).map(tuple),
        "kind": st.sampled_from(KINDS),
        "threads": st.sampled_from([1, 3]),
        "longer": st.integers(0, 4),
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("examples", [25, pytest.param(300, marks=pytest.mark.nightly)])
def test_zarr_and_tensorstore_read_what_was_written(examples: int) -> None:
    settings(max_examples=examples)(given(shape=shapes)(check_readers))()


def check_readers(shape: dict) -> None:  # type: ignore[type-arg]
    window = shape["samples"] * shape["groups"]
    lengths, layers = shape["lengths"][:window], shape["layers"]
    n_tokens = max(1, max(lengths) + shape["longer"])  # samples of other windows may be longer
    with tempfile.TemporaryDirectory() as folder:
        array = array_in(
            Path(folder),
            n_layers=4,
            n_samples=len(lengths),
            n_tokens=n_tokens,
            hidden=shape["hidden"],
            window=window,
            chunk=(shape["samples"], shape["tile"]),
        )
        path = file_of(Path(folder), array)
        values = ragged(lengths, layers, shape["hidden"], shape["kind"])
        writer = ShardWriter(shape["threads"])
        write(path, array, values, writer)
        writer.close()
        expected = meant_by(values, shape["kind"], 4, n_tokens)
        np.testing.assert_array_equal(bits(np.asarray(array[:])), bits(expected))
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{folder}/a.zarr/residual"}}
        there = tensorstore.open(spec, read=True).result().read().result()
        np.testing.assert_array_equal(bits(there), bits(expected))

        # chunks with tokens, one after the other, then the index: nothing between, nothing else
        content = path.read_bytes()
        assert [entry.name for entry in path.parent.iterdir() if entry.name != "zarr.json"] == [path.name]
        index = index_of(content, array)[:, :, :, 0]
        end = 0
        for layer, group, tile in np.ndindex(index.shape[:3]):
            start, size = (int(number) for number in index[layer, group, tile])
            of_group = lengths[group * shape["samples"] : (group + 1) * shape["samples"]]
            if layer in layers and max(of_group, default=0) > tile * shape["tile"]:
                assert start == end
                assert size > 0
                end += size
            else:
                assert (start, size) == (ABSENT, ABSENT)
        assert end + index.nbytes + 4 == len(content)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["residual", "embedding", "vision/residual"])
def test_every_variable_of_vectors_reads_back(tmp_path: Path, name: str, kind: str) -> None:
    array = array_in(tmp_path, name=name, n_samples=7, hidden=33)
    lengths = [5, 0, 6, 1, 0, 3, 2]
    layers = (0,) if name == "embedding" else (0, 1)
    whole = ragged(lengths, layers, 33, kind)
    for window, part in enumerate((slice(0, 4), slice(4, 7))):  # the last window is not full
        values = Ragged(whole.values, whole.starts[part], whole.lengths[part], layers)
        write(file_of(tmp_path, array, window), array, values)
    expected = meant_by(whole, kind, len(layers), 6)
    read = np.asarray(array[:])
    np.testing.assert_array_equal(bits(read), bits(expected[0] if name == "embedding" else expected))


@pytest.fixture(scope="module")
def large() -> Ragged:
    """Chunks of half a megabyte, as those of real cubes: blosc cuts them into blocks."""
    return ragged([200, 3, 150, 0, 64, 65, 1, 199], (0, 2), 512)


def test_the_bytes_are_the_same_with_any_number_of_threads(tmp_path: Path, large: Ragged) -> None:
    array = array_in(tmp_path, n_layers=3, n_samples=8, n_tokens=200, hidden=512, window=8, chunk=(4, 50))
    written = []
    for threads in (1, 2, 3, 8, 8):
        writer = ShardWriter(threads)
        path = tmp_path / f"{len(written)}"
        write(path, array, large, writer)
        writer.close()
        written.append(path.read_bytes())
    assert len(set(written)) == 1
    assert len(written[0]) > 2_000_000


def test_a_writer_is_used_again_for_arrays_of_other_shapes(tmp_path: Path) -> None:
    writer = ShardWriter(2)
    for turn, hidden in enumerate((3, 8, 3)):
        (tmp_path / str(turn)).mkdir()
        array = array_in(tmp_path / str(turn), hidden=hidden)
        values = ragged([6, 1, 0, 4], (0, 1), hidden)
        write(file_of(tmp_path / str(turn), array), array, values, writer)
        np.testing.assert_array_equal(bits(np.asarray(array[:])), bits(meant_by(values, "float32", 2, 6)))
    writer.close()


def test_the_payload_of_a_nan_reaches_the_disk(tmp_path: Path) -> None:
    array = array_in(tmp_path, n_layers=1, n_samples=1, n_tokens=2, hidden=1, window=1, chunk=(1, 2))
    numbers = np.array([[[PAYLOAD], [PAYLOAD | 2**31]]], dtype=np.uint32).view(np.float32)
    write(file_of(tmp_path, array), array, Ragged(numbers, np.array([0]), np.array([2])))
    assert bits(np.asarray(array[:])).ravel().tolist() == [PAYLOAD, PAYLOAD | 2**31]


def test_a_window_without_any_token_is_an_index_alone(tmp_path: Path) -> None:
    array = array_in(tmp_path)
    path = file_of(tmp_path, array)
    write(path, array, ragged([0, 0, 0, 0], (0, 1), 3))
    assert path.stat().st_size == 2 * 2 * 2 * 16 + 4
    assert np.isnan(np.asarray(array[:])).all()


def test_ends_of_long_prompts_and_missing_layers_take_no_bytes(tmp_path: Path) -> None:
    array = array_in(tmp_path, n_layers=8, n_samples=8, n_tokens=64, hidden=64, window=8, chunk=(2, 8))
    path = file_of(tmp_path, array)
    sizes = {}
    for name, lengths, layers in (
        ("short", [8] * 8, (5,)),
        ("one long", [64, *[8] * 7], (5,)),
        ("all layers", [8] * 8, tuple(range(8))),
    ):
        write(path, array, ragged(lengths, layers, 64))
        sizes[name] = path.stat().st_size
    index = 8 * 4 * 8 * 16 + 4
    tile = 4 * 8 * 64  # random bits cannot be compressed
    assert sizes["short"] - index == pytest.approx(8 * tile, rel=0.05)
    # seven more tiles for the long one; its neighbour's pads in them cost little
    assert 7 * tile < sizes["one long"] - sizes["short"] < 7 * tile * 1.2
    assert sizes["all layers"] - index == pytest.approx(8 * 8 * tile, rel=0.05)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Array]:
    """A shard of a few hundred bytes, all of whose parts are there: chunks, gaps in the index, checksums."""
    array = array_in(tmp_path, n_samples=3, n_tokens=3, hidden=2, chunk=(2, 2))
    path = file_of(tmp_path, array)
    write(path, array, ragged([3, 1, 2], (1,), 2))
    return path, array


def damaged(whole: bytes, stride: int) -> Iterator[tuple[str, bytes]]:
    for bit in range(0, 8 * len(whole), stride):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit % 8} of byte {bit // 8}", bytes(content)
    for size in range(1, len(whole), stride):
        yield f"cut to {size}", whole[:size]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.nightly)])  # odd: all bits of a byte
def test_flipped_bits_and_cuts_are_met_on_reading(small: tuple[Path, Array], stride: int) -> None:
    path, array = small
    whole = path.read_bytes()
    array[:]
    missed, trials = [], 0
    for what, content in damaged(whole, stride):
        trials += 1
        path.write_bytes(content)
        try:
            array[:]
        except Exception:  # zarr's codecs raise what they like
            continue
        missed.append(what)
    path.write_bytes(whole)
    array[:]
    print(f"\na bit flipped, or the end cut off, in a shard of {len(whole)} bytes: ", end="")
    print(f"{trials} trials, {len(missed)} read as numbers")
    assert missed == []
    assert trials >= (9 * len(whole) - 1) // stride


@pytest.mark.slow
@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.nightly)])
def test_verify_names_a_shard_for_any_damaged_byte(tmp_path: Path, stride: int) -> None:
    numbers = synthetic(n_layers=1, n_samples=2, n_tokens=2, hidden=2, window=2)
    numbers.create(tmp_path).write(0, numbers.part(0))
    array = array_of(open_group(tmp_path / CUBE), "residual")
    (shard,) = shards(tmp_path / CUBE, array)
    assert verify(tmp_path).ok
    size = shard.path.stat().st_size
    missed = []
    for byte in range(0, size, stride):
        flip_bit(shard.path, 8 * byte + byte % 8)
        if [fault.where for fault in verify(tmp_path).faults] != ["residual/c.0.0.0.0"]:
            missed.append(byte)
        flip_bit(shard.path, 8 * byte + byte % 8)
    which = "each" if stride == 1 else f"one in {stride}"
    print(f"\na bit flipped in {which} of the {size} bytes of a shard: {len(missed)} not named by verify")
    assert missed == []
    assert verify(tmp_path).ok


def test_what_a_compressing_thread_raises_is_raised(tmp_path: Path) -> None:
    array = array_in(tmp_path)
    path = file_of(tmp_path, array)
    values = ragged([6, 6, 6, 6], (0, 1), 4)  # wider than the array
    for threads in (1, 3):
        writer = ShardWriter(threads)
        with pytest.raises(ValueError, match=r"shape|out"):
            write(path, array, values, writer)
        writer.close()


def encoded_by_zarr(array: Array, window: int, values: np.ndarray) -> bytes:
    twin, stored = in_memory(array)
    twin[shard_region(array, window)] = storable(values)
    (content,) = stored.values()
    return content.to_bytes()


def test_small_variables_are_encoded_as_zarr_does(tmp_path: Path) -> None:
    cube = synthetic(n_samples=6, window=4, everything=True)  # the last window is smaller
    cube.create(tmp_path).close()
    group = open_group(tmp_path / CUBE)
    compared = set()
    for window in range(cube.plan.n_windows):
        for name, values in cube.part(window).items():
            if isinstance(values, Ragged):
                continue
            array = array_of(group, name)
            assert encoded(array, window, values) == encoded_by_zarr(array, window, values), name
            compared.add(name)
    assert {"norm", "pooled", "last", "nonfinite", "n_tokens", "token_id", "token_text"} <= compared


def test_large_chunks_are_encoded_in_one_order_by_any_thread(tmp_path: Path) -> None:
    array = array_in(tmp_path, name="pooled", n_samples=64, hidden=8192, window=64)
    values = np.random.default_rng(0).standard_normal(array.shape).astype(np.float32)
    expected, found = encoded_by_zarr(array, 0, values), []
    thread = threading.Thread(target=lambda: found.append(encoded(array, 0, values)))
    thread.start()
    thread.join()
    assert [*found, encoded(array, 0, values)] == [expected, expected]
