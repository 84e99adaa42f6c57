"""group_differential, transfer and direction_cosines on a cube whose genders separate at a known layer."""

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import actkit
from actkit.errors import InputError, NonfiniteError
from actkit.stats.group_comparison import cut_folds
from actkit.testing import write_cube
from tests.stats.conftest import HIDDEN, PARTS_AT

QUICK: dict[str, Any] = {"by": "gender", "permutations": 60, "seeds": 1}
RTOL = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def result(cube: xr.Dataset) -> xr.Dataset:
    return actkit.group_differential(cube, **QUICK).compute()


@pytest.mark.slow
def test_groups_are_separable_from_the_planted_layer(result: xr.Dataset) -> None:
    assert result.auroc.dims == ("language", "layer")
    apart = result.layer >= PARTS_AT
    assert (result.auroc.where(apart, drop=True).isel(layer=[0, 1]) > 0.9).all()
    assert (result.auroc.where(~apart, drop=True) < 0.75).all()
    assert (result.p.where(apart, drop=True).isel(layer=[0, 1]) <= 1 / 61 + 1e-12).all()
    assert (result.p.where(~apart, drop=True) > 0.05).all()
    assert float(result.squared_smd.sel(layer=[2, 3]).min()) > 0.03
    assert float(abs(result.squared_smd.sel(layer=[0, 1])).max()) < 0.02
    # the planted direction is recovered, and its dimension has the largest d
    np.testing.assert_allclose(result.direction.sel(layer=PARTS_AT).isel(hidden=3), 1, atol=0.35)
    np.testing.assert_allclose((result.direction**2).sum("hidden"), 1)
    assert (abs(result.d).argmax("hidden").sel(layer=[2, 3]) == 3).all()
    assert (abs(result.d).max("hidden").sel(layer=2) > result.d_bound).all()
    assert (abs(result.d).max("hidden").sel(layer=[0, 1]) < 1.5 * result.d_bound).all()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["ridge", "logistic"])
def test_the_probe_is_scikit_learns(cube: xr.Dataset, result: xr.Dataset, estimator: str) -> None:
    if estimator == "logistic":
        result = actkit.group_differential(
            cube.sel(layer=[0, 3]), by="gender", permutations=5, seeds=1, estimator="logistic"
        ).compute()
    assert result.attrs["estimator"] == estimator
    rows = np.flatnonzero(cube.language.values == "english")
    rows = rows[np.argsort(cube.sample_id.values[rows].astype(str))]
    labels = cube.gender.values[rows] == "male"
    exact = LogisticRegression(tol=1e-12, solver="newton-cholesky")
    pipeline = make_pipeline(StandardScaler(), exact if estimator == "logistic" else RidgeClassifier(HIDDEN))
    cut = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    groups = cube.image_id.values[rows]
    for layer in (0, 3):
        vectors = cube.pooled.values[layer, rows].astype(np.float64)
        scores = cross_val_score(pipeline, vectors, labels, groups=groups, cv=cut, scoring="roc_auc")
        own = result.sel(language="english", layer=layer)
        assert float(own.auroc) == pytest.approx(scores.mean(), abs=1e-9)
        assert float(own.auroc_sd) == pytest.approx(scores.std(ddof=1), abs=1e-9)


@pytest.mark.slow
def test_what_the_layer_adds_is_compared_in_the_same_folds(cube: xr.Dataset, result: xr.Dataset) -> None:
    assert result.auroc_difference.dims == ("language", "layer", "baseline")
    for name in ("embedding", "tfidf", "length"):
        differences = result.auroc_difference.sel(baseline=name, drop=True)
        xr.testing.assert_allclose(differences, result.auroc - result[f"auroc_{name}"])
        assert (result[f"auroc_{name}_low"] <= result[f"auroc_{name}"]).all()
        assert (result[f"auroc_{name}_high"] >= result[f"auroc_{name}"]).all()
    assert (result.auroc_difference_low <= result.auroc_difference).all()
    assert (result.auroc_difference_high >= result.auroc_difference).all()
    apart = result.sel(layer=[2, 3], baseline="tfidf")
    assert (apart.auroc_difference_low > 0).all()
    assert (apart.auroc_difference_p < 0.01).all()
    # the same vectors add nothing
    part = cube.isel(layer=[0]).compute()
    same = part.assign(pooled=xr.zeros_like(part.pooled) + part.n_tokens.astype(np.float32))
    found = actkit.group_differential(same, **QUICK).isel(layer=0).sel(baseline="length")
    assert (found.auroc_difference == 0).all()
    assert (found.auroc_difference_p == 1).all()


