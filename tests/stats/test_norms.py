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
    expected |= {"n_outliers", "rms"}
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


# cubes of which only some positions or layers were kept


def test_generated_tokens_do_not_count(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    kinds = cube.token_kind.copy()
    last = cube.token == cube.n_tokens - 1
    generated = cube.assign_coords(
        token_kind=xr.where(last, TokenKind.GENERATED, kinds).transpose(*kinds.dims)
    )
    pads = cube.assign_coords(token_kind=xr.where(last, TokenKind.PAD, kinds).transpose(*kinds.dims))
    xr.testing.assert_equal(actkit.layer_norms(generated), actkit.layer_norms(pads))
    fewer = actkit.layer_norms(cube)["n_tokens"] - actkit.layer_norms(generated)["n_tokens"]
    # ten samples in each language, each of which has a last token
    assert (fewer == 10).all()


def test_where_a_kept_token_stood_decides_whether_it_was_the_first(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    cube["token_kind"] = cube.token_kind.where(cube.token_kind != TokenKind.SPECIAL, TokenKind.TEXT)
    cube = cube.assign_attrs(first_is_content=False)
    whole = actkit.layer_norms(cube)
    # the same tokens, kept without the first one
    kept = cube.isel(token=slice(1, None)).assign_coords(token=np.arange(cube.sizes["token"] - 1))
    stood = xr.where(kept.token_kind == TokenKind.PAD, -1, kept.token + 1).transpose("sample", "token")
    xr.testing.assert_allclose(actkit.layer_norms(kept.assign_coords(position=stood)), whole)
    # without `position`, another one would be taken for the first
    assert (actkit.layer_norms(kept)["n_tokens"] < whole["n_tokens"]).all()


def test_a_mean_counts_as_one_token(run: Path) -> None:
    cube = actkit.open_cube(run).load().isel(token=[1])
    cube["token_kind"] = xr.full_like(cube.token_kind, TokenKind.MEAN)
    cube = cube.assign_coords(token=[0], position=(("sample", "token"), np.full((20, 1), -1, np.int32)))
    for first_is_content in (True, False):
        norms = actkit.layer_norms(cube.assign_attrs(first_is_content=first_is_content))
        assert (norms["n_tokens"] == 10).all()
        for language in ("english", "arabic"):
            part = cube.norm.values[:, cube.language.values == language, 0].astype(np.float64)
            np.testing.assert_allclose(norms["mean"].sel(language=language), part.mean(axis=1), rtol=1e-6)


def test_layers_without_residual_have_no_norms_and_disturb_no_other(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    whole = actkit.layer_norms(cube)
    cube["norm"] = cube.norm.where(cube.layer != 1)
    norms = actkit.layer_norms(cube)
    assert norms["mean"].sel(layer=1).isnull().all()
    xr.testing.assert_equal(norms.sel(layer=[0, 2]), whole.sel(layer=[0, 2]))
