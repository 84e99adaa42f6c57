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

from actkit import open_cube, tokens
from actkit.errors import CorruptError, CubeError, IncompleteError
from actkit.schema import VARIABLES, VISION, TokenKind
from actkit.store.checking import StrictStore
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.testing import Synthetic, flip_bit, synthetic, write_cube

BY_WINDOW = [name for name, variable in VARIABLES.items() if variable.by_window]


@pytest.fixture
def cube(intact: Path) -> xr.Dataset:
    return open_cube(intact)


@pytest.fixture
def tower(intact: Path) -> xr.Dataset:
    return open_cube(intact, group=VISION)


def of_group(run: Path, name: str) -> xr.DataArray:
    """Open the group of a variable, and return the variable."""
    group, _, short = name.rpartition("/")
    return open_cube(run, group=group)[short]


# what it holds


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_are_as_declared(intact: Path, name: str) -> None:
    declared = VARIABLES[name]
    read = of_group(intact, name)
    assert read.dims == declared.dims
    assert read.dtype == (object if declared.dtype == "str" else declared.dtype)
    assert read.attrs["long_name"] == declared.meaning
    cube = open_cube(intact, group=declared.group)
    assert (read.name in cube.coords) == declared.coord
    assert (read.name in cube.data_vars) == (not declared.coord)


def everything(numbers: Synthetic) -> dict[str, np.ndarray]:
    """All that was written, by the paths in the store."""
    return {**numbers.values, **numbers.coords, **numbers.rows, "batch": numbers.plan.batches}


def test_values_are_what_was_written(
    intact: Path, cube: xr.Dataset, numbers: Synthetic, truth: xr.Dataset
) -> None:
    xr.testing.assert_equal(cube.drop_vars(cube.coords), truth)
    written = everything(numbers)
    assert set(written) == {*VARIABLES, *numbers.labels} - {"committed"}
    for name, values in written.items():
        np.testing.assert_array_equal(of_group(intact, name).values, values, err_msg=name)
    assert cube.committed.all()
    assert cube.attrs["model"] == "synthetic"
    assert cube.encoding["source"].endswith(CUBE)


def test_big_variables_are_lazy_and_coordinates_along_samples_are_not(cube: xr.Dataset) -> None:
    for name, variable in {**cube.variables}.items():
        assert dask.is_dask_collection(variable) == (variable.ndim > 1), name
    for name in ("residual", "attention", "mlp"):
        assert set(cube[name].chunksizes["layer"]) == {1}


def test_selecting_by_label(cube: xr.Dataset, numbers: Synthetic) -> None:
    np.testing.assert_array_equal(cube.sel(layer=2).residual, numbers.values["residual"][2])
    assert cube.sel(layer=2).residual.dims == ("sample", "token", "hidden")


def test_grouping(cube: xr.Dataset, numbers: Synthetic) -> None:
    means = cube.groupby("language").mean()
    for language in ("english", "arabic"):
        rows = numbers.rows["language"] == language
        np.testing.assert_allclose(
            means.pooled.sel(language=language), numbers.values["pooled"][:, rows].mean(axis=1), rtol=1e-6
        )


def test_filtering(cube: xr.Dataset, numbers: Synthetic) -> None:
    women = cube.where(cube.gender == "female", drop=True)
    rows = numbers.labels["gender"] == "female"
    assert 0 < women.sizes["sample"] == rows.sum() < cube.sizes["sample"]
    np.testing.assert_array_equal(women.residual, numbers.values["residual"][:, rows])
    assert set(women.gender.values) == {"female"}
    # coordinates keep their types: no string becomes NaN
    assert women.token_text.values.tolist() == numbers.values["token_text"][rows].tolist()
    assert women.generated.values.tolist() == numbers.values["generated"][rows].tolist()
    assert women.n_tokens.dtype == np.int32


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
    for values in (cube.residual, cube.attention, cube.mlp.sel(layer=cube.has_mlp), cube.embedding):
        assert (values.isnull().all("hidden") == pads).all()
        assert (values.isnull().any("hidden") == pads).all()
    assert (cube.norm.isnull() == pads).all()
    assert ((cube.token_text == "") == pads).all()
    assert ((cube.position == -1) == pads).all()
    assert (pads.sum("token") == cube.sizes["token"] - cube.n_tokens).all()


def test_layers_at_which_a_component_is_absent_are_marked_and_nan(cube: xr.Dataset) -> None:
    assert cube.has_residual.values.tolist() == cube.has_attention.values.tolist() == [True] * 3
    assert cube.has_mlp.values.tolist() == [False, True, True]
    absent = cube.mlp.isnull().all(["sample", "token", "hidden"])
    assert (absent == ~cube.has_mlp).all()
    assert cube.mlp.sel(layer=cube.has_mlp).layer.values.tolist() == [1, 2]
    # a careless mean over layers leaves them out
    np.testing.assert_allclose(cube.mlp.mean("layer"), cube.mlp.isel(layer=[1, 2]).mean("layer"))


# the group of the vision tower


