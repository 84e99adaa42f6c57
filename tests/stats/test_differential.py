"""group_differential, transfer and direction_cosines on a cube whose genders part at a known layer."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import actkit
from actkit.errors import InputError
from actkit.stats.comparing import cut_folds
from actkit.testing import write_cube
from tests.stats.conftest import PARTS_AT

QUICK = {"permutations": 60, "seeds": 1}
RTOL = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(scope="module")
def found(cube: xr.Dataset) -> xr.Dataset:
    return actkit.group_differential(cube, **QUICK).compute()


def test_groups_are_told_apart_from_where_they_part(found: xr.Dataset) -> None:
    assert found.auroc.dims == ("language", "layer")
    apart = found.layer >= PARTS_AT
    assert (found.auroc.where(apart, drop=True).isel(layer=[0, 1]) > 0.9).all()
    assert (found.auroc.where(~apart, drop=True) < 0.75).all()
    assert (found.p.where(apart, drop=True).isel(layer=[0, 1]) <= 1 / 61 + 1e-12).all()
    assert (found.p.where(~apart, drop=True) > 0.05).all()
    assert float(found.effect.sel(layer=[2, 3]).min()) > 0.03
    assert float(abs(found.effect.sel(layer=[0, 1])).max()) < 0.02
    # the direction is the one that was planted, and its dimension stands out
    np.testing.assert_allclose(found.direction.sel(layer=PARTS_AT).isel(hidden=3), 1, atol=0.35)
    np.testing.assert_allclose((found.direction**2).sum("hidden"), 1)
    assert (abs(found.d).argmax("hidden").sel(layer=[2, 3]) == 3).all()
    assert (abs(found.d).max("hidden").sel(layer=2) > found.d_bound).all()
    assert (abs(found.d).max("hidden").sel(layer=[0, 1]) < 1.5 * found.d_bound).all()


def test_the_probe_is_scikit_learns(cube: xr.Dataset, found: xr.Dataset) -> None:
    rows = np.flatnonzero(cube.language.values == "english")
    rows = rows[np.argsort(cube.sample_id.values[rows].astype(str))]
    labels = cube.gender.values[rows] == "male"
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    cut = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    groups = cube.image_id.values[rows]
    for layer in (0, 3):
        vectors = cube.pooled.values[layer, rows].astype(np.float64)
        scores = cross_val_score(pipeline, vectors, labels, groups=groups, cv=cut, scoring="roc_auc")
        own = found.sel(language="english", layer=layer)
        assert float(own.auroc) == pytest.approx(scores.mean(), abs=1e-9)
        assert float(own.auroc_sd) == pytest.approx(scores.std(ddof=1), abs=1e-9)


def test_baselines_and_counts_stand_beside(cube: xr.Dataset, found: xr.Dataset) -> None:
    assert found["n_female"].values.tolist() == [30, 30]
    assert found["n_male"].values.tolist() == [30, 30]
    for name in ("auroc_tfidf", "auroc_length", "auroc_embedding"):
        assert found[name].dims == ("language",)
        assert ((found[name] >= 0) & (found[name] <= 1)).all()
    # the texts of this cube say nothing of gender
    assert (found.auroc_tfidf < 0.8).all()
    told = cube.assign_coords(text=cube.text.astype(object) + " " + cube.gender.astype(object))
    assert (actkit.group_differential(told, **QUICK).auroc_tfidf > 0.99).all()
    without = actkit.group_differential(cube.drop_vars("embedding"), **QUICK).auroc_embedding.compute()
    assert without.isnull().all()


def test_it_is_lazy_and_order_and_chunks_change_nothing(
    cube: xr.Dataset, shuffled: xr.Dataset, found: xr.Dataset
) -> None:
    lazy = actkit.group_differential(cube.chunk(sample=7), **QUICK)
    assert dask.is_dask_collection(lazy)
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_allclose(lazy.compute(), found, **RTOL)
    eager = actkit.group_differential(shuffled, **QUICK)
    assert not dask.is_dask_collection(eager)
    xr.testing.assert_allclose(eager, found, **RTOL)


def test_labels_can_be_turned_round(cube: xr.Dataset, found: xr.Dataset) -> None:
    other = actkit.group_differential(cube, labels=("male", "female"), **QUICK).compute()
    np.testing.assert_allclose(other.auroc.sel(layer=3), found.auroc.sel(layer=3), atol=0.03)
    np.testing.assert_allclose(other.direction, -found.direction, atol=1e-12)
    assert other.attrs["labels"] == "male to female"
    assert found.attrs["labels"] == "female to male"


def test_layers_with_values_that_are_not_finite_are_nan_and_disturb_no_other(
    cube: xr.Dataset, found: xr.Dataset
) -> None:
    part = cube.compute().copy(deep=True)
    part.pooled[1, 4, 2] = np.inf
    own = actkit.group_differential(part, **QUICK).sel(language="english")
    assert np.isnan(own.auroc.sel(layer=1))
    assert np.isnan(own.p.sel(layer=1))
    wanted = found.sel(language="english")
    np.testing.assert_allclose(own.auroc.sel(layer=[0, 2]), wanted.auroc.sel(layer=[0, 2]), atol=1e-9)


BAD = [
    ({"by": "colour"}, "by: the cube has no label `colour`; it has gender, image_id"),
    ({"pairs": "twin"}, "pairs: the cube has no label `twin`"),
    ({"by": "image_id"}, "labels: two labels are compared, and `image_id` has 60: image-0000"),
    ({"labels": ("female", "other")}, "labels: two labels are compared, and `gender` has 2: female, male"),
    ({"folds": 40}, "english: `female` is in 30 groups, too few for 40 folds"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_what_cannot_be_compared(cube: xr.Dataset, options: dict[str, object], said: str) -> None:
    for function in (actkit.group_differential, actkit.transfer):
        with pytest.raises(InputError, match=said):
            function(cube, **options)  # type: ignore[operator]


def test_few_samples_and_one_label_alone(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="english: `female` has 5 samples, and needs 10"):
        actkit.group_differential(cube.isel(sample=slice(0, 20)))
    with pytest.raises(InputError, match="`gender` has 1: male"):
        actkit.group_differential(cube.isel(sample=np.flatnonzero(cube.gender.values == "male")))


def test_few_groups_are_warned_of(cube: xr.Dataset) -> None:
    few = cube.assign_coords(
        image_id=("sample", [f"{at // 2 % 4}" for at in range(120)], cube.image_id.attrs)
    )
    with pytest.warns(UserWarning, match="with 4 groups no p can be small"):
        actkit.group_differential(few, folds=2, permutations=60, seeds=3)


def test_folds_without_a_label_are_warned_of_or_refused() -> None:
    second, groups = np.arange(40) >= 20, np.arange(40) // 10
    with pytest.warns(UserWarning, match="english: 2 of 3 folds lack a label, and are left out"):
        assert len(cut_folds("english", second, groups, 3, 1)) == 1
    with pytest.raises(InputError, match="english: no fold of whole groups has both labels, of 4"):
        cut_folds("english", second, groups // 2, 2, 2)


def test_a_cube_that_is_still_written(tmp_path: Path) -> None:
    run = write_cube(tmp_path, n_samples=80, window=8, windows=[0, 1, 2, 3, 4, 6])
    found = actkit.group_differential(actkit.open_cube(run, partial=True), **QUICK).compute()
    assert (found.n_female + found.n_male).values.tolist() == [24, 24]


def test_transfer_between_languages_that_share_a_direction(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    found = actkit.transfer(cube).compute()
    assert found.auroc.dims == ("train", "test", "layer")
    assert (found.auroc.sel(layer=3) > 0.9).all()
    assert (found.auroc.sel(layer=0) < 0.8).all()
    xr.testing.assert_allclose(actkit.transfer(shuffled), found, **RTOL)


def test_transfer_never_tests_on_a_translation_of_what_it_trained_on(cube: xr.Dataset) -> None:
    """Images that can be recognised in both languages tell nothing, since theirs are held out."""
    rng = np.random.default_rng(0)
    part = cube.compute().copy(deep=True)
    part["pooled"] = part.pooled.isel(layer=[0])
    part.pooled[0] = rng.standard_normal((60, 12))[np.arange(120) // 2] * 10
    for pairs in ("image_id", None):
        found = actkit.transfer(part.isel(layer=[0]), pairs=pairs, seeds=3)
        assert (abs(found.auroc - 0.5) < 0.25).all()


def test_directions_between_layers_and_languages(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    found = actkit.direction_cosines(cube).compute()
    assert found.layers.dims == ("language", "layer", "layer_2")
    assert found.languages.dims == ("language", "language_2", "layer")
    np.testing.assert_allclose(found.languages.sel(language="arabic", language_2="arabic"), 1)
    between = found.sel(language="english", language_2="arabic")
    assert (between.languages.sel(layer=[2, 3]) > 0.8).all()
    assert (between.ceiling.dropna("layer") <= 1).all()
    np.testing.assert_allclose(between.disattenuated, between.languages / between.ceiling)
    assert found.ceiling.sel(language="arabic", language_2="arabic").isnull().all()
    means = cube.pooled.where(cube.language == "english", drop=True).groupby("gender").mean().compute()
    direction = (means.sel(gender="male") - means.sel(gender="female")).values
    wanted = direction[2] @ direction[3] / np.linalg.norm(direction[2]) / np.linalg.norm(direction[3])
    assert float(found.layers.sel(language="english", layer=2, layer_2=3)) == pytest.approx(wanted, abs=1e-5)
    xr.testing.assert_allclose(actkit.direction_cosines(shuffled), found, **RTOL)


def test_the_ceiling_is_what_noise_leaves_of_equal_directions() -> None:
    """Of one true direction in both, the raw cosine falls short of 1; the disattenuated one does not."""
    rng = np.random.default_rng(0)
    truth = np.zeros(40)
    truth[0] = 0.5
    raw, mended = [], []
    for seed in range(12):
        run = write_cube(n_layers=1, n_samples=160, n_tokens=2, hidden=40, window=160, seed=seed)
        cube = actkit.open_cube(run).load()
        male = (cube.gender.values == "male")[:, None]
        cube["pooled"][0] = rng.standard_normal((160, 40)) + np.where(male, truth, 0)
        found = actkit.direction_cosines(cube, pairs=None, splits=40, seed=seed)
        own = found.sel(language="english", language_2="arabic").isel(layer=0)
        raw.append(float(own.languages))
        mended.append(float(own.disattenuated))
    assert np.mean(raw) < 0.6
    assert np.nanmean(mended) == pytest.approx(1, abs=0.3)
