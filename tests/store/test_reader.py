"""A cube reads back as what was written, labelled, also in part and in other processes."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import dask
import numpy as np
import pytest
import xarray as xr

from actkit import open_cube, token_strings
from actkit.errors import CorruptError, CubeError, IncompleteError
from actkit.schema import VARIABLES, TokenKind
from actkit.store import reader
from actkit.store.byte_ranges import LocalRanges
from actkit.store.layout import CUBE, open_group
from actkit.store.verification import StrictStore
from actkit.testing import Synthetic, flip_bit, synthetic, write_cube


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_are_as_declared(
    opened: dict[str, xr.Dataset], stored: Callable[[str], xr.DataArray], name: str
) -> None:
    declared = VARIABLES[name]
    read = stored(name)
    assert read.dims == declared.dims
    assert read.dtype == (object if declared.dtype == "str" else declared.dtype)
    assert read.attrs["long_name"] == declared.meaning
    cube = opened[declared.group]
    assert (read.name in cube.coords) == declared.coord
    assert (read.name in cube.data_vars) == (not declared.coord)


def test_values_are_what_was_written(
    cube: xr.Dataset,
    truth: xr.Dataset,
    stored: Callable[[str], xr.DataArray],
    written: dict[str, np.ndarray],
) -> None:
    xr.testing.assert_equal(cube.drop_vars(cube.coords), truth)
    assert set(written) == {*VARIABLES, "gender", "image_id"} - {"committed"}
    for name, values in written.items():
        np.testing.assert_array_equal(stored(name).values, values, err_msg=name)
    assert cube.committed.all()
    assert cube.attrs["model"] == "synthetic"
    assert cube.encoding["source"].endswith(CUBE)


def test_big_variables_are_lazy_and_coordinates_along_samples_are_not(cube: xr.Dataset) -> None:
    for name, variable in {**cube.variables}.items():
        assert dask.is_dask_collection(variable) == (variable.ndim > 1), name
    for name in ("residual", "attention", "mlp"):
        assert set(cube[name].chunksizes["layer"]) == {1}


def test_large_files_are_divided_into_blocks_of_whole_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_cube(tmp_path, n_samples=16, n_tokens=30, hidden=512, window=16, n_layers=1)
    whole, inner = open_cube(run), open_group(run / CUBE)["residual"].chunks[1]  # type: ignore[union-attr]
    assert inner < 16
    monkeypatch.setattr(reader, "TOKEN_BLOCK_BYTES", 1)
    divided = open_cube(run)
    assert set(divided.residual.variable.chunksizes["sample"]) == {inner}
    assert divided.norm.chunks == whole.norm.chunks
    np.testing.assert_array_equal(divided.residual, whole.residual)


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


@pytest.mark.slow
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


# in other processes


def test_a_cube_can_be_pickled(cube: xr.Dataset) -> None:
    xr.testing.assert_identical(cloudpickle.loads(cloudpickle.dumps(cube)).load(), cube.load())


def test_a_group_can_be_pickled(tower: xr.Dataset) -> None:
    xr.testing.assert_identical(cloudpickle.loads(cloudpickle.dumps(tower)).load(), tower.load())


@pytest.mark.slow
def test_another_process_computes_the_same(cube: xr.Dataset) -> None:
    norms = cube.residual.std(["token", "hidden"])
    (there,) = dask.compute(norms, scheduler="processes", num_workers=1)
    xr.testing.assert_identical(there, norms.compute())


@pytest.mark.slow
def test_damage_met_in_another_process_is_named_in_this_one(run: Path) -> None:
    cube = open_cube(run)
    flip_bit(run / CUBE / "residual" / "c.0.1.0.0", 99)
    with pytest.raises(CorruptError) as caught:
        dask.compute(cube.residual.sel(layer=0), scheduler="processes", num_workers=1)
    assert [fault.where for fault in caught.value.faults] == ["residual/c.0.1.0.0"]


# cubes that are not complete


ROWS = [range(4), range(4, 8), range(8, 10)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "windows",
    [
        [0, 2],
        [1],
        [],
        *(pytest.param(windows, marks=pytest.mark.nightly) for windows in ([0, 1], [1, 2], [2])),
    ],
    ids=str,
)
def test_a_part_of_a_cube(
    run: Path,
    numbers: Synthetic,
    truth: xr.Dataset,
    written: dict[str, np.ndarray],
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

    size = LocalRanges.size

    def watched_size(ranges: LocalRanges, key: str) -> int:
        asked.add(key)
        return size(ranges, key)

    monkeypatch.setattr(StrictStore, "get", watched)
    monkeypatch.setattr(LocalRanges, "size", watched_size)
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
        expected = written[name][rows]
        np.testing.assert_array_equal(cube[name], expected, err_msg=name)
        assert cube[name].dtype == expected.dtype, name
    assert cube.has_mlp.values.tolist() == [False, True, True]
    assert cube.committed.all()
    assert [token_strings(cube, row) for row in rows] == [
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


@pytest.mark.slow
def test_a_part_that_is_damaged_is_an_error_all_the_same(run: Path, uncommit: Callable[[int], None]) -> None:
    uncommit(1)
    flip_bit(run / CUBE / "residual" / "c.0.2.0.0", 99)
    with pytest.raises(CorruptError, match=r"residual/c\.0\.2\.0\.0"):
        open_cube(run, partial=True).residual.load()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["n_tokens", "token_kind", "residual"])
def test_damage_to_a_part_names_nothing_that_is_not_there_yet(
    run: Path, uncommit: Callable[[int], None], name: str
) -> None:
    uncommit(1)
    axis = 1 + VARIABLES[name].sample_axis
    files = {int(file.name.split(".")[axis]): file for file in (run / CUBE / name).glob("c.*")}
    files[1].unlink()
    damaged = files[0]
    flip_bit(damaged, 4 * damaged.stat().st_size)
    with pytest.raises(CorruptError) as caught:
        open_cube(run, partial=True).load()
    assert [fault.where for fault in caught.value.faults] == [f"{name}/{damaged.name}"]


@pytest.mark.slow
def test_a_cube_that_grows_is_seen_whole_when_it_is_opened_again(tmp_path: Path, numbers: Synthetic) -> None:
    writer = numbers.create(tmp_path)
    for window, samples in enumerate((4, 8, 10)):
        writer.write(window, numbers.part(window))
        assert open_cube(tmp_path, partial=True).residual.load().sizes["sample"] == samples


# cubes that change while they are open


def test_a_cube_whose_files_are_renamed_while_it_is_opened(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer's partial files are listed, and then gone."""
    partial = run / CUBE / "residual" / "c.0.2.0.0.partial"
    partial.write_bytes(b"half")
    real = os.scandir

    @contextmanager
    def scandir(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with real(folder) as entries:
            listed = list(entries)
        partial.unlink(missing_ok=True)
        yield listed

    monkeypatch.setattr("actkit.store.cube_files.os.scandir", scandir)
    assert open_cube(run).sizes["sample"] == 10
    assert not partial.exists()


def test_a_cube_that_was_replaced_gives_no_numbers_of_the_other_one(run: Path) -> None:
    cube = open_cube(run)
    shutil.rmtree(run)
    write_cube(run, n_samples=10, n_tokens=6, hidden=8, window=2)
    with pytest.raises(CubeError, match="was replaced by another cube; open it again"):
        cube.residual.load()


def test_a_cube_that_was_removed(run: Path) -> None:
    cube = open_cube(run)
    shutil.rmtree(run)
    with pytest.raises(CubeError, match="can no longer be read: No such file"):
        cube.residual.load()


@pytest.mark.slow
def test_a_cube_that_was_moved_is_opened_by_its_new_name(run: Path) -> None:
    before = open_cube(run).load()
    run.rename(run.parent / "elsewhere")
    xr.testing.assert_equal(open_cube(run.parent / "elsewhere").load(), before)
