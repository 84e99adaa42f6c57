"""classification_probe against scikit-learn, with matching and residuals."""

from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import actkit
from actkit.errors import InputError
from tests.stats.conftest import HIDDEN

QUICK: dict[str, Any] = {"by": "kind", "permutations": 19, "seeds": 1}
MIXED = {"by": "length_group", "cluster": None, "permutations": 19, "seeds": 2}


@pytest.fixture(scope="module")
def classes(cube: xr.Dataset) -> xr.Dataset:
    """The planted cube with three kinds of images, which differ in a dimension of layer 2 and above."""
    kind = np.array(["abc"[int(name[-4:]) % 3] for name in cube.image_id.values], dtype=object)
    own = cube.sel(layer=[0, 2, 3]).compute().assign_coords(kind=("sample", kind, {"label": True}))
    shift = xr.DataArray(np.eye(HIDDEN)[:3] * 6, dims=("kind", "hidden"))
    shift = shift.isel(kind=xr.DataArray(np.unique(kind, return_inverse=True)[1], dims="sample"))
    apart = xr.where(own.layer >= 2, 1.0, 0.0)
    return own.assign(pooled=(own.pooled + apart * shift).astype(np.float32).transpose(*own.pooled.dims))


@pytest.fixture(scope="module")
def result(classes: xr.Dataset) -> xr.Dataset:
    return actkit.classification_probe(classes, **QUICK).compute()


def test_the_aurocs_are_scikit_learns(classes: xr.Dataset, result: xr.Dataset) -> None:
    rows = np.flatnonzero(classes.language.values == "english")
    rows = rows[np.argsort(classes.sample_id.values[rows].astype(str))]
    labels = classes.kind.values[rows].astype(str)
    vectors = classes.pooled.sel(layer=3).values[rows].astype(np.float64)
    cut = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    each, macro = [], []
    for train, test in cut.split(vectors, labels, classes.image_id.values[rows]):
        pipeline = make_pipeline(StandardScaler(), RidgeClassifier(HIDDEN)).fit(vectors[train], labels[train])
        scores, members = pipeline.decision_function(vectors[test]), labels[test][:, None] == ["a", "b", "c"]
        each.append(roc_auc_score(members, scores, average=None))
        macro.append(roc_auc_score(members, scores, average="macro"))
    own = result.sel(language="english", layer=3)
    np.testing.assert_allclose(own.auroc, np.mean(each, axis=0), atol=1e-9)
    assert own.macro_auroc.item() == pytest.approx(np.mean(macro), abs=1e-9)


def test_classes_are_told_apart_where_they_differ(result: xr.Dataset) -> None:
    assert result.auroc.dims == ("language", "layer", "kind")
    assert result.kind.values.tolist() == ["a", "b", "c"]
    assert result.n.sel(language="english").values.tolist() == [20, 20, 20]
    apart = result.sel(layer=[2, 3])
    assert (apart.macro_auroc_low > 0.5).all()
    assert (apart.macro_auroc_p == 0.05).all()
    np.testing.assert_allclose(apart.macro_auroc_p_holm, 2 * 0.05)
    for name in ("auroc", "macro_auroc_difference"):
        assert result[f"{name}_p_holm"].dims == result[f"{name}_p"].dims
        assert (result[f"{name}_p_holm"] >= result[f"{name}_p"]).all()
    assert (result.macro_auroc_low <= result.macro_auroc).all()
    assert (result.auroc <= result.auroc_high).all()
    difference = result.macro_auroc - result.macro_auroc_tfidf
    xr.testing.assert_allclose(result.macro_auroc_difference.sel(baseline="tfidf", drop=True), difference)


def test_two_classes_have_the_auroc_of_group_differential(cube: xr.Dataset) -> None:
    part, options = cube.sel(layer=[0, 3]).compute(), {"permutations": 5, "seeds": 1, "by": "gender"}
    found = actkit.classification_probe(part, **options)
    wanted = actkit.group_differential(part, **options)
    for name in ("auroc", "auroc_low", "auroc_length_low", "auroc_embedding_high"):
        np.testing.assert_allclose(found[f"macro_{name}"], wanted[name], atol=1e-9)
    np.testing.assert_allclose(found.auroc.sel(gender="male"), wanted.auroc, atol=1e-9)


