"""cka, adjacent_cka and language_cka: labels, matching, tokens and invariances."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError, MissingError
from actkit.stats.kernels.cka import Alignment, align, minibatch_cka
from actkit.testing import write_cube

RTOL = {"rtol": 1e-9, "atol": 1e-9}


def english(cube: xr.Dataset) -> np.ndarray:
    return np.flatnonzero(cube.language.values == "english")


def test_cka_is_computed_within_each_language(cube: xr.Dataset) -> None:
    result = actkit.cka(cube)
    assert dask.is_dask_collection(result)
    assert result["cka"].dims == ("language", "layer", "layer_2")
    assert result.language.values.tolist() == ["english", "arabic"]
    wanted = align(cube.pooled.isel(sample=english(cube)).values)
    own = result.sel(language="english")
    np.testing.assert_allclose(own.cka, wanted.cka, atol=1e-12)
    np.testing.assert_allclose(own.se, wanted.se, atol=1e-12)
    np.testing.assert_allclose(own.cka_biased, wanted.biased, atol=1e-12)
    assert result.n.values.tolist() == [60, 60]
    assert result.attrs["estimator"] == "debiased"


def test_adjacent_cka_is_the_superdiagonal(cube: xr.Dataset) -> None:
    whole = actkit.cka(cube, cluster="image_id").compute()
    result = actkit.adjacent_cka(cube, cluster="image_id").compute()
    assert result.layer.values.tolist() == [0, 1, 2, 3]
    for name in ("cka", "se", "cka_biased"):
        np.testing.assert_allclose(result[name], np.diagonal(whole[name], 1, 1, 2), atol=1e-12)
    np.testing.assert_allclose(result.high - result.low, 2 * 1.959964 * result.se, rtol=1e-6)
    assert (result.cka.isel(layer=-1) < 0.8).all()
    assert (result.cka.isel(layer=slice(0, 2)) > 0.95).all()
    assert {"cka_without_top", "cka_z_scored", "cka_unit_rms"} <= set(result)
    assert "cka_unit_rms" not in actkit.adjacent_cka(cube, variants=False)
    assert ((result.participation_ratio >= 1) & (result.participation_ratio <= 12)).all()
    assert ((result.top_share > 3 / 12) & (result.top_share <= 1)).all()


@pytest.mark.slow
@pytest.mark.parametrize("vectors", ["pooled", "last", "tokens"])
def test_chunks_order_and_scheduler_change_nothing(
    cube: xr.Dataset, shuffled: xr.Dataset, vectors: str
) -> None:
    with dask.config.set(scheduler="synchronous"):
        one = actkit.adjacent_cka(cube, vectors=vectors).compute()
    with dask.config.set(scheduler="threads"):
        two = actkit.adjacent_cka(cube.chunk(sample=7, layer=2), vectors=vectors).compute()
    xr.testing.assert_allclose(one, two, **RTOL)
    three = actkit.adjacent_cka(shuffled, vectors=vectors)
    assert not dask.is_dask_collection(three)
    xr.testing.assert_allclose(one, three, **RTOL)


def test_last_vectors_give_different_results(cube: xr.Dataset) -> None:
    wanted = align(cube["last"].isel(sample=english(cube)).values).cka
    result = actkit.cka(cube, vectors="last").sel(language="english").cka
    np.testing.assert_allclose(result, wanted, atol=1e-12)


@pytest.fixture(scope="module")
def of_tokens(cube: xr.Dataset) -> Alignment:
    """CKA of all content tokens in English, from one Gram matrix."""
    part = cube.isel(sample=english(cube))
    content = part.token_kind.values == 3
    return align(part.residual.values[:, content], np.repeat(np.arange(60), content.sum(axis=1)))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2000, 2**25])
def test_token_cka_equals_that_of_one_gram_matrix(
    cube: xr.Dataset, of_tokens: Alignment, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blockwise CKA equals that of one Gram matrix; its error is close to the jackknife's."""
    monkeypatch.setattr("actkit.stats.lazy_blocks.READ", at_once)
    result = actkit.adjacent_cka(cube, vectors="tokens").compute().sel(language="english")
    np.testing.assert_allclose(result.cka, np.diagonal(of_tokens.cka, 1), atol=1e-9)
    np.testing.assert_allclose(result.se, np.diagonal(of_tokens.se, 1), rtol=0.2)
    assert int(result.n) == (cube.token_kind.values[english(cube)] == 3).sum()


