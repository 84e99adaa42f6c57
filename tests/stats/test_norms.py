"""layer_norms: labels, languages and token rules over a real cube."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.schema import TokenKind
from actkit.testing import write_cube


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(tmp_path_factory.mktemp("run"), n_samples=20, n_tokens=7, window=4)


def test_dims_and_variables(run: Path) -> None:
    norms = actkit.layer_norms(actkit.open_cube(run))
    expected = {"mean", "sample_mean", "median", "p5", "p95", "p99", "max", "low", "high", "n_tokens"}
    assert set(norms.data_vars) == expected
    assert norms["mean"].dims == ("language", "layer")
    assert norms.language.values.tolist() == ["english", "arabic"]
    assert norms.attrs["n_samples"] == 20


def test_numbers_are_those_of_content_tokens_of_the_language(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    norms = actkit.layer_norms(cube)
    for language in ("english", "arabic"):
        part = cube.isel(sample=np.flatnonzero(cube.language.values == language))
        lengths = np.linalg.norm(part.residual.values.astype(np.float64), axis=-1)
        content = lengths[:, part.token_kind.values == TokenKind.TEXT]
        np.testing.assert_allclose(norms["mean"].sel(language=language), content.mean(axis=1), rtol=1e-6)
        np.testing.assert_allclose(norms["max"].sel(language=language), content.max(axis=1), rtol=1e-6)


def test_position_0_is_left_out_where_the_cube_says_so(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    cube["token_kind"] = cube.token_kind.where(cube.token_kind != TokenKind.SPECIAL, TokenKind.TEXT)
    with_first = actkit.layer_norms(cube)
    without = actkit.layer_norms(cube.assign_attrs(first_is_content=False))
    assert (without["n_tokens"].sum("language")[0] + cube.sizes["sample"]) == with_first["n_tokens"].sum(
        "language"
    )[0]
    xr.testing.assert_allclose(without["mean"], actkit.layer_norms(actkit.open_cube(run))["mean"])


def test_lazy_until_asked_and_the_same_under_every_scheduler_and_chunking(run: Path) -> None:
    cube = actkit.open_cube(run)
    lazy = actkit.layer_norms(cube)
    assert dask.is_dask_collection(lazy)
    with dask.config.set(scheduler="synchronous"):
        one = lazy.compute()
    with dask.config.set(scheduler="threads"):
        other = actkit.layer_norms(cube.chunk(sample=3)).compute()
    xr.testing.assert_allclose(one, other, rtol=1e-12)


def test_partial_cubes_work(tmp_path: Path) -> None:
    run = write_cube(tmp_path, n_samples=12, window=4, windows=[0, 2])
    norms = actkit.layer_norms(actkit.open_cube(run, partial=True))
    assert norms.attrs["n_samples"] == 8
    assert np.isfinite(norms["mean"]).all()


def test_a_cube_without_norm_says_how_to_get_it(run: Path) -> None:
    with pytest.raises(KeyError, match="extract it again with `norm` among `save`"):
        actkit.layer_norms(actkit.open_cube(run).drop_vars("norm"))
