"""feature_differential: its numbers against SciPy and scikit-learn, its designs, and what it refuses."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats
from sklearn.metrics import roc_auc_score

import actkit
from actkit.errors import InputError, MissingError, NonfiniteError
from actkit.stats.kernels.probes import grouped_folds
from tests.stats.sparse_cubes import means, sparse_cube, twins

SHIFT = np.where(np.arange(30) < 4, 0.4, 0.0)
QUICK: dict[str, Any] = {"by": "gender", "between": ("male", "female"), "permutations": 199, "splits": 0}


@pytest.fixture(scope="module")
def pairs() -> tuple[xr.Dataset, np.ndarray]:
    return twins(shift=SHIFT)


@pytest.fixture(scope="module")
def tested(pairs: tuple[xr.Dataset, np.ndarray]) -> xr.Dataset:
    return actkit.feature_differential(pairs[0], **{**QUICK, "splits": 2})


def test_t_and_corrections_are_those_of_scipy(
    pairs: tuple[xr.Dataset, np.ndarray], tested: xr.Dataset
) -> None:
    x = means(pairs[1], pairs[0])
    wanted = stats.ttest_rel(x[:, 1::2], x[:, ::2], axis=1)
    result = tested.sel(language="english")
    np.testing.assert_allclose(result.t, wanted.statistic, rtol=1e-5)
    np.testing.assert_allclose(result.difference, x[:, 1::2].mean(1) - x[:, ::2].mean(1), rtol=1e-5)
    assert np.median(np.abs(result.p.values - wanted.pvalue)) < 0.04  # of 199 flips
    corrected = stats.false_discovery_control(result.p.values.ravel())
    np.testing.assert_allclose(result.q.values.ravel(), corrected)
    assert (result.p_max >= result.p - 1e-9).all()
    assert result.n_found == (result["q"] <= 0.05).sum()
    found = result.feature.values[(result.p_max <= 0.05).any("layer").values]
    assert set(found) == {0, 1, 2, 3}
    assert (result.is_paired, result.n_pairs, result.n_left_out) == (True, 40, 0)
    assert (tested.attrs["cluster"], tested.attrs["cluster_origin"]) == ("pair", "detected")
    assert tested.attrs["between"] == "male to female"


def test_the_permuted_maximum_is_over_all_layers(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    both = actkit.feature_differential(pairs[0], **QUICK)
    for layer in (0, 1):
        alone = actkit.feature_differential(pairs[0].sel(layer=[layer]), **QUICK)
        part = both.sel(layer=[layer])
        np.testing.assert_allclose(part.p, alone.p)
        assert (part.p_max >= alone.p_max).all()
        assert (part.p_max > alone.p_max).any()


def test_held_out_aurocs_are_those_of_scikit_learn(
    pairs: tuple[xr.Dataset, np.ndarray], tested: xr.Dataset
) -> None:
    x = means(pairs[1], pairs[0])
    labels, groups = np.arange(80) % 2 == 1, np.unique(pairs[0].pair, return_inverse=True)[1]
    folds = grouped_folds(labels, groups, folds=2, seeds=2)
    assert len(folds) == tested.sizes["split"] == 4
    by_layer: list[list[float]] = [[], []]
    best = []
    for split, (train, test) in enumerate(folds):
        sides = [
            stats.ttest_ind(
                x[layer][train][labels[train]], x[layer][train][~labels[train]], equal_var=False
            ).statistic
            for layer in (0, 1)
        ]
        for layer, t in enumerate(sides):
            at = np.abs(t).argmax()
            assert tested.chosen_feature.values[0, layer, split] == at
            by_layer[layer].append(roc_auc_score(labels[test], np.sign(t[at]) * x[layer][test, at]))
        strongest = int(np.argmax([np.abs(t).max() for t in sides]))
        best.append(by_layer[strongest][-1])
    np.testing.assert_allclose(tested.auroc_feature.values[0], np.mean(by_layer, axis=1))
    assert float(tested.auroc_best[0]) == pytest.approx(np.mean(best))
    assert (tested.auroc_feature_low < tested.auroc_feature).all()
    assert "auroc_residual" not in tested


def test_the_residual_is_a_baseline(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, _ = pairs
    rng = np.random.default_rng(0)
    pooled = rng.standard_normal((2, 80, 5))
    pooled[1, 1::2] += 1.5
    dense = cube.drop_vars(["feature_index", "feature_value", "n_active"])
    dense = dense.assign(pooled=(("layer", "sample", "hidden"), pooled)).isel(sample=rng.permutation(80))
    found = actkit.feature_differential(cube, **{**QUICK, "splits": 1}, cube=dense)
    labels = np.arange(80) % 2 == 1
    expected = []
    groups = np.unique(cube.pair, return_inverse=True)[1]
    for train, test in grouped_folds(labels, groups, folds=2, seeds=1):
        x = pooled[1]
        direction = x[train][labels[train]].mean(0) - x[train][~labels[train]].mean(0)
        expected.append(roc_auc_score(labels[test], x[test] @ direction))
    assert float(found.auroc_residual.sel(layer=1)[0]) == pytest.approx(np.mean(expected))
    for wrong in (dense.isel(sample=slice(50)), dense.isel(layer=[0])):
        with pytest.raises(InputError, match="cube: lacks samples or layers"):
            actkit.feature_differential(cube, **{**QUICK, "splits": 1}, cube=wrong)


def test_without_pairs_labels_are_permuted(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, dense = pairs
    result = actkit.feature_differential(cube, **QUICK, cluster=None).sel(language="english")
    x = means(dense, cube)
    wanted = stats.ttest_ind(x[:, 1::2], x[:, ::2], axis=1, equal_var=False)
    np.testing.assert_allclose(result.t, wanted.statistic, rtol=1e-5)
    assert np.abs(result.p.values - wanted.pvalue).max() < 0.12
    assert (result.is_paired, result.n_first, result.n_second) == (False, 40, 40)


def test_clusters_are_averaged_before_they_are_compared() -> None:
    """Two images of each scene and gender, of unequal numbers: each scene gives one difference."""
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(20), 3)
    gender = np.where(np.arange(60) % 3 == 0, "male", "female").astype(object)
    dense = rng.exponential(size=(1, 60, 3, 6)) * (rng.random((1, 60, 3, 6)) < 0.6)
    cube = sparse_cube(dense.astype(np.float32), gender=gender, scene=scene)
    result = actkit.feature_differential(cube, **QUICK, cluster="scene").sel(language="english", layer=0)
    x = dense[0, :, 1:].mean(axis=1).reshape(20, 3, 6)
    wanted = stats.ttest_1samp(x[:, 1:].mean(axis=1) - x[:, 0], 0)
    np.testing.assert_allclose(result.t, wanted.statistic, rtol=1e-5)
    assert result.n_pairs == 20


def test_samples_of_the_other_design_are_left_out(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, _ = pairs
    without = np.setdiff1d(np.arange(80), [1, 4])  # a twin of two pairs
    part = actkit.feature_differential(cube.isel(sample=without), **QUICK)
    assert part.n_left_out == 2
    whole = actkit.feature_differential(cube.isel(sample=np.setdiff1d(np.arange(80), [0, 1, 4, 5])), **QUICK)
    np.testing.assert_allclose(part.t, whole.t)


@pytest.mark.parametrize("summary", ["any", "max"])
def test_other_summaries(pairs: tuple[xr.Dataset, np.ndarray], summary: Any) -> None:
    cube, dense = pairs
    x = dense.max(axis=2) if summary == "max" else (dense > 0).any(axis=2).astype(float)
    result = actkit.feature_differential(cube, **QUICK, summary=summary).sel(language="english")
    with np.errstate(invalid="ignore"):
        wanted = stats.ttest_rel(x[:, 1::2], x[:, ::2], axis=1).statistic
    live = (x[:, 1::2] != x[:, ::2]).sum(axis=1) >= 10
    assert (result.live.values == live).all()
    np.testing.assert_allclose(result.t.values[live], wanted[live], rtol=1e-5)


def test_only_the_tokens_asked_for_count(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, dense = pairs
    second = actkit.feature_differential(cube, **QUICK, tokens=actkit.TokenFilter(positions=1))
    wanted = stats.ttest_rel(dense[:, 1::2, 1], dense[:, ::2, 1], axis=1).statistic
    live = second.live.values[0]
    np.testing.assert_allclose(second.t.values[0][live], wanted[live], rtol=1e-5)
    assert second.attrs["tokens"] == "TokenFilter(positions=(1,))"


def test_order_and_laziness_change_nothing(pairs: tuple[xr.Dataset, np.ndarray], tested: xr.Dataset) -> None:
    cube, _ = pairs
    order = np.random.default_rng(1).permutation(80)
    again = actkit.feature_differential(cube.isel(sample=order), **{**QUICK, "splits": 2})
    xr.testing.assert_allclose(again, tested)
    lazy = actkit.feature_differential(cube.chunk(sample=30, k=3), **QUICK)
    assert all(lazy[name].chunks for name in ("t", "q", "p_max"))
    xr.testing.assert_allclose(lazy.compute(), actkit.feature_differential(cube, **QUICK))


def test_languages_are_separate_families() -> None:
    english, _ = twins(30, n_features=20, shift=SHIFT[:20])
    arabic, _ = twins(30, n_features=20, seed=5)
    arabic = arabic.assign_coords(language=("sample", np.full(60, "arabic", dtype=object)))
    both = xr.concat([english, arabic], "sample", data_vars="all", coords="different", compat="equals")
    both = both.assign_coords(sample=np.arange(120)).fillna({"feature_value": 0})
    result = actkit.feature_differential(both, **QUICK, cluster="pair")
    for name, part in (("english", english), ("arabic", arabic)):
        alone = actkit.feature_differential(part, **QUICK, cluster="pair")
        xr.testing.assert_allclose(result.sel(language=[name]), alone)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"by": "age"}, InputError, "by: the cube has no label `age`"),
        ({"summary": "sum"}, InputError, "summary: 'sum' is unknown"),
        ({"q": 5}, InputError, "q: is 5 .give a share between 0 and 1"),
        ({"permutations": 0}, InputError, "permutations: is 0"),
        ({"splits": -1}, InputError, "splits: is -1"),
        ({"between": ("male", "other")}, InputError, "between: two labels are compared"),
    ],
)
def test_invalid_options_are_errors(
    pairs: tuple[xr.Dataset, np.ndarray], change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        actkit.feature_differential(pairs[0], **{**QUICK, **change})


def test_cubes_without_features_are_errors(pairs: tuple[xr.Dataset, np.ndarray], cube: xr.Dataset) -> None:
    sparse, _ = pairs
    with pytest.raises(MissingError, match=r"no `feature_index`; .*actkit\.encode"):
        actkit.feature_differential(cube, by="gender")
    with pytest.raises(MissingError, match="lacks the attribute `n_features`"):
        actkit.feature_differential(sparse.drop_attrs(), by="gender")
    few = sparse.isel(sample=slice(18)), sparse.isel(sample=np.r_[0:18, 20:58:2])
    with pytest.raises(InputError, match="`male` has 9 samples but needs 10"):
        actkit.feature_differential(few[0], by="gender")
    with pytest.raises(InputError, match="`female` has 9 samples"):
        actkit.feature_differential(few[1], by="gender")
    scenes = sparse.assign_coords(scene=("sample", np.arange(80) // 10, {"label": True}))
    with pytest.raises(InputError, match="8 clusters have both labels, but 10 pairs are needed"):
        actkit.feature_differential(scenes, by="gender", cluster="scene")
    beyond = sparse.assign_attrs(n_features=7)
    with pytest.raises(InputError, match="refers to feature 29, but `n_features` is 7"):
        actkit.feature_differential(beyond, by="gender")
    spoilt = sparse.copy(deep=True)
    spoilt["feature_value"][1, 3, 1, 0] = np.nan
    with pytest.raises(NonfiniteError, match="`feature_value` contains NaN"):
        actkit.feature_differential(spoilt, by="gender")
