"""What was computed is there the next time, as long as the cube is what it was."""

from pathlib import Path

import pytest
import xarray as xr

import actkit
from actkit import open_cube
from actkit.errors import MissingError
from actkit.testing import synthetic, write_cube
from actkit.widgets import summaries
from actkit.widgets.summaries import Summaries


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_layers=5, n_samples=40)


def test_what_is_read_back_is_what_was_computed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = Summaries().get(open_cube(run), "layer_norms", by="gender", tokens="all")
    wanted = actkit.layer_norms(open_cube(run), by="gender", tokens="all").compute()
    xr.testing.assert_identical(computed, wanted)
    monkeypatch.setattr(summaries, "_STATISTICS", {})  # nothing can be computed now
    again = Summaries()
    for _ in range(2):
        found = again.get(open_cube(run), "layer_norms", by="gender", tokens="all")
        xr.testing.assert_identical(found, wanted)
        assert list(found.data_vars) == list(wanted.data_vars)
        assert found.language.dtype == object
    with pytest.raises(KeyError):
        again.get(open_cube(run), "layer_norms", by="gender")


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


def test_what_was_kept_and_is_damaged_is_computed_again(run: Path) -> None:
    wanted = Summaries().get(open_cube(run), "cka")
    (folder,) = (run / "summaries").iterdir()
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        file.write_bytes(b"{")
    xr.testing.assert_identical(Summaries().get(open_cube(run), "cka"), wanted)
    xr.testing.assert_identical(Summaries().get(open_cube(run), "cka"), wanted)


def test_a_folder_that_may_only_be_read_keeps_nothing(run: Path) -> None:
    (run / "summaries").write_text("a file is in the way", encoding="utf-8")
    assert Summaries().get(open_cube(run), "cka").sizes["layer"] == 5


def test_errors_are_those_of_the_statistic(run: Path) -> None:
    with pytest.raises(MissingError, match="no `mlp`"):
        Summaries().get(open_cube(run), "layer_norms", component="mlp")