@pytest.mark.slow
def test_baselines_and_group_sizes_are_reported(cube: xr.Dataset, result: xr.Dataset) -> None:
    assert result["n_female"].values.tolist() == [30, 30]
    assert result["n_male"].values.tolist() == [30, 30]
    for name in ("auroc_tfidf", "auroc_length", "auroc_embedding"):
        assert result[name].dims == ("language",)
        assert ((result[name] >= 0) & (result[name] <= 1)).all()
    # the texts of this cube carry no information about gender
    assert (result.auroc_tfidf < 0.8).all()
    told = cube.assign_coords(text=cube.text.astype(object) + " " + cube.gender.astype(object))
    assert (actkit.group_differential(told, **QUICK).auroc_tfidf > 0.99).all()
    without = actkit.group_differential(cube.drop_vars("embedding"), **QUICK).auroc_embedding.compute()
    assert without.isnull().all()


@pytest.mark.slow
def test_it_is_lazy_and_order_and_chunks_change_nothing(
    cube: xr.Dataset, shuffled: xr.Dataset, result: xr.Dataset
) -> None:
    lazy = actkit.group_differential(cube.chunk(sample=7), **QUICK)
    assert dask.is_dask_collection(lazy)
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_allclose(lazy.compute(), result, **RTOL)
    eager = actkit.group_differential(shuffled, **QUICK)
    assert not dask.is_dask_collection(eager)
    xr.testing.assert_allclose(eager, result, **RTOL)


@pytest.mark.slow
def test_labels_can_be_reversed(cube: xr.Dataset, result: xr.Dataset) -> None:
    other = actkit.group_differential(cube, between=("male", "female"), **QUICK).compute()
    np.testing.assert_allclose(other.auroc.sel(layer=3), result.auroc.sel(layer=3), atol=0.03)
    np.testing.assert_allclose(other.direction, -result.direction, atol=1e-12)
    assert other.attrs["between"] == "male to female"
    assert result.attrs["between"] == "female to male"


@pytest.mark.slow
def test_a_layer_with_values_that_are_not_finite_disturbs_no_other(
    cube: xr.Dataset, result: xr.Dataset
) -> None:
    part = cube.compute().copy(deep=True)
    part.pooled[1, 4, 2] = np.inf
    with pytest.raises(NonfiniteError, match="at layer 1 that `nonfinite` does not count"):
        actkit.group_differential(part, **QUICK).compute()
    own = actkit.group_differential(part.sel(layer=[0, 2]), **QUICK).sel(language="english")
    wanted = result.sel(language="english", layer=[0, 2])
    np.testing.assert_allclose(own.auroc, wanted.auroc, atol=1e-9)


