"""A cube of many samples opens as fast as a small one: what it knows of them is read when it is used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from actkit import open_cube
from actkit.errors import CorruptError
from actkit.store import reader
from actkit.store.layout import CUBE
from actkit.testing import flip_bit, write_cube


@pytest.fixture(autouse=True)
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the cubes of these tests count as large."""
    monkeypatch.setattr(reader, "EAGER_SAMPLES", 3)


def is_loaded(cube: xr.Dataset, name: str) -> bool:
    return bool(cube.variables[name]._in_memory)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_samples=10)


@pytest.mark.slow
def test_the_same_as_a_small_cube(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = open_cube(run)
    monkeypatch.undo()
    eager = open_cube(run)
    for name in ("text", "language", "gender", "sample_id", "n_tokens", "truncated", "batch"):
        assert not is_loaded(lazy, name)
        assert is_loaded(eager, name)
    xr.testing.assert_identical(lazy.load(), eager.load())


def test_what_was_read_is_kept(run: Path) -> None:
    cube = open_cube(run)
    assert cube.text.values[3] == "text 3 نص"
    assert is_loaded(cube, "text")
    assert not is_loaded(cube, "language")


USES: dict[str, Any] = {
    "where": lambda cube: cube.where(cube.gender == "female", drop=True).sample.values.tolist(),
    "groupby": lambda cube: cube.norm.groupby("language").mean(...).values.tolist(),
    "isel": lambda cube: cube.isel(sample=[7, 2]).text.values.tolist(),
    "slice": lambda cube: cube.isel(sample=slice(8, 2, -3)).sample_id.values.tolist(),
    "one": lambda cube: cube.sel(sample=5).text.item(),
    "pandas": lambda cube: cube.n_tokens.to_series().tolist(),
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_it_is_used_like_any_other(run: Path, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    result = USES[use](open_cube(run))
    monkeypatch.undo()
    np.testing.assert_equal(result, USES[use](open_cube(run)))


@pytest.mark.slow
def test_committed_samples_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_cube(tmp_path / "partial", n_samples=10, windows=[0, 2])
    lazy = open_cube(run, partial=True)
    assert lazy.sample.values.tolist() == [0, 1, 2, 3, 8, 9]
    monkeypatch.undo()
    xr.testing.assert_identical(lazy.load(), open_cube(run, partial=True).load())


def test_damage_is_found_when_it_is_read(run: Path) -> None:
    flip_bit(run / CUBE / "text" / "c.0", 40)
    cube = open_cube(run)
    assert cube.gender.values[0] == "male"
    with pytest.raises(CorruptError, match=r"text/c\.0: is truncated or corrupted"):
        cube.text.load()
