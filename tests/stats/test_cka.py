"""cka, adjacent_cka and language_cka: labels, matching, tokens, and what must not change a number."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.stats.kernels.cka import align, minibatch_cka
from actkit.testing import write_cube

RTOL = {"rtol": 1e-9, "atol": 1e-9}


def english(cube: xr.Dataset) -> np.ndarray:
    return np.flatnonzero(cube.language.values == "english")


def test_each_language_alone_layer_by_layer(cube: xr.Dataset) -> None:
    found = actkit.cka(cube)
    assert dask.is_dask_collection(found)
    assert found["cka"].dims == ("language", "layer", "layer_2")
    assert found.language.values.tolist() == ["english", "arabic"]
    wanted = align(cube.pooled.isel(sample=english(cube)).values)
    own = found.sel(language="english")
    np.testing.assert_allclose(own.cka, wanted.cka, atol=1e-12)
    np.testing.assert_allclose(own.se, wanted.se, atol=1e-12)
    np.testing.assert_allclose(own.cka_biased, wanted.biased, atol=1e-12)
    assert found.n.values.tolist() == [60, 60]
    assert found.attrs["estimator"] == "debiased"


def test_neighbours_are_the_diagonal_beside_the_main_one(cube: xr.Dataset) -> None:
    whole = actkit.cka(cube, pairs="image_id").compute()
    found = actkit.adjacent_cka(cube, pairs="image_id").compute()
    assert found.layer.values.tolist() == [0, 1, 2, 3]
    for name in ("cka", "se", "cka_biased"):
        np.testing.assert_allclose(found[name], np.diagonal(whole[name], 1, 1, 2), atol=1e-12)
    np.testing.assert_allclose(found.high - found.low, 2 * 1.959964 * found.se, rtol=1e-6)
    assert (found.cka.isel(layer=-1) < 0.8).all()
    assert (found.cka.isel(layer=slice(0, 2)) > 0.95).all()
    assert {"cka_without_top", "cka_z_scored", "cka_unit_rms"} <= set(found)
    assert "cka_unit_rms" not in actkit.adjacent_cka(cube, variants=False)
    assert ((found.participation_ratio >= 1) & (found.participation_ratio <= 12)).all()
    assert ((found.top_share > 3 / 12) & (found.top_share <= 1)).all()


@pytest.mark.parametrize("values", ["pooled", "last", "tokens"])
def test_chunks_order_and_scheduler_change_nothing(
    cube: xr.Dataset, shuffled: xr.Dataset, values: str
) -> None:
    with dask.config.set(scheduler="synchronous"):
        one = actkit.adjacent_cka(cube, values=values).compute()
    with dask.config.set(scheduler="threads"):
        two = actkit.adjacent_cka(cube.chunk(sample=7, layer=2), values=values).compute()
    xr.testing.assert_allclose(one, two, **RTOL)
    three = actkit.adjacent_cka(shuffled, values=values)
    assert not dask.is_dask_collection(three)
    xr.testing.assert_allclose(one, three, **RTOL)


def test_last_is_another_number(cube: xr.Dataset) -> None:
    wanted = align(cube["last"].isel(sample=english(cube)).values).cka
    found = actkit.cka(cube, values="last").sel(language="english").cka
    np.testing.assert_allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 2000, 2**25])
def test_all_tokens_are_those_of_one_gram_matrix(
    cube: xr.Dataset, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block after block, it is the same number; its error is close to the jackknife's."""
    monkeypatch.setattr("actkit.stats.blocks.READ", at_once)
    found = actkit.adjacent_cka(cube, values="tokens").compute().sel(language="english")
    part = cube.isel(sample=english(cube))
    content = part.token_kind.values == 3
    wanted = align(part.residual.values[:, content], np.repeat(np.arange(60), content.sum(axis=1)))
    np.testing.assert_allclose(found.cka, np.diagonal(wanted.cka, 1), atol=1e-9)
    np.testing.assert_allclose(found.se, np.diagonal(wanted.se, 1), rtol=0.2)
    assert int(found.n) == content.sum()