def test_the_vision_tower_has_axes_of_its_own_and_the_samples_of_the_cube(
    tower: xr.Dataset, cube: xr.Dataset, numbers: Synthetic
) -> None:
    assert dict(tower.sizes) == {"layer": 2, "sample": 10, "token": 7, "hidden": 4}
    assert set(tower.data_vars) == {"residual", "norm", "pooled", "nonfinite"}
    np.testing.assert_array_equal(tower.n_tokens, numbers.values["vision/n_tokens"])
    assert (tower.n_tokens != cube.n_tokens).any()
    for name in tower.coords.keys() - {"n_tokens", "layer", "token"}:
        xr.testing.assert_identical(tower[name].variable, cube[name].variable)
    # what the decoder's tokens or layers say is not said of patches
    assert cube.coords.keys() - tower.coords.keys() == {
        *("token_id", "token_kind", "token_text", "position"),
        *("has_residual", "has_attention", "has_mlp"),
    }
    assert tower.attrs == cube.attrs
    assert tower.encoding == cube.encoding


def test_patches_are_grouped_and_selected_by_what_is_known_of_their_samples(
    tower: xr.Dataset, numbers: Synthetic
) -> None:
    patches = numbers.values["vision/residual"]
    rows = numbers.labels["gender"] == "female"
    means = tower.pooled.groupby("gender").mean()
    np.testing.assert_allclose(
        means.sel(gender="female"), patches[:, rows].mean(axis=(1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(tower.residual.sel(layer=1, sample=9), patches[1, 9])


def test_patches_are_lazy(tower: xr.Dataset) -> None:
    for name, variable in {**tower.variables}.items():
        assert dask.is_dask_collection(variable) == (variable.ndim > 1), name
    assert set(tower.residual.chunksizes["layer"]) == {1}


@pytest.mark.parametrize("group", ["visions", "residual", "vision/residual", "/"])
def test_a_group_that_is_not_there(intact: Path, tmp_path: Path, group: str) -> None:
    with pytest.raises(CubeError, match=f"has no group `{group}`; it has vision$"):
        open_cube(intact, group=group)
    with pytest.raises(CubeError, match=f"has no group `{group}`; it has no groups$"):
        open_cube(write_cube(tmp_path), group=group)


# the characters of tokens


def test_the_tokens_of_a_sample(cube: xr.Dataset, numbers: Synthetic) -> None:
    for sample, length in enumerate(numbers.plan.lengths):
        found = tokens(cube, sample)
        assert found == numbers.values["token_text"][sample, :length].tolist()
        assert len(found) == length
        assert all(type(text) is str for text in found)


def test_the_tokens_of_a_part_go_by_the_name_of_the_sample_and_not_by_its_place(
    cube: xr.Dataset, numbers: Synthetic
) -> None:
    expected = tokens(cube, 9)
    for part in (
        cube.isel(sample=[9, 2]),
        cube.where(cube.sample == 9, drop=True),
        cube.isel(sample=slice(8, 10)),
    ):
        assert tokens(part, 9) == expected
        with pytest.raises(KeyError):
            tokens(part, 3)
    with pytest.raises(KeyError):
        tokens(cube, 10)
    with pytest.raises(KeyError):
        tokens(cube, -1)


def test_a_token_without_characters_of_its_own_keeps_its_place(tmp_path: Path) -> None:
    # three tokens of one character: it stands at the last of them
    numbers = synthetic(n_samples=4, n_tokens=5)
    numbers.values["token_text"][3] = ["<s>", "", "", "𒀀", " ء"]
    numbers.create(tmp_path).write(0, numbers.part(0))
    assert tokens(open_cube(tmp_path), 3) == ["<s>", "", "", "𒀀", " ء"]


@pytest.mark.parametrize(
    "text",
    ["الطبيبةُ تقرأ كتابًا.", "\u202bعربي\u202c\u200f", "e\u0301 ≠ é", "a\r\nb\tc\0d", "👩🏽‍⚕️ 𒀀", " "],
)
def test_texts_come_back_byte_for_byte(tmp_path: Path, text: str) -> None:
    numbers = synthetic(n_samples=4, everything=True)
    for values in (numbers.rows["text"], numbers.rows["gender"], numbers.values["generated"]):
        values[:] = text
    numbers.values["token_text"][:] = text
    numbers.create(tmp_path).write(0, numbers.part(0))
    read = open_cube(tmp_path)
    for values in (read.text, read.gender, read.generated, *read.token_text.load().T):
        assert [value.encode() for value in values.values] == [text.encode()] * 4


def test_what_a_reader_sees_first(cube: xr.Dataset, tmp_path: Path) -> None:
    for shown in (repr(cube), cube._repr_html_()):
        plain = re.sub("<[^>]*>", "", shown)
        for wanted in ("layer: 3", "sample: 10", "token: 6", "hidden: 8", "synthetic", "english", "arabic"):
            assert wanted in plain, wanted
    fewer = repr(open_cube(write_cube(tmp_path)))
    for wanted in ("english", "arabic", "image-0000", "'male'"):
        assert wanted in fewer, wanted


# other readers of the same files


def test_xarray_alone_reads_the_same(intact: Path, cube: xr.Dataset) -> None:
    plain = xr.open_zarr(intact / CUBE, consolidated=False)
    assert set(plain.coords) == set(cube.coords)
    xr.testing.assert_equal(plain.load(), cube.load())


def test_xarray_alone_reads_the_same_of_the_vision_tower(intact: Path, tower: xr.Dataset) -> None:
    plain = xr.open_zarr(intact / CUBE, group=VISION, consolidated=False)
    assert set(plain.coords) == {"layer", "sample", "token", "n_tokens"}
    assert set(plain.data_vars) == set(tower.data_vars)
    xr.testing.assert_equal(plain.load(), tower.drop_vars(tower.coords.keys() - plain.coords.keys()).load())


def test_xarray_alone_reads_all_groups_at_once(intact: Path, cube: xr.Dataset, tower: xr.Dataset) -> None:
    groups = xr.open_groups(intact / CUBE, engine="zarr", consolidated=False)
    assert set(groups) == {"/", "/vision"}
    xr.testing.assert_equal(groups["/"].load(), cube.load())
    xr.testing.assert_equal(
        groups["/vision"].residual.load(),
        tower.residual.load().drop_vars(tower.coords.keys() - groups["/vision"].coords.keys()),
    )


def test_zarr_alone_reads_the_same(intact: Path, cube: xr.Dataset) -> None:
    group = zarr.open_group(intact / CUBE, mode="r")
    assert set(group.array_keys()) == set(cube.variables)
    assert set(group.group_keys()) == {VISION}
    arrays = {name: array for name, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}
    assert set(arrays) == {*VARIABLES, "gender", "image_id"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array[...]), of_group(intact, name).values)


@pytest.mark.parametrize("name", [name for name in VARIABLES if VARIABLES[name].dtype != "str"])
def test_tensorstore_reads_the_same(intact: Path, name: str) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(intact / CUBE / name)}}
    read = tensorstore.open(spec, read=True).result().read().result()
    expected = of_group(intact, name)
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected.values)


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
    written = [name for name in BY_WINDOW if name in group]
    assert {"residual", "token_text", "n_tokens"} <= set(written)
    for name in (*written, "committed"):
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
        "actkit.layer_norms(cube).load(), actkit.verify(sys.argv[1]), actkit.tokens(cube, 3)\n"
        "actkit.open_cube(sys.argv[1], group='vision').load()\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(intact)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


