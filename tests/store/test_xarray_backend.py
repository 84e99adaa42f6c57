"""xarray's engine `actkit` opens what `open_cube` opens, and refuses what it refuses."""

import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit import open_cube
from actkit.errors import CorruptError, CubeError, IncompleteError
from actkit.store.layout import CUBE
from actkit.store.xarray_backend import CubeBackend
from actkit.testing import flip_bit, write_cube

PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture(scope="module", autouse=True)
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Install the entry points of `pyproject.toml`, which an older installation lacks."""
    folder = tmp_path_factory.mktemp("installed")
    info = folder / "actkit_engine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: actkit-engine\nVersion: 1\n")
    points = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]["xarray.backends"]
    lines = [f"{name} = {value}" for name, value in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[xarray.backends]", *lines]))
    sys.path.insert(0, str(folder))
    xr.backends.plugins.refresh_engines()
    yield
    sys.path.remove(str(folder))
    xr.backends.plugins.refresh_engines()


@pytest.mark.parametrize("chunks", [None, {}], ids=["without dask", "dask"])
def test_values_are_those_of_open_cube(run: Path, chunks: dict[str, int] | None) -> None:
    opened = xr.open_dataset(run, engine="actkit", chunks=chunks)
    assert dask.is_dask_collection(opened.residual) == (chunks is not None)
    if chunks is not None:
        assert opened.residual.chunks == open_cube(run).residual.chunks
    xr.testing.assert_identical(opened.load(), open_cube(run).load())


def test_selections_without_dask(run: Path) -> None:
    opened, cube = xr.open_dataset(run, engine="actkit", cache=False), open_cube(run)
    for part in (
        {"sample": [7, 1, 1], "token": [0, 2]},
        {"layer": 1, "sample": slice(None, None, -3), "hidden": slice(2, 5)},
        {"sample": np.array([], dtype=int)},
        {"token": xr.DataArray([2, 0, 1], dims="point"), "sample": xr.DataArray([5, 0, 9], dims="point")},
    ):
        xr.testing.assert_identical(opened.isel(part).load(), cube.isel(part).load())


def test_statistics_accept_it(run: Path) -> None:
    opened = xr.open_dataset(run, engine="actkit")
    xr.testing.assert_allclose(actkit.layer_norms(opened).load(), actkit.layer_norms(run).load())


def test_variables_can_be_dropped(run: Path) -> None:
    opened = xr.open_dataset(run, engine="actkit", drop_variables=["mlp", "gender", "nothing"])
    assert "mlp" not in opened
    assert "gender" not in opened.coords
    assert "mlp" not in xr.open_dataset(run, engine="actkit", drop_variables="mlp")


def test_a_run_folder_needs_no_engine(run: Path, tmp_path: Path) -> None:
    assert "residual" in xr.open_dataset(str(run))
    assert CubeBackend().guess_can_open(run)
    assert not CubeBackend().guess_can_open(run / CUBE)
    assert not CubeBackend().guess_can_open(tmp_path)
    assert not CubeBackend().guess_can_open(b"bytes")


def test_the_groups_are_a_tree(run: Path) -> None:
    tree = xr.open_datatree(run, engine="actkit")
    assert list(tree.children) == ["language_model", "vision"]
    xr.testing.assert_identical(tree["language_model"].to_dataset().load(), open_cube(run).load())
    xr.testing.assert_identical(tree["vision"].to_dataset().load(), open_cube(run, group="vision").load())
    assert tree.attrs["model"] == "synthetic"
    vision = xr.open_dataset(run, engine="actkit", group="/vision")
    xr.testing.assert_identical(vision.load(), open_cube(run, group="vision").load())


def test_a_cube_without_groups_is_a_tree_too(tmp_path: Path) -> None:
    tree = xr.open_datatree(write_cube(tmp_path), engine="actkit", chunks={})
    assert list(tree.children) == ["language_model"]
    assert dask.is_dask_collection(tree["language_model"].residual)


def test_what_open_cube_refuses(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CubeError, match="holds no cube"):
        xr.open_dataset(tmp_path, engine="actkit")
    with pytest.raises(CubeError, match="has no group `audio`"):
        xr.open_dataset(run, engine="actkit", group="audio")
    opened = xr.open_dataset(run, engine="actkit")
    flip_bit(run / CUBE / "residual" / "c.0.1.0.0", 99)
    with pytest.raises(CorruptError, match=r"residual/c\.0\.1\.0\.0"):
        opened.residual.load()
    (run / CUBE / "pooled" / "c.0.0.0").unlink()
    with pytest.raises(CorruptError, match=r"pooled/c\.0\.0\.0: is missing"):
        xr.open_dataset(run, engine="actkit")
    shutil.rmtree(run)
    with pytest.raises(CubeError, match="can no longer be read"):
        opened.pooled.load()


def test_a_partial_cube(run: Path, uncommit: object) -> None:
    assert callable(uncommit)
    uncommit(1)
    with pytest.raises(IncompleteError):
        xr.open_dataset(run, engine="actkit")
    partial = xr.open_dataset(run, engine="actkit", partial=True)
    xr.testing.assert_identical(partial.load(), open_cube(run, partial=True).load())


def test_a_copy(run: Path, tmp_path: Path) -> None:
    cube = open_cube(run)[["pooled", "norm"]].isel(layer=[0, 2])
    cube.drop_vars(["token_text", "generated"]).to_zarr(tmp_path / "copy.zarr", consolidated=False)
    copy = xr.open_dataset(tmp_path / "copy.zarr", engine="actkit")
    assert not dask.is_dask_collection(copy.pooled)
    np.testing.assert_array_equal(copy.pooled, cube.pooled)
    assert list(xr.open_datatree(tmp_path / "copy.zarr", engine="actkit").children) == ["language_model"]
