"""layer_norms: labels, languages and token rules on a real cube."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.schema import TokenKind
from actkit.testing import synthetic, write_cube


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(tmp_path_factory.mktemp("run"), n_samples=20, n_tokens=7, window=4)


@pytest.mark.slow
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


@pytest.mark.slow
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
    # ten samples in each language, each with a last token
    assert (fewer == 10).all()


def test_position_identifies_the_first_token_in_a_reduced_cube(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    cube["token_kind"] = cube.token_kind.where(cube.token_kind != TokenKind.SPECIAL, TokenKind.TEXT)
    cube = cube.assign_attrs(first_is_content=False)
    whole = actkit.layer_norms(cube)
    # the same tokens, extracted without the first one
    kept = cube.isel(token=slice(1, None)).assign_coords(token=np.arange(cube.sizes["token"] - 1))
    stood = xr.where(kept.token_kind == TokenKind.PAD, -1, kept.token + 1).transpose("sample", "token")
    xr.testing.assert_allclose(actkit.layer_norms(kept.assign_coords(position=stood)), whole)
    # without `position`, another token would be taken for the first
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
    cube = cube.assign_coords(has_residual=("layer", [True, False, True]))
    norms = actkit.layer_norms(cube)
    assert norms["mean"].sel(layer=1).isnull().all()
    xr.testing.assert_equal(norms.sel(layer=[0, 2]), whole.sel(layer=[0, 2]))


# groups, kinds of tokens, components, updates, massive activations


@pytest.mark.slow
def test_norms_by_group(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    result = actkit.layer_norms(cube, by="gender").compute()
    assert result["mean"].dims == ("language", "gender", "layer")
    assert result.gender.values.tolist() == ["female", "male"]
    part = cube.where((cube.gender == "male") & (cube.language == "arabic"), drop=True)
    alone = actkit.layer_norms(part).compute()
    for name in ("mean", "median", "max", "n_tokens"):
        np.testing.assert_allclose(result[name].sel(language="arabic", gender="male"), alone[name][0])
    with pytest.raises(InputError, match="by: the cube has no label `colour`"):
        actkit.layer_norms(cube, by="colour")
    # intervals too, because resampling orders samples by id
    xr.testing.assert_allclose(actkit.layer_norms(shuffled, by="gender"), result, rtol=1e-9)


@pytest.mark.parametrize("tokens", ["special", "first", "all", "text"])
def test_other_tokens_apart(cube: xr.Dataset, tokens: str) -> None:
    result = actkit.layer_norms(cube, tokens=tokens)["n_tokens"].sum("language").values[0]
    kinds, real = cube.token_kind.values, np.arange(6) < cube.n_tokens.values[:, None]
    counts = {"special": (kinds == 1), "first": real & (np.arange(6) == 0), "all": real, "text": kinds == 3}
    assert result == counts[tokens].sum()
    with pytest.raises(InputError, match="tokens: 'sinks' is not a kind of token"):
        actkit.layer_norms(cube, tokens="sinks")


def test_rms_and_outliers(cube: xr.Dataset) -> None:
    part = cube.compute()
    part["norm"] = part.norm.copy()
    part.norm[1, 0, 2] = 1e4
    result = actkit.layer_norms(part)
    np.testing.assert_allclose(result["rms"] * np.sqrt(12), result["mean"])
    assert result["n_outliers"].sel(language="english").values.tolist() == [0, 1, 0, 0, 0]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    made = synthetic(n_layers=4, n_samples=12, everything=True, hidden=6)
    run = tmp_path_factory.mktemp("everything")
    writer = made.create(run)
    for window in range(made.plan.n_windows):
        writer.write(window, made.part(window))
    return actkit.open_cube(run)


@pytest.mark.slow
def test_norms_of_components(everything: xr.Dataset) -> None:
    residual = actkit.layer_norms(everything)
    attention = actkit.layer_norms(everything, component="attention")
    np.testing.assert_allclose(attention["mean"], residual["mean"] / 2, rtol=1e-6)
    # the mlp of one layer was not captured
    mlp = actkit.layer_norms(everything, component="mlp")
    assert mlp.layer.values.tolist() == [1, 2, 3]
    np.testing.assert_allclose(mlp["mean"], residual["mean"].sel(layer=[1, 2, 3]) / 3, rtol=1e-6)
    with pytest.raises(
        KeyError, match="no `attention`; extract it again with `attention` among `components`"
    ):
        actkit.layer_norms(everything.drop_dims("k").drop_vars("attention"), component="attention")


@pytest.mark.slow
def test_updates_are_those_of_numpy(cube: xr.Dataset) -> None:
    result = actkit.layer_updates(cube)
    assert dask.is_dask_collection(result)
    own = result.sel(language="arabic").compute()
    rows = cube.language.values == "arabic"
    content = cube.token_kind.values[rows] == TokenKind.TEXT
    tokens = cube.residual.values[:, rows][:, content].astype(np.float64)
    before, after = tokens[:-1], tokens[1:]
    update = np.linalg.norm(after - before, axis=2)
    sizes = np.linalg.norm(before, axis=2), np.linalg.norm(after, axis=2)
    np.testing.assert_allclose(own.update_norm, update.mean(axis=1))
    np.testing.assert_allclose(own.relative, (update / sizes[0]).mean(axis=1))
    np.testing.assert_allclose(own.cosine, ((before * after).sum(axis=2) / sizes[0] / sizes[1]).mean(axis=1))
    assert ((own.update_norm_low < own.update_norm) & (own.update_norm < own.update_norm_high)).all()
    assert own.layer.values.tolist() == [0, 1, 2, 3]
    by = actkit.layer_updates(cube, by="gender")
    assert by.cosine.dims == ("language", "gender", "layer")


def test_massive_activations_are_found_where_they_are(cube: xr.Dataset) -> None:
    part = cube.compute().copy(deep=True)
    sample = int(np.flatnonzero(part.language.values == "arabic")[3])
    part.residual[2, sample, 1, 7] = -5000
    result = actkit.massive_activations(part).sel(language="arabic", layer=2)
    assert (int(result.at_sample), int(result.at_token), int(result.at_hidden)) == (sample, 1, 7)
    assert float(result["max"]) == 5000
    rows = np.flatnonzero(part.language.values == "arabic")
    medians = [
        np.median(np.abs(part.residual.values[2, row][part.token_kind.values[row] == TokenKind.TEXT]))
        for row in rows
    ]
    assert float(result["median"]) == pytest.approx(np.median(medians))
    assert float(result.ratio) == pytest.approx(5000 / np.median(medians))
    assert dask.is_dask_collection(actkit.massive_activations(cube))


def test_massive_activations_are_those_of_the_published_definition(cube: xr.Dataset) -> None:
    part = cube.compute().copy(deep=True)
    first, second = np.flatnonzero(part.language.values == "arabic")[[3, 5]]
    part.residual.values[...] = np.sign(part.residual.values + 1e-9)  # every median is 1
    part.residual[1, first, 1, :3] = [1001.0, -1001.0, 999.0]
    part.residual[1, second, 2, 5] = 5000
    part.residual[2, second] *= 0.01
    part.residual[2, second, 2, 5] = 99  # 9,900 times the median, but not above 100
    result = actkit.massive_activations(part).sel(language="arabic")
    assert result.n_massive.values.tolist() == [0, 3, 0, 0, 0]
    assert result.n_massive_samples.values.tolist() == [0, 2, 0, 0, 0]
    assert actkit.massive_activations(part).sel(language="english").n_massive.values.sum() == 0


def test_patches_of_the_vision_tower(everything: xr.Dataset) -> None:
    assert everything.sizes["layer"] == 4
    group = actkit.open_cube(everything.encoding["source"], group="vision")
    norms = actkit.layer_norms(group)
    assert norms.attrs["tokens"] == "patches"
    assert norms["n_tokens"].values.tolist() == [[42.0, 42.0], [42.0, 42.0]]
    assert actkit.cka(group).cka.shape == (2, 2, 2)


def test_numbers_do_not_depend_on_how_many_samples_are_read_at_once(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = actkit.open_cube(run)
    functions = (actkit.layer_updates, actkit.massive_activations)
    wanted = [function(cube.load()) for function in functions]
    monkeypatch.setattr("actkit.stats.lazy_blocks.READ", 3 * 4 * 7 * cube.sizes["hidden"])
    for function, one in zip(functions, wanted, strict=True):
        xr.testing.assert_allclose(function(cube).compute(), one, rtol=1e-12)
        xr.testing.assert_allclose(function(cube.chunk(sample=2)).compute(), one, rtol=1e-12)
