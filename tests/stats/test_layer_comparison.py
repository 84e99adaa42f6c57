"""Control tasks, differences between layers, and corrections over languages and results."""

from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from tests.stats.conftest import HIDDEN

QUICK: dict[str, Any] = {"by": "gender", "permutations": 60, "seeds": 1}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def typed(cube: xr.Dataset) -> xr.Dataset:
    """A cube in which layer 1 holds a type that several images share, and no gender."""
    types = np.arange(cube.sizes["sample"]) // 2 % 7  # as many of both genders
    offsets = np.random.default_rng(0).standard_normal((7, HIDDEN)) * 9
    cube = cube.compute().copy(deep=True)
    cube.pooled[1] += offsets[types].astype(np.float32)
    return cube.assign_coords(type=("sample", types, {"label": True}))


@pytest.fixture(scope="module")
def result(typed: xr.Dataset) -> xr.Dataset:
    return actkit.group_differential(typed, **QUICK, control="type")


def test_a_probe_that_reads_the_type_has_no_selectivity(result: xr.Dataset) -> None:
    assert result.selectivity.dims == ("language", "layer")
    np.testing.assert_allclose(result.selectivity, result.auroc - result.auroc_control)
    assert (result.auroc_control.sel(layer=1) > 0.8).all()
    assert (result.selectivity_high.sel(layer=1) < 0).all()
    assert (result.selectivity_low.sel(layer=[2, 3]) > 0).all()
    assert (abs(result.auroc_control.sel(layer=[0, 2]) - 0.5) < 0.2).all()
    assert (result.control_shared == 1).all()
    assert result.attrs["control"] == "type"


def test_control_tasks_change_nothing_else_and_are_lazy(typed: xr.Dataset, result: xr.Dataset) -> None:
    lazy = actkit.group_differential(typed.chunk(layer=1), **QUICK, control="type")
    assert dask.is_dask_collection(lazy)
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_allclose(lazy.compute(), result, rtol=1e-9, atol=1e-9)
    without = actkit.group_differential(typed, **QUICK)
    assert "selectivity" not in without
    xr.testing.assert_allclose(without, result[list(without.data_vars)])


def test_words_are_types(typed: xr.Dataset) -> None:
    names = np.array(["baker", "nurse", "pilot", "judge", "clerk", "miner", "cook"])[typed.type.values]
    texts = np.array([f"The {name} {at // 2}" for at, name in enumerate(names)], dtype=object)
    worded = typed.assign_coords(text=("sample", texts)).isel(layer=[1])
    result = actkit.group_differential(worded, **QUICK, control="word")
    assert (result.auroc_control > 0.8).all()
    own = worded.assign_coords(word=("sample", typed.sample.values, {"label": True}))  # a label of that name
    with pytest.warns(UserWarning, match="only 0% of the samples share their `word` with another cluster"):
        assert actkit.group_differential(own, **QUICK, control="word").selectivity.isnull().all()


def test_types_that_do_not_recur_have_no_control_task(cube: xr.Dataset) -> None:
    with pytest.warns(UserWarning, match="there is no control task, because only 0% of the samples"):
        result = actkit.group_differential(cube, **QUICK, control="image_id").compute()
    for name in ("auroc_control", "selectivity", "selectivity_low", "selectivity_high"):
        assert result[name].dims == ("language", "layer")
        assert result[name].isnull().all()
    assert (result.control_shared == 0).all()
    alike = cube.assign_coords(
        kind=("sample", np.full(cube.sizes["sample"], "a", dtype=object), {"label": True})
    )
    with pytest.warns(
        UserWarning, match="because all samples have the same `kind`; name a label whose values"
    ):
        actkit.group_differential(alike, **QUICK, control="kind")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ("gender", "control: types of `gender` have the labels of `gender` itself"),
        ("colour", "control: the cube has no label `colour`; it has gender, image_id"),
    ],
)
def test_types_have_to_be_a_label(cube: xr.Dataset, control: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        actkit.group_differential(cube, by="gender", control=control)


def test_layers_are_compared_with_each_other(result: xr.Dataset) -> None:
    assert result.layer_difference.dims == ("language", "layer", "layer_2")
    assert result.layer_2.values.tolist() == result.layer.values.tolist()
    differences = result.auroc - result.auroc.rename(layer="layer_2")
    xr.testing.assert_allclose(result.layer_difference, differences.transpose(*result.layer_difference.dims))
    planted = result.sel(layer=[2, 3], layer_2=[0, 1])
    assert (planted.layer_difference_p < 0.05).all()
    assert (planted.layer_difference_low > 0).all()
    assert (result.layer_difference_p.sel(layer=2, layer_2=3) > 0.05).all()
    turned = result.layer_difference_low.rename(layer="layer_2", layer_2="layer")
    xr.testing.assert_allclose(
        turned.transpose("language", "layer", "layer_2"), -result.layer_difference_high
    )


def test_p_is_corrected_over_languages_and_results(result: xr.Dataset) -> None:
    for name in ("p", "auroc_difference_p", "layer_difference_p"):
        corrected = result[f"{name}_holm"]
        assert corrected.dims == result[name].dims
        assert (corrected >= result[name]).all()
        assert (corrected <= 2 * result[name] + 1e-12).all()
    np.testing.assert_allclose(result.p_holm.min(), 2 / 61)  # of two languages
    part = result.isel(layer=[2, 4], layer_2=[2, 4])
    both = actkit.holm([result, part])
    assert [each.attrs["n_results"] for each in both] == [2, 2]
    assert both[1].p_holm.dims == part.p.dims
    np.testing.assert_allclose(both[0].p_holm.min(), 4 / 61)
    np.testing.assert_allclose(both[1].p_holm.min(), 4 / 61)
    again = actkit.holm([both[0]])[0]  # corrections do not add up
    xr.testing.assert_allclose(again[list(result.data_vars)], result)
    assert list(both[0].data_vars) == list(result.data_vars)


def test_one_layer_and_one_result_per_label_are_holms(result: xr.Dataset) -> None:
    """Against R: p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm") is 0.04 0.06 0.06 0.06."""
    alone = result.isel(layer=[0], layer_2=[0], language=[0])
    results = [alone.assign(p=xr.full_like(alone.p, p)) for p in (0.04, 0.01, 0.03, 0.02)]
    found = [each.p_holm.item() for each in actkit.holm(results)]
    np.testing.assert_allclose(found, [0.06, 0.04, 0.06, 0.06])


def test_only_results_with_these_p_values_are_corrected(cube: xr.Dataset, result: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"results\[1\]: is not a result of group_differential"):
        actkit.holm([result, actkit.layer_norms(cube)])
    for lacking in (result.sel(layer=1), result.isel(layer_2=0), "result"):
        with pytest.raises(InputError, match=r"results\[0\]: is not a result of group_differential"):
            actkit.holm([lacking])
    with pytest.raises(InputError, match="results: are empty"):
        actkit.holm([])


def test_one_result_or_a_generator_is_corrected(result: xr.Dataset) -> None:
    (wanted,) = actkit.holm([result])
    xr.testing.assert_identical(actkit.holm(result)[0], wanted)
    xr.testing.assert_identical(actkit.holm(each for each in [result])[0], wanted)
