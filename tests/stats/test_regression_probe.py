"""regression_probe against scikit-learn and SciPy, with residuals."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr
from sklearn.dummy import DummyRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import actkit
from actkit.errors import InputError
from actkit.stats.kernels.covariates import Covariates
from tests.stats.conftest import HIDDEN
from tests.stats.test_classification_probe import confounded_cube

QUICK: dict[str, Any] = {"by": "rating", "permutations": 19, "seeds": 1}
LEVELS = 5


@pytest.fixture(scope="module")
def rated(cube: xr.Dataset) -> xr.Dataset:
    """The planted cube with whole ratings, many of them equal, that depend on a dimension of layer 3."""
    own = cube.sel(layer=[0, 3]).compute()
    noise = np.random.default_rng(0).standard_normal(own.sizes["sample"])
    value = own.pooled.sel(layer=3).isel(hidden=0).values + noise
    ranks = np.argsort(np.argsort(value)) * LEVELS // len(value)
    return own.assign_coords(rating=("sample", ranks, {"label": True}))


@pytest.fixture(scope="module")
def result(rated: xr.Dataset) -> xr.Dataset:
    return actkit.regression_probe(rated, **QUICK)


@pytest.mark.parametrize("name", ["layer", "tfidf", "length"])
def test_r2_and_spearman_are_those_of_scikit_learn_and_scipy(
    rated: xr.Dataset, result: xr.Dataset, name: str
) -> None:
    rows = np.flatnonzero(rated.language.values == "arabic")
    rows = rows[np.argsort(rated.sample_id.values[rows].astype(str))]
    labels, groups = rated.rating.values[rows].astype(float), rated.image_id.values[rows]
    cut = list(GroupKFold(5, shuffle=True, random_state=0).split(labels, groups=groups))
    own, suffix = result.sel(language="arabic", layer=3), "" if name == "layer" else f"_{name}"
    if name == "tfidf":
        inputs: Any = rated.text.values[rows]
        vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True)
        pipeline = make_pipeline(vectorizer, Ridge(1.0, solver="sparse_cg", tol=1e-12))
    else:
        inputs = rated.pooled.sel(layer=3).values[rows].astype(np.float64)
        inputs = inputs if name == "layer" else rated.n_tokens.values[rows, None].astype(float)
        pipeline = make_pipeline(StandardScaler(), Ridge(HIDDEN if name == "layer" else 1.0))
    predicted = cross_val_predict(pipeline, inputs, labels, cv=cut)
    mean = cross_val_predict(DummyRegressor(), labels[:, None], labels, cv=cut)
    r2 = 1 - np.square(labels - predicted).sum() / np.square(labels - mean).sum()
    assert own[f"r2{suffix}"].item() == pytest.approx(r2, abs=1e-6 if name == "tfidf" else 1e-9)
    rounded = np.round(predicted, 9)
    correlations = [spearmanr(rounded[test], labels[test]).statistic for _, test in cut]
    assert own[f"spearman{suffix}"].item() == pytest.approx(np.mean(correlations), abs=1e-9)


def test_ratings_are_predicted_where_they_are_represented(result: xr.Dataset) -> None:
    assert result.r2.dims == ("language", "layer")
    assert result.n.values.tolist() == [60, 60]
    for measure in ("r2", "spearman"):
        assert (result[f"{measure}_low"].sel(layer=3) > 0).all()
        assert (result[f"{measure}_p"].sel(layer=3) == 0.05).all()
        np.testing.assert_allclose(result[f"{measure}_p_holm"].sel(layer=3), 2 * 0.05)
        assert (result[f"{measure}_low"] <= result[measure]).all()
        assert (result[f"{measure}_high"] >= result[measure]).all()
        adds = result[measure] - result[f"{measure}_length"]
        xr.testing.assert_allclose(result[f"{measure}_difference"].sel(baseline="length", drop=True), adds)


def test_scale_offset_and_order_change_nothing(rated: xr.Dataset, result: xr.Dataset) -> None:
    other = rated.assign_coords(rating=("sample", rated.rating.values * -1e3 + 1e6, {"label": True}))
    order = np.random.default_rng(0).permutation(rated.sizes["sample"])
    found = actkit.regression_probe(other.isel(sample=order), **QUICK)
    names = [name for name in result.data_vars if "_p" not in str(name) and "bound" not in str(name)]
    xr.testing.assert_allclose(found.sel(language=result.language)[names], result[names], rtol=1e-6)


def test_residuals_are_those_of_linear_regressions() -> None:
    cube = confounded_cube(120, seed=1)
    found = actkit.regression_probe(
        cube, by="rating", cluster=None, residualized_on="length", permutations=2, seeds=1
    )
    vectors, labels = cube.pooled.values[1], cube.rating.values
    lengths = Covariates(("length",), cube.n_tokens.values, [])
    errors = squares = 0.0
    for train, test in GroupKFold(5, shuffle=True, random_state=0).split(labels, groups=np.arange(120)):
        basis = lengths.basis(train, test)
        both = np.column_stack([vectors, labels])
        regression = LinearRegression(fit_intercept=False).fit(basis.train, both[train])
        rest = both[train] - regression.predict(basis.train), both[test] - regression.predict(basis.test)
        pipeline = make_pipeline(StandardScaler(), Ridge(8)).fit(rest[0][:, :-1], rest[0][:, -1])
        errors += np.square(rest[1][:, -1] - pipeline.predict(rest[1][:, :-1])).sum()
        squares += np.square(rest[1][:, -1]).sum()
    assert found.r2.sel(layer=1).item() == pytest.approx(1 - errors / squares, abs=1e-9)


def test_residuals_remove_what_acts_through_length() -> None:
    cube = confounded_cube(300, seed=0)
    options: dict[str, Any] = {**QUICK, "cluster": None}
    plain = actkit.regression_probe(cube, **options)
    assert (plain.r2_low > 0.2).all()
    found = actkit.regression_probe(cube, residualized_on=["length"], **options)
    assert found.r2.sel(layer=0) < 0.02
    assert found.r2_p.sel(layer=0) > 0.05
    assert found.spearman_p.sel(layer=0) > 0.05
    assert found.r2_low.sel(layer=1) > 0.3
    assert found.spearman_p.sel(layer=1) <= 0.05
    assert found.attrs["residualized_on"] == "length"
    order = np.random.default_rng(1).permutation(300)
    xr.testing.assert_allclose(
        actkit.regression_probe(cube.isel(sample=order), residualized_on=["length"], **options), found
    )


BAD: list[tuple[dict[str, Any], str]] = [
    ({"by": "gender"}, r"by: `gender` does not hold numbers .* actkit\.classification_probe"),
    ({"folds": 61}, "english: there are 60 clusters, too few for 61 folds"),
    ({"residualized_on": "words"}, "residualized_on: 'words' is unknown"),
    ({"permutations": 0}, "permutations: is 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_invalid_options_are_errors(rated: xr.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        actkit.regression_probe(rated, **{**QUICK, **options})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(120), "all values of `rating` are equal"),
        (np.where(np.arange(120) < 30, np.arange(120.0), np.nan), "but 20 are needed"),
        (np.full(120, np.nan), "no sample has a value of `rating`"),
        (np.where(np.arange(120) < 1, np.inf, 1.0), "holds an infinite number"),
    ],
)
def test_labels_without_information_are_errors(rated: xr.Dataset, values: np.ndarray, message: str) -> None:
    cube = rated.assign_coords(rating=("sample", values, {"label": True}))
    with pytest.raises(InputError, match=message):
        actkit.regression_probe(cube, **QUICK)
