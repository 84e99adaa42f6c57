"""A cube reads back as what was written, labelled, in any zarr reader, and without reading too much."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr

from actkit import open_cube
from actkit.errors import CorruptError, CubeError, IncompleteError
from actkit.schema import VARIABLES, TokenKind
from actkit.store.checking import StrictStore
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.testing import Synthetic, flip_bit, synthetic, write_cube

NUMBERS = [name for name, variable in VARIABLES.items() if not variable.coord]
LABELS = ("gender", "image_id")
STRINGS = ("sample_id", "language", "text", *LABELS)


@pytest.fixture
def cube(intact: Path) -> xr.Dataset:
    return open_cube(intact)


# what it holds


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_are_as_declared(cube: xr.Dataset, name: str) -> None:
    declared = VARIABLES[name]
    assert cube[name].dims == declared.dims
    assert cube[name].dtype == (object if declared.dtype == "str" else declared.dtype)
    assert cube[name].attrs["long_name"] == declared.meaning
    assert (name in cube.coords) == declared.coord


def test_values_are_what_was_written(cube: xr.Dataset, numbers: Synthetic, truth: xr.Dataset) -> None:
    xr.testing.assert_equal(cube.drop_vars(cube.coords), truth)
    for name, values in {**numbers.coords, **numbers.labels}.items():
        np.testing.assert_array_equal(cube[name].values, values)
    np.testing.assert_array_equal(cube.batch, numbers.plan.batches)
    assert cube.committed.all()
    assert cube.attrs["model"] == "synthetic"
    assert cube.encoding["source"].endswith(CUBE)


def test_big_variables_are_lazy_and_coordinates_along_samples_are_not(cube: xr.Dataset) -> None:
    for name, variable in {**cube.variables}.items():
        assert dask.is_dask_collection(variable) == (variable.ndim > 1), name
    assert set(cube.residual.chunksizes["layer"]) == {1}


def test_selecting_by_label(cube: xr.Dataset, numbers: Synthetic) -> None:
    np.testing.assert_array_equal(cube.sel(layer=2).residual, numbers.values["residual"][2])
    assert cube.sel(layer=2).residual.dims == ("sample", "token", "hidden")


def test_grouping(cube: xr.Dataset, numbers: Synthetic) -> None:
    means = cube.groupby("language").mean()
    for language in ("english", "arabic"):
        rows = numbers.coords["language"] == language
        np.testing.assert_allclose(
            means.pooled.sel(language=language), numbers.values["pooled"][:, rows].mean(axis=1), rtol=1e-6
        )


def test_filtering(cube: xr.Dataset, numbers: Synthetic) -> None:
    women = cube.where(cube.gender == "female", drop=True)
    rows = numbers.labels["gender"] == "female"
    assert 0 < women.sizes["sample"] == rows.sum() < cube.sizes["sample"]
    np.testing.assert_array_equal(women.residual, numbers.values["residual"][:, rows])
    assert set(women.gender.values) == {"female"}


def test_a_careless_mean_over_tokens_is_right(cube: xr.Dataset, numbers: Synthetic) -> None:
    lengths = numbers.plan.lengths
    assert lengths.min() < lengths.max()
    means = cube.residual.mean("token")
    for sample, length in enumerate(lengths):
        expected = numbers.values["residual"][:, sample, :length].mean(axis=1)
        np.testing.assert_allclose(means[:, sample], expected, rtol=1e-5)


def test_pads_are_nan_and_are_where_token_kind_says(cube: xr.Dataset) -> None:
    pads = cube.token_kind == TokenKind.PAD
    assert pads.any()
    for values in (cube.residual, cube.embedding):
        assert (values.isnull().all("hidden") == pads).all()
        assert (values.isnull().any("hidden") == pads).all()
    assert (cube.norm.isnull() == pads).all()


@pytest.mark.parametrize(
    "text",
    ["الطبيبةُ تقرأ كتابًا.", "\u202bعربي\u202c\u200f", "e\u0301 ≠ é", "a\r\nb\tc\0d", "👩🏽‍⚕️ 𒀀", " "],
)
def test_texts_come_back_byte_for_byte(tmp_path: Path, text: str) -> None:
    numbers = synthetic(n_samples=4)
    for values in (numbers.coords["text"], numbers.labels["gender"]):
        values[:] = text
    numbers.create(tmp_path).write(0, numbers.part(0))
    read = open_cube(tmp_path)
    for values in (read.text, read.gender):
        assert [value.encode() for value in values.values] == [text.encode()] * 4


def test_what_a_reader_sees_first(cube: xr.Dataset) -> None:
    for shown in (repr(cube), cube._repr_html_()):
        plain = re.sub("<[^>]*>", "", shown)
        for wanted in ("layer: 3", "sample: 10", "token: 6", "hidden: 8", "synthetic", "english", "arabic"):
            assert wanted in plain, wanted


# other readers of the same files


def test_xarray_alone_reads_the_same(intact: Path, cube: xr.Dataset) -> None:
    plain = xr.open_zarr(intact / CUBE, consolidated=False)
    assert set(plain.coords) == set(cube.coords)
    xr.testing.assert_equal(plain.load(), cube.load())


def test_zarr_alone_reads_the_same(intact: Path, cube: xr.Dataset) -> None:
    group = zarr.open_group(intact / CUBE, mode="r")
    assert set(group.array_keys()) == set(cube.variables)
    for name, array in group.arrays():
        np.testing.assert_array_equal(np.asarray(array[...]), cube[name].values)


@pytest.mark.parametrize("name", [name for name in VARIABLES if VARIABLES[name].dtype != "str"])
def test_tensorstore_reads_the_same(intact: Path, cube: xr.Dataset, name: str) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(intact / CUBE / name)}}
    read = tensorstore.open(spec, read=True).result().read().result()
    assert read.dtype == cube[name].dtype
    np.testing.assert_array_equal(read, cube[name].values)


# how much it reads, and how long it takes


def bytes_read(read: Callable[[], object]) -> int:
    """Return how many bytes this process read from files, as the kernel counts them."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    empty = -count() + count()
    before = count()
    read()
    return count() - before - empty


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual of 6 layers × 2 windows × 2 inner chunks, of a megabyte each."""
    return write_cube(
        tmp_path_factory.mktemp("large"), n_layers=6, n_samples=32, n_tokens=64, hidden=512, window=16
    )


def test_one_layer_reads_its_share_of_the_bytes(large: Path) -> None:
    cube = open_cube(large)
    size = sum(path.stat().st_size for path in (large / CUBE / "residual").glob("c.*"))
    read = bytes_read(lambda: cube.residual.sel(layer=2).load())
    print(f"\n.sel(layer=2) read {read:,} of {size:,} bytes: {read / size:.4f}, 1/6 = {1 / 6:.4f}")
    assert size / 6 * 0.95 < read < size / 6 * 1.05


def test_one_sample_reads_its_inner_chunks_alone(large: Path) -> None:
    cube = open_cube(large)
    size = sum(path.stat().st_size for path in (large / CUBE / "residual").glob("c.*"))
    read = bytes_read(lambda: cube.residual.isel(sample=5).load())
    print(f"\n.isel(sample=5) read {read:,} of {size:,} bytes: {read / size:.4f}, 1/4 = {1 / 4:.4f}")
    assert size / 16 < read < size / 3  # how much of it is padding is up to the prompts


def test_the_graph_stays_small(large: Path) -> None:
    cube = open_cube(large)
    assert cube.residual.data.npartitions == 6
    assert len(cube.sel(layer=2).residual.data.dask) < 15


def test_ten_thousand_samples_open_at_once(tmp_path: Path) -> None:
    numbers = synthetic(n_layers=2, n_samples=10_000, n_tokens=4, hidden=4, window=16)
    numbers.create(tmp_path).write(0, numbers.part(0))
    group = open_group(tmp_path / CUBE)
    for name in (*NUMBERS, "committed"):
        first, *others = (shard.path for shard in shards(tmp_path / CUBE, array_of(group, name)))
        for path in others:
            shutil.copyfile(first, path)
    started = time.perf_counter()
    cube = open_cube(tmp_path)
    seconds = time.perf_counter() - started
    assert cube.sizes["sample"] == 10_000
    print(f"\n10,000 samples in 625 windows opened in {seconds:.2f} s")
    assert seconds < 2


def test_opening_and_analysing_import_no_torch(intact: Path) -> None:
    code = (
        "import sys, actkit\n"
        "cube = actkit.open_cube(sys.argv[1])\n"
        "cube.groupby('language').mean().load()\n"
        "actkit.layer_norms(cube).load(), actkit.verify(sys.argv[1])\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(intact)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# in other processes


def test_a_cube_can_be_pickled(cube: xr.Dataset) -> None:
    xr.testing.assert_identical(cloudpickle.loads(cloudpickle.dumps(cube)).load(), cube.load())


def test_another_process_computes_the_same(cube: xr.Dataset) -> None:
    norms = cube.residual.std(["token", "hidden"])
    (there,) = dask.compute(norms, scheduler="processes", num_workers=1)
    xr.testing.assert_identical(there, norms.compute())


def test_damage_met_in_another_process_is_named_in_this_one(run: Path) -> None:
    cube = open_cube(run)
    flip_bit(run / CUBE / "residual" / "c.0.1.0.0", 99)
    with pytest.raises(CorruptError) as caught:
        dask.compute(cube.residual.sel(layer=0), scheduler="processes", num_workers=1)
    assert [fault.where for fault in caught.value.faults] == ["residual/c.0.1.0.0"]


# cubes that are not complete


@pytest.fixture
def uncommit(run: Path) -> Callable[[int], None]:
    """Take a window back, and leave garbage where its shards were."""

    def take_back(window: int) -> None:
        for name in (*NUMBERS, "committed"):
            path = list(shards(run / CUBE, array_of(open_group(run / CUBE), name)))[window].path
            path.unlink() if name == "committed" else path.write_bytes(b"garbage")

    return take_back


ROWS = [range(4), range(4, 8), range(8, 10)]


@pytest.mark.parametrize("windows", [[0, 1], [1, 2], [0, 2], [1], [2], []], ids=str)
def test_a_part_of_a_cube(
    run: Path,
    numbers: Synthetic,
    truth: xr.Dataset,
    uncommit: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    windows: list[int],
) -> None:
    for window in {0, 1, 2} - set(windows):
        uncommit(window)
    rows = [row for window in windows for row in ROWS[window]]

    with pytest.raises(
        IncompleteError, match=f": {len(rows)} of 10 samples are committed; rerun the extraction"
    ):
        open_cube(run)

    asked: set[str] = set()
    get = StrictStore.get

    def watched(store: StrictStore, key: str, *arguments: Any, **options: Any) -> Any:
        asked.add(key)
        return get(store, key, *arguments, **options)

    monkeypatch.setattr(StrictStore, "get", watched)
    cube = open_cube(run, partial=True)
    xr.testing.assert_equal(cube.drop_vars(cube.coords), truth.isel(sample=rows))
    np.testing.assert_array_equal(cube.sample, rows)
    np.testing.assert_array_equal(cube.text, numbers.coords["text"][rows])
    np.testing.assert_array_equal(cube.token_id, numbers.coords["token_id"][rows])
    assert cube.committed.all()
    read = {key for key in asked if key.startswith("residual/c.")}
    assert read == {f"residual/c.0.{window}.0.0" for window in windows}


def test_a_part_that_is_damaged_is_an_error_all_the_same(run: Path, uncommit: Callable[[int], None]) -> None:
    uncommit(1)
    flip_bit(run / CUBE / "residual" / "c.0.2.0.0", 99)
    with pytest.raises(CorruptError, match=r"residual/c\.0\.2\.0\.0"):
        open_cube(run, partial=True).residual.load()


def test_a_cube_that_grows_is_seen_whole_when_it_is_opened_again(tmp_path: Path, numbers: Synthetic) -> None:
    writer = numbers.create(tmp_path)
    for window, samples in enumerate((4, 8, 10)):
        writer.write(window, numbers.part(window))
        assert open_cube(tmp_path, partial=True).residual.load().sizes["sample"] == samples


# cubes that change while they are open


def test_a_cube_that_was_replaced_gives_no_numbers_of_the_other_one(run: Path) -> None:
    cube = open_cube(run)
    shutil.rmtree(run)
    write_cube(run, n_samples=10, n_tokens=6, hidden=8, window=2)
    with pytest.raises(CubeError, match="was replaced by another cube; open it again"):
        cube.residual.load()


def test_a_cube_that_was_removed(run: Path) -> None:
    cube = open_cube(run)
    shutil.rmtree(run)
    with pytest.raises(CubeError, match="cannot be read any more: No such file"):
        cube.residual.load()


def test_a_cube_that_was_moved_is_opened_by_its_new_name(run: Path) -> None:
    before = open_cube(run).load()
    run.rename(run.parent / "elsewhere")
    xr.testing.assert_equal(open_cube(run.parent / "elsewhere").load(), before)