@pytest.mark.slow
def test_sampled_tokens_approximate_all_tokens(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    whole = actkit.cka(cube, vectors="tokens").compute()
    neighbours = actkit.adjacent_cka(cube, vectors="tokens").compute()
    np.testing.assert_allclose(np.diagonal(whole.cka, 1, 1, 2), neighbours.cka, atol=1e-9)
    some = actkit.cka(cube, vectors="tokens", max_sampled_tokens=80).compute()
    assert some.n.values.tolist() == [80, 80]
    assert (abs(some.cka - whole.cka) < 5 * some.se + 1e-9).all()
    xr.testing.assert_allclose(
        actkit.cka(shuffled, vectors="tokens", max_sampled_tokens=80).cka, some.cka, **RTOL
    )


def test_minibatches(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    result = actkit.cka(cube, batch=20, cluster=None).compute()
    part = cube.isel(sample=english(cube))
    wanted = minibatch_cka(part.pooled.values, batch=20)
    np.testing.assert_allclose(result.cka.sel(language="english"), wanted, atol=1e-12)
    assert "se" not in result
    xr.testing.assert_allclose(result, actkit.cka(shuffled, batch=20, cluster=None), **RTOL)


def test_two_cubes_are_matched_by_language_and_sample_id(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    other = shuffled.isel(layer=[1, 3], hidden=slice(0, 7)).isel(sample=slice(0, 90))
    result = actkit.cka(cube, other).compute()
    assert result["cka"].sizes == {"language": 2, "layer": 5, "layer_2": 2}
    assert result.layer_2.values.tolist() == [1, 3]
    assert int(result.n.sum()) == 90
    keys = set(other.sample_id.values[other.language.values == "english"].tolist())
    rows = [row for row in english(cube) if cube.sample_id.values[row] in keys]
    stacked = np.zeros((2, len(rows), 12))
    stacked[0], stacked[1, :, :7] = cube.pooled.values[4, rows], cube.pooled.values[1, rows][:, :7]
    wanted = align(stacked)
    own = result.sel(language="english", layer=4, layer_2=1)
    assert float(own.cka) == pytest.approx(wanted.cka[0, 1], abs=1e-12)
    assert float(own.se) == pytest.approx(wanted.se[0, 1], abs=1e-12)


def test_languages_at_the_same_layer(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    result = actkit.language_cka(cube).compute()
    assert result["cka"].dims == ("language", "language_2", "layer")
    two = np.flatnonzero(cube.language.values == "arabic")
    wanted = align(np.stack([cube.pooled.values[1, english(cube)], cube.pooled.values[1, two]]))
    own = result.sel(language="english", language_2="arabic", layer=1)
    assert float(own.cka) == pytest.approx(wanted.cka[0, 1], abs=1e-12)
    np.testing.assert_allclose(result.cka.sel(language="arabic", language_2="arabic"), 1)
    xr.testing.assert_allclose(result, actkit.language_cka(shuffled), **RTOL)
    assert float(result.cka.sel(language="english", language_2="arabic", layer=0)) > 0.9


def test_layers_that_were_not_captured_are_left_out(cube: xr.Dataset) -> None:
    part = cube.assign_coords(has_residual=("layer", [True, True, False, True, True]))
    part["pooled"] = part.pooled.where(part.has_residual)
    assert actkit.adjacent_cka(part).layer.values.tolist() == [0, 1, 3]
    assert np.isfinite(actkit.cka(part).cka).all()


def test_samples_without_content_are_left_out(cube: xr.Dataset) -> None:
    part = cube.compute().copy(deep=True)
    part.token_kind[5] = 1
    part.pooled[:, 5] = np.nan
    with pytest.warns(UserWarning, match="1 of 120 samples have no content token and are excluded$"):
        result = actkit.cka(part)
    assert result.n.values.tolist() == [60, 59]
    assert np.isfinite(result.cka).all()


@pytest.mark.slow
def test_incomplete_cube(tmp_path: Path) -> None:
    run = write_cube(tmp_path, n_samples=40, window=4, windows=[0, 1, 2, 5, 6])
    result = actkit.adjacent_cka(actkit.open_cube(run, partial=True)).compute()
    assert result.n.values.tolist() == [10, 10]
    assert np.isfinite(result.cka).all()
    nothing = write_cube(tmp_path / "nothing", windows=[])
    with pytest.raises(MissingError, match="no sample left"):
        actkit.adjacent_cka(actkit.open_cube(nothing, partial=True))


def test_missing_data_is_an_error(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="vectors: 'first' is not one of pooled, last"):
        actkit.cka(cube, vectors="first")
    with pytest.raises(
        InputError, match=r"cluster: the cube has no label `twin`; it has gender, image_id \(choose one"
    ):
        actkit.cka(cube, cluster="twin")
    with pytest.raises(KeyError, match="no `pooled`; extract it again with `pooled` among `save`"):
        actkit.cka(cube.drop_vars("pooled"))
    with pytest.raises(KeyError, match="one layer"):
        actkit.adjacent_cka(cube.isel(layer=[0]))
    with pytest.raises(InputError, match="tokens of two cubes cannot be matched"):
        actkit.cka(cube, cube, vectors="tokens")
    with pytest.raises(InputError, match="no sample has the same language and sample_id"):
        actkit.cka(cube, cube.assign_coords(sample_id=cube.sample_id.astype(object) + "!"))
    with pytest.raises(InputError, match="no sample has the same id in two languages"):
        actkit.language_cka(cube.isel(sample=english(cube)))