def test_two_classes_have_the_residual_auroc_of_group_differential(confounded: xr.Dataset) -> None:
    two = confounded.isel(sample=np.flatnonzero(confounded.length_group.values != "longest"))
    two = two.assign_coords(type=("sample", np.arange(two.sizes["sample"]) % 9, {"label": True}))
    options = {**MIXED, "residualized_on": ("length", "tfidf")}
    found = actkit.classification_probe(two, **options)
    wanted = actkit.group_differential(two, **options, control="type")
    for name in ("auroc", "auroc_low", "auroc_high", "auroc_length_low"):
        np.testing.assert_allclose(found[f"macro_{name}"], wanted[name], atol=1e-9)
    np.testing.assert_allclose(found.macro_auroc_difference, wanted.auroc_difference, atol=0.05)
    np.testing.assert_array_equal(found.macro_auroc_p, wanted.p)
    assert wanted.attrs["residualized_on"] == "length and tfidf"
    assert abs(wanted.auroc.sel(layer=0).item() - 0.5) < 0.08
    assert wanted.balanced_accuracy.sel(layer=1).item() > 0.6  # the threshold is near the best one
    assert (abs(wanted.auroc_control - 0.5) < 0.1).all()
    with pytest.raises(InputError, match="estimator: residuals are probed by ridge regression only"):
        actkit.group_differential(two, **options, estimator="logistic")


def test_it_is_lazy_and_order_and_chunks_change_nothing(classes: xr.Dataset, result: xr.Dataset) -> None:
    lazy = actkit.classification_probe(classes.chunk(sample=7), **QUICK)
    assert dask.is_dask_collection(lazy)
    with dask.config.set(scheduler="synchronous"):
        xr.testing.assert_allclose(lazy.compute(), result, rtol=1e-9)
    order = np.random.default_rng(0).permutation(classes.sizes["sample"])
    shuffled = actkit.classification_probe(classes.isel(sample=order), **QUICK)
    xr.testing.assert_allclose(shuffled.sel(language=result.language), result, rtol=1e-9)


def test_chosen_classes_and_the_name_of_their_dimension(classes: xr.Dataset) -> None:
    part = classes.sel(layer=[3]).rename(kind="n")
    found = actkit.classification_probe(part, by="n", classes=["c", "a"], permutations=2, seeds=1)
    assert found.attrs["group_dim"] == "n_label"
    assert found.n_label.values.tolist() == ["c", "a"]
    named = part.rename(n="class")
    assert "class" in actkit.classification_probe(named, by="class", permutations=2, seeds=1).auroc.dims