BAD = [
    ({"by": "colour"}, "by: the cube has no label `colour`; it has gender, image_id"),
    ({"cluster": "twin"}, "cluster: the cube has no label `twin`"),
    ({"by": "image_id"}, "between: two labels are compared, but `image_id` has 60: image-0000"),
    ({"between": ("female", "other")}, "between: two labels are compared, but `gender` has 2: female, male"),
    ({"estimator": "svm"}, r"estimator: 'svm' is unknown \(one of ridge, logistic\)"),
    ({"folds": 40}, "english: `female` occurs in 30 clusters, too few for 40 folds"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_invalid_comparisons_are_errors(cube: xr.Dataset, options: dict[str, object], said: str) -> None:
    for function in (actkit.group_differential, actkit.transfer):
        with pytest.raises(InputError, match=said):
            function(cube, **{"by": "gender", **options})  # type: ignore[operator]


def test_few_samples_and_one_label_alone(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="english: `female` has 5 samples but needs 10"):
        actkit.group_differential(cube.isel(sample=slice(0, 20)), by="gender")
    with pytest.raises(InputError, match="`gender` has 1: male"):
        actkit.group_differential(cube.isel(sample=np.flatnonzero(cube.gender.values == "male")), by="gender")


def test_few_clusters_give_a_warning(cube: xr.Dataset) -> None:
    few = cube.assign_coords(
        image_id=("sample", [f"{at // 2 % 4}" for at in range(120)], cube.image_id.attrs)
    )
    with pytest.warns(UserWarning, match="with only 4 clusters, no p-value can be small"):
        actkit.group_differential(few, by="gender", cluster="image_id", folds=2, permutations=60, seeds=3)


def test_folds_without_a_label_give_a_warning_or_an_error() -> None:
    second, groups = np.arange(40) >= 20, np.arange(40) // 10
    with pytest.warns(UserWarning, match="english: 2 of 3 folds lack a label and are omitted"):
        assert len(cut_folds("english", second, groups, 3, 1)) == 1
    with pytest.raises(InputError, match="english: none of 4 folds of whole clusters contains both labels"):
        cut_folds("english", second, groups // 2, 2, 2)


@pytest.mark.slow
def test_incomplete_cube(tmp_path: Path) -> None:
    run = write_cube(tmp_path, n_samples=80, window=8, windows=[0, 1, 2, 3, 4, 6])
    result = actkit.group_differential(actkit.open_cube(run, partial=True), **QUICK).compute()
    assert (result.n_female + result.n_male).values.tolist() == [24, 24]


@pytest.mark.slow
def test_transfer_between_languages_that_share_a_direction(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    result = actkit.transfer(cube, by="gender").compute()
    assert result.auroc.dims == ("train", "test", "layer")
    assert (result.auroc.sel(layer=3) > 0.9).all()
    assert (result.auroc.sel(layer=0) < 0.8).all()
    assert (result.auroc_low <= result.auroc).all()
    assert (result.auroc_high >= result.auroc).all()
    assert (result.auroc_low.sel(layer=[2, 3]) > 0.5).all()
    xr.testing.assert_allclose(actkit.transfer(shuffled, by="gender"), result, **RTOL)


@pytest.mark.slow
def test_transfer_holds_out_translations_of_training_samples(cube: xr.Dataset) -> None:
    """Recognising images across languages does not help, because test images are held out in each."""
    rng = np.random.default_rng(0)
    part = cube.compute().copy(deep=True)
    part["pooled"] = part.pooled.isel(layer=[0])
    part.pooled[0] = rng.standard_normal((60, 12))[np.arange(120) // 2] * 10
    for cluster in ("image_id", None):
        result = actkit.transfer(part.isel(layer=[0]), by="gender", cluster=cluster, seeds=3)
        assert (abs(result.auroc - 0.5) < 0.25).all()


def test_directions_between_layers_and_languages(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    # less noise in the dimensions that are not planted
    scale = xr.DataArray(np.where(np.arange(12) == 3, 1, 0.3), dims="hidden")
    clear, reordered = (c.assign(pooled=c.pooled * scale) for c in (cube, shuffled))
    result = actkit.direction_cosines(clear, by="gender").compute()
    assert result.layers.dims == ("language", "layer", "layer_2")
    assert result.languages.dims == ("language", "language_2", "layer")
    np.testing.assert_allclose(result.languages.sel(language="arabic", language_2="arabic"), 1)
    between = result.sel(language="english", language_2="arabic")
    assert (between.disattenuated.sel(layer=[2, 3]) > 0.9).all()
    np.testing.assert_allclose(
        between.disattenuated, np.minimum(between.languages / between.ceiling, 1), rtol=1e-12
    )
    assert result.ceiling.sel(language="arabic", language_2="arabic").isnull().all()
    # the genders do not differ before layer 2, so no direction can be told from noise
    assert between.disattenuated.sel(layer=[0, 1]).isnull().all()
    assert "NaN where a direction cannot be told from sampling noise" in result.disattenuated.undefined
    layers = result.sel(language="english").layers_disattenuated
    assert float(layers.sel(layer=2, layer_2=3)) > 0.9
    np.testing.assert_allclose(layers.sel(layer=2, layer_2=2), 1)
    assert layers.sel(layer=0).isnull().all()
    xr.testing.assert_allclose(actkit.direction_cosines(reordered, by="gender"), result, **RTOL)
    # directions of a cube with more noise cannot be compared
    noisy = actkit.direction_cosines(cube, by="gender").compute()
    assert noisy.disattenuated.sel(layer=[0, 1, 4]).isnull().all()


@pytest.mark.slow
def test_ceiling_accounts_for_noise_in_equal_directions() -> None:
    """With one true direction in both languages, only the raw cosine falls short of 1."""
    rng = np.random.default_rng(0)
    truth = np.zeros(40)
    truth[0] = 2
    raw, disattenuated = [], []
    for seed in range(12):
        run = write_cube(n_layers=1, n_samples=160, n_tokens=2, hidden=40, window=160, seed=seed)
        cube = actkit.open_cube(run).load()
        male = (cube.gender.values == "male")[:, None]
        cube["pooled"][0] = rng.standard_normal((160, 40)) + np.where(male, truth, 0)
        result = actkit.direction_cosines(cube, by="gender", cluster=None, splits=40, seed=seed)
        own = result.sel(language="english", language_2="arabic").isel(layer=0)
        raw.append(float(own.languages))
        disattenuated.append(float(own.disattenuated))
    assert np.mean(raw) < 0.7
    assert np.nanmean(disattenuated) == pytest.approx(1, abs=0.3)
