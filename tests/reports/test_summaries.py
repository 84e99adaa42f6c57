"""What was computed is there the next time, as long as the cube is what it was."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit import open_cube
from actkit.errors import CubeError, MissingError
from actkit.reports import summaries
from actkit.reports.summaries import Summaries
from actkit.store.layout import CUBE
from actkit.testing import synthetic, write_cube, write_features

OPTIONS: dict[str, dict[str, Any]] = {
    "feature_differential": {"by": "gender", "permutations": 9, "splits": 0},
    "classification_probe": {"by": "gender"},
    "layer_norms": {"by": "gender"},
    "group_differential": {"by": "gender"},
    "direction_cosines": {"by": "gender"},
    "erasure_probe": {"by": "gender", "cluster": "image_id", "folds": 2},
    "transfer": {"by": "gender"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_layers=5, n_samples=40)


@pytest.mark.slow
def test_what_is_read_back_is_what_was_computed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = Summaries().get(open_cube(run), "layer_norms", by="gender", tokens="all")
    wanted = actkit.layer_norms(open_cube(run), by="gender", tokens="all").compute()
    xr.testing.assert_identical(computed, wanted)
    monkeypatch.setattr(summaries, "_STATISTICS", {})  # nothing can be computed now
    again = Summaries()
    for _ in range(2):
        read_back = again.get(open_cube(run), "layer_norms", by="gender", tokens="all")
        xr.testing.assert_identical(read_back, wanted)
        assert list(read_back.data_vars) == list(wanted.data_vars)
        assert read_back.language.dtype == object
    with pytest.raises(KeyError):
        again.get(open_cube(run), "layer_norms", by="gender")


@pytest.mark.slow
def test_a_cube_that_grew_is_computed_again(tmp_path: Path) -> None:
    numbers = synthetic(n_samples=12, window=4)
    (tmp_path / "run").mkdir()
    writer = numbers.create(tmp_path / "run")
    kept = Summaries()
    for window, samples in enumerate((4, 8, 12)):
        writer.write(window, numbers.part(window))
        assert (
            kept.get(open_cube(tmp_path / "run", partial=True), "layer_norms").attrs["n_samples"] == samples
        )


def mean_norm(kept: Summaries, run: Path) -> float:
    return float(kept.get(open_cube(run), "layer_norms", tokens="all")["mean"][0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("only_cube", [True, False])
def test_a_cube_imported_anew_is_computed_again(tmp_path: Path, only_cube: bool) -> None:
    kept, run, files = Summaries(), tmp_path / "run", tmp_path / "files"
    actkit.export(write_cube(tmp_path / "original"), files, format="npz")
    actkit.import_files(files, format="npz", out=run)
    before = mean_norm(kept, run)
    for path in files.rglob("chunk_*.npz"):
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, "activations": 2 * arrays["activations"]})
    shutil.rmtree(run / CUBE if only_cube else run)
    actkit.import_files(files, format="npz", out=tmp_path / "again")
    (tmp_path / "again" / CUBE if only_cube else tmp_path / "again").rename(run / CUBE if only_cube else run)
    assert mean_norm(kept, run) == pytest.approx(2 * before, rel=1e-5)


@pytest.mark.slow
def test_a_replaced_cube_is_not_taken_from_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, recomputed = Summaries(), xr.Dataset({"recomputed": 1})
    wanted = kept.get(open_cube(run), "layer_norms")
    assert kept.get(open_cube(run), "layer_norms") is wanted
    shutil.copytree(run / CUBE, run / "copy")
    shutil.rmtree(run / CUBE)
    (run / "copy").rename(run / CUBE)
    shutil.rmtree(run / "summaries")
    monkeypatch.setitem(summaries._STATISTICS, "layer_norms", lambda *_, **__: recomputed)
    assert "recomputed" in kept.get(open_cube(run), "layer_norms")


def test_a_cube_that_is_gone(run: Path) -> None:
    kept, cube = Summaries(), open_cube(run)
    kept.get(cube, "layer_norms")
    shutil.rmtree(run / CUBE)
    with pytest.raises(CubeError) as error:
        kept.get(cube, "layer_norms")
    assert str(error.value) == f"{run / CUBE}: can no longer be read: No such file or directory"


def kept(run: Path) -> Path:
    (file,) = (run / "summaries").iterdir()
    return file


@pytest.mark.slow
@pytest.mark.parametrize("trials", [200, pytest.param(5000, marks=pytest.mark.nightly)])
def test_no_flipped_bit_is_read_as_another_number(
    run: Path, monkeypatch: pytest.MonkeyPatch, trials: int
) -> None:
    cube = open_cube(run)
    Summaries().get(cube, "layer_norms", by="gender")
    content, recomputed = kept(run).read_bytes(), xr.Dataset({"recomputed": 1})
    monkeypatch.setitem(summaries._STATISTICS, "layer_norms", lambda *_, **__: recomputed)
    draw = random.Random(0)
    for _ in range(trials):
        damaged, bit = bytearray(content), draw.randrange(8 * len(content))
        damaged[bit // 8] ^= 1 << bit % 8
        kept(run).write_bytes(damaged)
        assert "recomputed" in Summaries().get(cube, "layer_norms", by="gender")
    for length in draw.sample(range(len(content)), 50):
        kept(run).write_bytes(content[:length])
        assert "recomputed" in Summaries().get(cube, "layer_norms", by="gender")
    kept(run).write_bytes(content)
    assert "mean" in Summaries().get(cube, "layer_norms", by="gender")


@pytest.mark.slow
def test_what_is_missing_is_computed_again(run: Path) -> None:
    wanted = Summaries().get(open_cube(run), "cka")
    kept(run).unlink()
    xr.testing.assert_identical(Summaries().get(open_cube(run), "cka"), wanted)
    shutil.rmtree(run / "summaries")
    xr.testing.assert_identical(Summaries().get(open_cube(run), "cka"), wanted)


@pytest.mark.slow
def test_what_was_kept_of_another_cube_or_statistic_is_not_shown(run: Path, tmp_path: Path) -> None:
    other = write_cube(tmp_path / "other", n_layers=5, n_samples=40, n_tokens=6)
    wanted = Summaries().get(open_cube(run), "layer_norms")
    Summaries().get(open_cube(other), "layer_norms")
    shutil.copy(kept(other), kept(run))
    xr.testing.assert_identical(Summaries().get(open_cube(run), "layer_norms"), wanted)
    Summaries().get(open_cube(run), "layer_norms", by="gender")
    first, second = sorted((run / "summaries").iterdir())
    shutil.copy(first, second)
    xr.testing.assert_identical(Summaries().get(open_cube(run), "layer_norms"), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", sorted({*summaries._STATISTICS} - {"regression_probe"}))  # of numbers
def test_every_statistic_is_read_back_as_it_was(
    statistic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = write_features if statistic == "feature_differential" else write_cube
    run = write(tmp_path / "run", n_layers=5, n_samples=40)
    options = OPTIONS.get(statistic, {})
    computed = Summaries().get(open_cube(run), statistic, **options)
    monkeypatch.setattr(summaries, "_STATISTICS", {})
    read_back = Summaries().get(open_cube(run), statistic, **options)
    xr.testing.assert_identical(read_back, computed)
    assert {name: values.dtype for name, values in read_back.variables.items()} == {
        name: values.dtype for name, values in computed.variables.items()
    }


def linked_folder(run: Path, outside: Path) -> None:
    shutil.move(run / "summaries", outside / "summaries")
    (run / "summaries").symlink_to(outside / "summaries")


def linked_file(run: Path, outside: Path) -> None:
    file = kept(run)
    shutil.move(file, outside / file.name)
    file.symlink_to(outside / file.name)


def fifo(run: Path, outside: Path) -> None:
    file = kept(run)
    file.unlink()
    os.mkfifo(file)


@pytest.mark.slow
@pytest.mark.parametrize("make", [linked_folder, linked_file, fifo])
def test_nothing_is_read_or_written_through_a_link(
    run: Path, tmp_path: Path, make: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    Summaries().get(open_cube(run), "layer_norms")
    outside = tmp_path / "outside"
    outside.mkdir()
    make(run, outside)
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    recomputed = xr.Dataset({"recomputed": 1})
    monkeypatch.setitem(summaries._STATISTICS, "layer_norms", lambda *_, **__: recomputed)
    assert "recomputed" in Summaries().get(open_cube(run), "layer_norms")
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_a_folder_that_may_only_be_read_keeps_nothing(run: Path) -> None:
    (run / "summaries").write_text("a file is in the way", encoding="utf-8")
    assert Summaries().get(open_cube(run), "cka").sizes["layer"] == 5


@pytest.mark.slow
def test_errors_are_those_of_the_statistic(run: Path) -> None:
    with pytest.raises(MissingError, match="no `mlp`"):
        Summaries().get(open_cube(run), "layer_norms", component="mlp")