# in other processes


def test_a_cube_can_be_pickled(cube: xr.Dataset) -> None:
    xr.testing.assert_identical(cloudpickle.loads(cloudpickle.dumps(cube)).load(), cube.load())


def test_a_group_can_be_pickled(tower: xr.Dataset) -> None:
    xr.testing.assert_identical(cloudpickle.loads(cloudpickle.dumps(tower)).load(), tower.load())


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
        for name in (*BY_WINDOW, "committed"):
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
    for name in (
        *numbers.rows,
        "prompt_tokens",
        "n_tokens",
        "token_id",
        "token_kind",
        "token_text",
        "generated",
    ):
        expected = everything(numbers)[name][rows]
        np.testing.assert_array_equal(cube[name], expected, err_msg=name)
        assert cube[name].dtype == expected.dtype, name
    assert cube.has_mlp.values.tolist() == [False, True, True]
    assert cube.committed.all()
    assert [tokens(cube, row) for row in rows] == [
        numbers.values["token_text"][row, : numbers.plan.lengths[row]].tolist() for row in rows
    ]
    for name, file in {
        "residual": "c.0.{}.0.0",
        "n_tokens": "c.{}",
        "generated": "c.{}",
        "token_text": "c.{}.0",
    }.items():
        read = {key for key in asked if key.startswith(f"{name}/c.")}
        assert read == {f"{name}/{file.format(window)}" for window in windows}


@pytest.mark.parametrize("windows", [[0, 1], [0, 2], [2], []], ids=str)
def test_a_part_of_the_vision_tower(
    run: Path,
    numbers: Synthetic,
    uncommit: Callable[[int], None],
    windows: list[int],
) -> None:
    for window in {0, 1, 2} - set(windows):
        uncommit(window)
    rows = [row for window in windows for row in ROWS[window]]
    with pytest.raises(IncompleteError):
        open_cube(run, group=VISION)
    tower = open_cube(run, group=VISION, partial=True)
    assert dict(tower.sizes) == {"layer": 2, "sample": len(rows), "token": 7, "hidden": 4}
    for name in ("residual", "norm", "pooled", "nonfinite", "n_tokens"):
        variable = VARIABLES[f"vision/{name}"]
        expected = numbers.values[variable.name].take(rows, axis=variable.sample_axis)
        np.testing.assert_array_equal(tower[name], expected, err_msg=name)
    for name in ("sample_id", "text", "gender", "generated"):
        np.testing.assert_array_equal(tower[name], everything(numbers)[name][rows], err_msg=name)


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
