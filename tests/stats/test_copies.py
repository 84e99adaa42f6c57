"""Cubes outside their run folder (written by xarray, concatenated, pickled) give the same statistics."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.canonical import as_cube
from actkit.errors import InputError
from actkit.schema import TokenKind
from actkit.testing import write_cube
from tests.features import autoencoders
from tests.stats.test_selections import CALLS, OF_FEATURES, assert_same, marked, outcome

LAYERS = [0, 1, 2, 3]
OF_STATES = [name for name in CALLS if name not in OF_FEATURES]
Copy = Callable[[xr.Dataset, Path], xr.Dataset]


def by_xarray(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    cube.to_zarr(folder / "copy.zarr")
    return xr.open_zarr(folder / "copy.zarr")


def by_actkit(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    cube.to_zarr(folder / "copy.zarr", consolidated=False)
    return actkit.open_cube(folder / "copy.zarr")


def netcdf(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    cube.to_netcdf(folder / "copy.nc", engine="h5netcdf")
    return xr.open_dataset(folder / "copy.nc", engine="h5netcdf", chunks={})


def netcdf3(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    cube.to_netcdf(folder / "copy.nc", engine="scipy")
    return xr.open_dataset(folder / "copy.nc", engine="scipy")


def pickled(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    opened: xr.Dataset = pickle.loads(pickle.dumps(cube))
    return opened


def joined(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    halves = [cube.isel(sample=slice(0, 50)), cube.isel(sample=slice(50, None))]
    return xr.concat(halves, "sample", combine_attrs="override")


def original(cube: xr.Dataset, folder: Path) -> xr.Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", xr.SerializationWarning)
        return xr.open_zarr(cube.encoding["source"], consolidated=False).sel(layer=LAYERS)


COPIES: dict[str, Copy] = {
    "xr.open_zarr": by_xarray,
    "actkit.open_cube": by_actkit,
    "NetCDF 4": netcdf,
    "NetCDF 3": netcdf3,
    "pickle": pickled,
    "xr.concat": joined,
    "xr.open_zarr of the run": original,
}


@pytest.fixture(scope="module")
def part(planted_run: Path) -> xr.Dataset:
    return actkit.open_cube(planted_run).sel(layer=LAYERS)


def copied(name: str, cube: xr.Dataset, folder: Path) -> xr.Dataset:
    with warnings.catch_warnings():
        # token texts are lazy and have to be loaded; consolidated metadata is xarray's default
        warnings.simplefilter("ignore", xr.SerializationWarning)
        warnings.filterwarnings("ignore", "Consolidated metadata")
        return COPIES[name](cube, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", COPIES)
def test_the_canonical_form_of_a_copy_is_that_of_the_cube(
    part: xr.Dataset, name: str, tmp_path: Path
) -> None:
    result, wanted = as_cube(copied(name, part, tmp_path)).load(), as_cube(part).load()
    assert set(result.variables) == set(wanted.variables)
    for variable in wanted.variables:
        assert result[variable].dtype.kind == wanted[variable].dtype.kind, variable
        assert result[variable].dims == wanted[variable].dims, variable
    xr.testing.assert_equal(result, wanted)


@pytest.fixture(scope="module")
def copy(part: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return copied("xr.open_zarr", part, tmp_path_factory.mktemp("copy"))


@pytest.fixture(scope="module")
def features_run(planted_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The active features of the same samples."""
    hidden = actkit.open_cube(planted_run).sizes["hidden"]
    saes = autoencoders.set_of({layer: autoencoders.random(hidden, layer=layer) for layer in LAYERS})
    out = tmp_path_factory.mktemp("features") / "run"
    actkit.encode(planted_run, saes, out=out)
    return out


@pytest.fixture(scope="module")
def copy_of_features(features_run: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return copied("xr.open_zarr", actkit.open_cube(features_run), tmp_path_factory.mktemp("copy"))


@marked(OF_STATES[::2])
def test_statistics_of_a_copy(part: xr.Dataset, copy: xr.Dataset, name: str) -> None:
    wanted = outcome(name, part)
    assert not isinstance(wanted, Exception)
    assert_same(outcome(name, copy), wanted)


@marked(OF_STATES[1::2])
def test_statistics_of_a_path(planted_run: Path, name: str) -> None:
    wanted = outcome(name, actkit.open_cube(planted_run))
    assert not isinstance(wanted, Exception)
    assert_same(outcome(name, planted_run), wanted)
    if name in ("layer_norms", "token_strings"):
        assert_same(outcome(name, str(planted_run / "cube.zarr")), wanted)


@marked(OF_FEATURES)
def test_statistics_of_copied_features(features_run: Path, copy_of_features: xr.Dataset, name: str) -> None:
    wanted = outcome(name, actkit.open_cube(features_run))
    assert not isinstance(wanted, Exception)
    assert_same(outcome(name, copy_of_features), wanted)
    assert_same(outcome(name, features_run), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["path", "cube", "copy"])
def test_exports_of_a_path_a_cube_or_a_copy(
    planted_run: Path, copy: xr.Dataset, form: str, tmp_path: Path
) -> None:
    given = {"path": planted_run, "cube": actkit.open_cube(planted_run), "copy": copy}[form]
    wanted = actkit.open_cube(planted_run).residual.sel(layer=2)
    actkit.export(given, tmp_path / "npz", format="npz", layers="2")
    chunks = [np.load(path) for path in sorted((tmp_path / "npz").rglob("*.npz"))]
    result = np.concatenate([chunk["activations"] for chunk in chunks])
    np.testing.assert_array_equal(result, wanted.fillna(0))


@pytest.mark.slow
def test_the_report_of_a_copy(copy: xr.Dataset, tmp_path: Path) -> None:
    page = actkit.report(copy, out=tmp_path / "report.html").read_text()
    assert page.count("<h2") > 5


def test_a_cube_is_not_verified_but_its_folder_is(planted_run: Path) -> None:
    with pytest.raises(InputError, match=f"give the run folder; this was opened from {planted_run}"):
        actkit.verify(actkit.open_cube(planted_run))  # type: ignore[arg-type]


@pytest.mark.slow
def test_cubes_of_different_lengths_are_joined(tmp_path: Path) -> None:
    cubes = [actkit.open_cube(write_cube(tmp_path / f"{n}", n_tokens=n, seed=n)) for n in (5, 8)]
    count = cubes[0].sizes["sample"]
    both = xr.concat(cubes, "sample", combine_attrs="override", join="outer")
    with pytest.raises(InputError, match="number them"):
        actkit.token_strings(both, 0)
    both = both.assign_coords(sample=range(2 * count))
    for at in range(2 * count):
        assert actkit.token_strings(both, at) == actkit.token_strings(cubes[at // count], at % count)
    kinds = as_cube(both).token_kind
    assert kinds.dtype == np.int8
    assert (kinds[:count, 5:] == TokenKind.PAD).all()
    apart = [actkit.layer_norms(cube, resamples=9) for cube in cubes]
    total = sum(norms["mean"] * norms["n_tokens"] for norms in apart)
    wanted = total / sum(norms["n_tokens"] for norms in apart)
    xr.testing.assert_allclose(actkit.layer_norms(both, resamples=9)["mean"], wanted)