BAD: list[tuple[dict[str, Any], str]] = [
    ({"by": "colour"}, "by: the cube has no label `colour`"),
    ({"classes": ["a"]}, "classes: `kind` has 3 values: a, b, c"),
    ({"classes": ["a", "a"]}, "classes: `kind` has 3 values"),
    ({"classes": ["a", "z"]}, "classes: `kind` has 3 values"),
    ({"matched_on": "tfidf"}, "matched_on: 'tfidf' is unknown"),
    ({"residualized_on": ["length", "embedding"]}, "residualized_on: 'embedding' is unknown"),
    ({"folds": 30}, "english: `a` occurs in 20 clusters, too few for 30 folds"),
    ({"by": "image_id"}, r"each class needs 10 samples, but `image-0000` has 1, .* and 55 more classes"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_invalid_options_are_errors(classes: xr.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        actkit.classification_probe(classes, **{**QUICK, **options})


def test_group_differential_names_the_probe_for_more_classes(classes: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"has 3: a, b, c .* all of them with actkit\.classification_probe"):
        actkit.group_differential(classes, by="kind")
    numbers = classes.assign_coords(rating=("sample", np.arange(120) % 7, {"label": True}))
    with pytest.raises(InputError, match=r"as numbers, with actkit\.regression_probe"):
        actkit.group_differential(numbers, by="rating")


@pytest.fixture(scope="module")
def confounded() -> xr.Dataset:
    """A cube with a label that depends on length, and one that adds to layer 1, and vectors that do both."""
    return confounded_cube(300, seed=0)


def confounded_cube(n_samples: int, *, seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 13, n_samples)
    score = (lengths - 7.5) / 3
    group = (score + rng.standard_normal(n_samples) > 0).astype(int)
    group = np.where(score + rng.standard_normal(n_samples) > 1.5, 2, group)
    vectors = rng.standard_normal((2, n_samples, 8))
    vectors[..., 0] += 2 * score
    vectors[..., 1] += 8 / lengths
    vectors[1, :, 2] += 2 * group
    names = np.array(["short", "long", "longest"], dtype=object)
    label = {"label": True}
    coords: dict[str, Any] = {
        "layer": [0, 1],
        "language": ("sample", np.full(n_samples, "english", dtype=object)),
        "sample_id": ("sample", np.array([f"{at:05d}" for at in range(n_samples)], dtype=object)),
        "text": ("sample", np.array(["word " * n for n in lengths], dtype=object)),
        "n_tokens": ("sample", lengths),
        "length_group": ("sample", names[group], label),
        "rating": ("sample", score + rng.standard_normal(n_samples) * 0.5 + vectors[1, :, 3], label),
    }
    values = {"pooled": (("layer", "sample", "hidden"), vectors)}
    return xr.Dataset(values, coords, {"first_is_content": True})


def test_matching_and_residuals_remove_what_acts_through_length(confounded: xr.Dataset) -> None:
    plain = actkit.classification_probe(confounded, **MIXED)
    assert (plain.macro_auroc_low > 0.6).all()
    assert plain.macro_auroc_length > 0.7
    for options in (
        {"matched_on": "length"},
        {"residualized_on": "length"},
        {"residualized_on": ("length", "tfidf")},
    ):
        found = actkit.classification_probe(confounded, **MIXED, **options)
        assert found.macro_auroc.sel(layer=0).item() == pytest.approx(0.5, abs=0.08), options
        assert found.macro_auroc_p.sel(layer=0) > 0.05, options
        assert found.macro_auroc_low.sel(layer=1) > 0.5, options
        assert found.macro_auroc_p.sel(layer=1) <= 0.05, options
        name = next(iter(options))
        assert found.attrs[name] in ("length", "length and tfidf")


def test_covariates_that_are_equal_for_all_samples_change_nothing(confounded: xr.Dataset) -> None:
    equal = confounded.assign_coords(
        n_tokens=("sample", np.full(300, 7)), text=("sample", np.full(300, "", dtype=object))
    )
    for name, by in (("classification_probe", "length_group"), ("regression_probe", "rating")):
        options = {**MIXED, "by": by, "permutations": 2}
        plain = getattr(actkit, name)(equal, **options)
        found = getattr(actkit, name)(equal, **options, residualized_on=("length", "tfidf"))
        xr.testing.assert_allclose(found, plain)


def test_matched_groups_have_equal_lengths(confounded: xr.Dataset) -> None:
    two: dict[str, Any] = {"classes": ["short", "long"], **MIXED}
    found = actkit.classification_probe(confounded, matched_on="length", **two)
    assert len(set(found.n.values.ravel().tolist())) == 1
    counts = confounded.length_group.to_index().value_counts()
    assert found.n.sum() + found.n_unmatched == counts[["short", "long"]].sum()
    assert found.macro_auroc_length.item() == pytest.approx(0.5, abs=0.1)
    pair = {
        "between": ("short", "long"),
        "by": "length_group",
        "cluster": None,
        "permutations": 5,
        "seeds": 2,
    }
    compared = actkit.group_differential(confounded, matched_on="length", **pair)
    assert compared.n_short == compared.n_long == found.n.sel(length_group="long")
    assert compared.n_unmatched == found.n_unmatched
    assert compared.attrs["matched_on"] == "length"
    xr.testing.assert_allclose(compared.auroc, found.macro_auroc.rename("auroc"))
    again = actkit.group_differential(
        confounded.isel(sample=slice(None, None, -1)), matched_on="length", **pair
    )
    xr.testing.assert_allclose(again, compared)