def test_some_tokens_stand_for_all_between_any_layers(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    whole = actkit.cka(cube, values="tokens").compute()
    neighbours = actkit.adjacent_cka(cube, values="tokens").compute()
    np.testing.assert_allclose(np.diagonal(whole.cka, 1, 1, 2), neighbours.cka, atol=1e-9)
    some = actkit.cka(cube, values="tokens", most_tokens=80).compute()
    assert some.n.values.tolist() == [80, 80]
    assert (abs(some.cka - whole.cka) < 5 * some.se + 1e-9).all()
    xr.testing.assert_allclose(actkit.cka(shuffled, values="tokens", most_tokens=80).cka, some.cka, **RTOL)


def test_minibatches(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    found = actkit.cka(cube, batch=20).compute()
    part = cube.isel(sample=english(cube))
    wanted = minibatch_cka(part.pooled.values, batch=20)
    np.testing.assert_allclose(found.cka.sel(language="english"), wanted, atol=1e-12)
    assert "se" not in found
    xr.testing.assert_allclose(found, actkit.cka(shuffled, batch=20), **RTOL)


def test_two_cubes_are_matched_by_language_and_sample_id(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    other = shuffled.isel(layer=[1, 3], hidden=slice(0, 7)).isel(sample=slice(0, 90))
    found = actkit.cka(cube, other).compute()
    assert found["cka"].sizes == {"language": 2, "layer": 5, "layer_2": 2}
    assert found.layer_2.values.tolist() == [1, 3]
    assert int(found.n.sum()) == 90
    keys = set(other.sample_id.values[other.language.values == "english"].tolist())
    rows = [row for row in english(cube) if cube.sample_id.values[row] in keys]
    stacked = np.zeros((2, len(rows), 12))
    stacked[0], stacked[1, :, :7] = cube.pooled.values[4, rows], cube.pooled.values[1, rows][:, :7]
    wanted = align(stacked)
    own = found.sel(language="english", layer=4, layer_2=1)
    assert float(own.cka) == pytest.approx(wanted.cka[0, 1], abs=1e-12)
    assert float(own.se) == pytest.approx(wanted.se[0, 1], abs=1e-12)


def test_languages_at_the_same_layer(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    found = actkit.language_cka(cube).compute()
    assert found["cka"].dims == ("language", "language_2", "layer")
    two = np.flatnonzero(cube.language.values == "arabic")
    wanted = align(np.stack([cube.pooled.values[1, english(cube)], cube.pooled.values[1, two]]))
    own = found.sel(language="english", language_2="arabic", layer=1)
    assert float(own.cka) == pytest.approx(wanted.cka[0, 1], abs=1e-12)
    np.testing.assert_allclose(found.cka.sel(language="arabic", language_2="arabic"), 1)
    xr.testing.assert_allclose(found, actkit.language_cka(shuffled), **RTOL)
    assert float(found.cka.sel(language="english", language_2="arabic", layer=0)) > 0.9


def test_layers_that_were_not_captured_are_left_out(cube: xr.Dataset) -> None:
    part = cube.assign_coords(has_residual=("layer", [True, True, False, True, True]))
    part["pooled"] = part.pooled.where(part.has_residual)
    assert actkit.adjacent_cka(part).layer.values.tolist() == [0, 1, 3]
    assert np.isfinite(actkit.cka(part).cka).all()


def test_samples_without_content_are_left_out(cube: xr.Dataset) -> None:
    part = cube.compute().copy(deep=True)
    part.token_kind[5] = 1
    part.pooled[:, 5] = np.nan
    found = actkit.cka(part)
    assert found.n.values.tolist() == [60, 59]
    assert np.isfinite(found.cka).all()


def test_a_cube_that_is_still_written(tmp_path: Path) -> None:
    run = write_cube(tmp_path, n_samples=40, window=4, windows=[0, 1, 2, 5, 6])
    found = actkit.adjacent_cka(actkit.open_cube(run, partial=True)).compute()
    assert found.n.values.tolist() == [10, 10]
    assert np.isfinite(found.cka).all()
    nothing = write_cube(tmp_path / "nothing", windows=[])
    with pytest.raises(InputError, match="has no samples"):
        actkit.adjacent_cka(actkit.open_cube(nothing, partial=True))


def test_what_is_asked_for_must_be_there(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="values: 'first' is not one of pooled, last"):
        actkit.cka(cube, values="first")
    with pytest.raises(
        InputError, match=r"pairs: the cube has no label `twin`; it has gender, image_id \(give one"
    ):
        actkit.cka(cube, pairs="twin")
    with pytest.raises(KeyError, match="no `pooled`; extract it again with `pooled` among `save`"):
        actkit.cka(cube.drop_vars("pooled"))
    with pytest.raises(KeyError, match="one layer"):
        actkit.adjacent_cka(cube.isel(layer=[0]))
    with pytest.raises(InputError, match="two cubes have other tokens"):
        actkit.cka(cube, cube, values="tokens")
    with pytest.raises(InputError, match="no sample has the same language and sample_id"):
        actkit.cka(cube, cube.assign_coords(sample_id=cube.sample_id.astype(object) + "!"))
    with pytest.raises(InputError, match="no sample has the same one in two languages"):
        actkit.language_cka(cube.isel(sample=english(cube)))
