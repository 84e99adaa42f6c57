"""Any selected, dropped, renamed, copied or concatenated cube gives a result or an error with a hint."""

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import actkit
from actkit import plots
from actkit.canonical import Cube
from actkit.errors import ActkitError, InputError

Change = Callable[[xr.Dataset], xr.Dataset]


def white(cube: xr.Dataset) -> xr.DataArray:
    whitener = actkit.Whitener.fit(cube, layer=3, shrinkage="ledoit-wolf")
    return whitener.transform(cube)


def mean(cube: xr.Dataset) -> xr.DataArray:
    fitted = actkit.Whitener.fit(cube, layer=3, shrinkage="ledoit-wolf", vectors="pooled")
    return xr.DataArray(fitted.mean, dims="hidden")


NOT_THIRD = ~actkit.TokenFilter(strings="ن3")
FEW_FITS = {"resamples": 1, "permutations": 3}
FEW = {"folds": 2, "seeds": 1}


def rated(cube: Cube) -> xr.Dataset:
    """Add a numeric label, which no run of the tests has."""
    if not isinstance(cube, xr.Dataset):
        cube = actkit.open_cube(cube)
    if "n_tokens" not in cube.coords:
        return cube
    return cube.assign_coords(rating=(cube.n_tokens * 0.5).assign_attrs(label=True))


def erased(cube: xr.Dataset) -> xr.DataArray:
    return actkit.Eraser.fit(cube, by="gender", shrinkage="ledoit-wolf").transform(cube).pooled


CALLS: dict[str, Callable[[xr.Dataset], Any]] = {
    "Eraser": erased,
    "Whitener": white,
    "Whitener.pooled": mean,
    "adjacent_cka": actkit.adjacent_cka,
    "adjacent_cka.tokens": lambda cube: actkit.adjacent_cka(cube, vectors="tokens"),
    "anisotropy": lambda cube: actkit.anisotropy(cube, cluster="image_id"),
    "anisotropy.tokens": lambda cube: actkit.anisotropy(cube, tokens=NOT_THIRD),
    "cka": actkit.cka,
    "cka.batch": lambda cube: actkit.cka(cube, batch=20),
    "cka.tokens": lambda cube: actkit.cka(cube, vectors="tokens"),
    "cka.two": lambda cube: actkit.cka(cube, cube, match="text"),
    "classification_probe": lambda cube: actkit.classification_probe(
        cube, by="gender", residualized_on="length", permutations=2, **FEW
    ),
    "cluster_samples": lambda cube: actkit.cluster_samples(cube, k=2, by="gender", **FEW_FITS),
    "cluster_tokens": lambda cube: actkit.cluster_tokens(cube, k=2, **FEW_FITS),
    "dense_vectors": actkit.dense_vectors,
    "direction_cosines": lambda cube: actkit.direction_cosines(cube, by="gender", splits=3),
    "erasure_probe": lambda cube: actkit.erasure_probe(cube, by="gender", folds=2),
    "feature_differential": lambda cube: actkit.feature_differential(
        cube, by="gender", permutations=9, splits=0
    ),
    "feature_map": lambda cube: actkit.feature_map(cube, layer=3, k=2),
    "feature_rates": lambda cube: actkit.feature_rates(cube, by="gender"),
    "group_directions": lambda cube: actkit.group_directions(cube, by="gender"),
    "group_differential": lambda cube: actkit.group_differential(cube, by="gender", permutations=2, **FEW),
    "intrinsic_dimension": lambda cube: actkit.intrinsic_dimension(cube, cluster="image_id"),
    "language_cka": actkit.language_cka,
    "layer_norms": lambda cube: actkit.layer_norms(cube, resamples=20),
    "layer_norms.by": lambda cube: actkit.layer_norms(cube, by="gender", resamples=20),
    "layer_norms.first": lambda cube: actkit.layer_norms(cube, tokens="first", resamples=20),
    "layer_updates": lambda cube: actkit.layer_updates(cube, resamples=20),
    "massive_activations": actkit.massive_activations,
    "layer_subset": lambda cube: actkit.layer_subset(actkit.massive_activations, cube, layers=(0, 3)),
    "plots.projection": lambda cube: plots.projection(cube, 3, by="gender"),
    "plots.tokens": lambda cube: plots.tokens(cube, 4),
    "regression_probe": lambda cube: actkit.regression_probe(rated(cube), by="rating", permutations=2, **FEW),
    "select_tokens": lambda cube: actkit.select_tokens(cube, NOT_THIRD).is_selected_token,
    "similarity": lambda cube: actkit.similarity(cube, permutations=3),
    "similarity.languages": lambda cube: actkit.similarity(cube, across="language", permutations=3),
    "similarity.mutual_knn": lambda cube: actkit.similarity(
        cube, measure="mutual_knn", cluster="image_id", permutations=3
    ),
    "similarity.procrustes": lambda cube: actkit.similarity(cube, measure="procrustes", permutations=3),
    "similarity.two": lambda cube: actkit.similarity(cube, cube, match="text", measure="rsa", permutations=3),
    "token_correlation": actkit.token_correlation,
    "token_correlation.norm": lambda cube: actkit.token_correlation(cube, of="norm"),
    "token_strings": lambda cube: actkit.token_strings(cube, 4),
    "top_activating": lambda cube: actkit.top_activating(cube, layer=3, hidden=3, count=5),
    "transfer": lambda cube: actkit.transfer(cube, by="gender", **FEW),
    "transitions": actkit.transitions,
}
NO_CUBE = {"Config", "RunPlan", "TokenFilter", "export", "extract", "holm", "import_files", "open_cube"}
NO_CUBE |= {"extend", "join", "plan", "pull", "push", "report", "seal", "verify"}
NO_CUBE |= {
    "CrossEntropy",
    "LogitDifference",
    "Refusal",
    "RefusalRate",
    "SaeSet",
    "cut_share",
    "best_layers",
    "load_saes",
    "match_features",
    "training_log",
}
# what also needs autoencoders or a model is tested with them
NO_CUBE |= {"ablate", "check_saes", "encode", "logit_lens", "patch", "sae_quality", "steer", "train_saes"}

# selections by one label, and the same by a list of it
SINGLE: dict[str, tuple[Change, Change]] = {
    "layer": (lambda cube: cube.sel(layer=3), lambda cube: cube.sel(layer=[3])),
    "sample": (lambda cube: cube.isel(sample=4), lambda cube: cube.isel(sample=[4])),
    "token": (lambda cube: cube.isel(token=1), lambda cube: cube.isel(token=[1])),
    "hidden": (lambda cube: cube.isel(hidden=3), lambda cube: cube.isel(hidden=[3])),
    "layer and sample": (
        lambda cube: cube.isel(layer=3, sample=4),
        lambda cube: cube.isel(layer=[3], sample=[4]),
    ),
    "all": (
        lambda cube: cube.isel(layer=3, sample=4, token=1, hidden=3),
        lambda cube: cube.isel(layer=[3], sample=[4], token=[1], hidden=[3]),
    ),
    "language": (
        lambda cube: cube.swap_dims(sample="language").sel(language="english"),
        lambda cube: cube.isel(sample=(cube.language == "english").values),
    ),
    "sample_id": (
        lambda cube: cube.swap_dims(sample="sample_id").sel(sample_id="image-0002"),
        lambda cube: cube.isel(sample=(cube.sample_id == "image-0002").values),
    ),
}
# what changes nothing that is computed
SAME: dict[str, Change] = {
    "transposed": lambda cube: cube.transpose("hidden", "token", "sample", "layer", ...),
    "chunked": lambda cube: cube.chunk(sample=7, layer=2),
    "fixed strings": lambda cube: cube.assign_coords(
        {name: cube[name].astype("U") for name in ("language", "sample_id", "text", "gender", "token_text")}
    ),
    "strings of NumPy": lambda cube: cube.assign_coords(
        {
            name: (cube[name].dims, cube[name].values.astype(np.dtypes.StringDType()), cube[name].attrs)
            for name in ("language", "sample_id", "text", "gender", "image_id", "token_text")
        }
    ),
    "lazy coordinates": lambda cube: cube.assign_coords(
        {name: cube[name].chunk() for name in ("language", "gender", "n_tokens", "sample_id")}
    ),
    "no numbers": lambda cube: cube.drop_vars("sample"),
    "a level of an index": lambda cube: cube.set_index(sample=["language", "sample_id"]),
    "floats": lambda cube: cube.assign_coords(
        token_kind=cube.token_kind.where(cube.token_kind != 0), has_residual=cube.has_residual.astype(float)
    ),
    "bytes": lambda cube: cube.assign_coords(
        {
            name: (cube[name].dims, cube[name].values.astype("S"), cube[name].attrs)
            for name in ("language", "gender")
        }
    ),
}
# what may be answered or not, but not by an error of another library
ODD: dict[str, Change] = {
    **{
        f"no {name}": (lambda cube, name=name: cube.drop_vars(name))
        for name in (  # type: ignore[misc]
            "batch",
            "committed",
            "embedding",
            "gender",
            "has_residual",
            "image_id",
            "language",
            "last",
            "layer",
            "n_tokens",
            "norm",
            "pooled",
            "residual",
            "sample_id",
            "text",
            "token",
            "token_id",
            "token_kind",
            "token_text",
            "truncated",
        )
    },
    "no coordinates": lambda cube: cube.reset_coords(drop=True),
    "no layer at all": lambda cube: cube.isel(layer=3, drop=True),
    "no sample at all": lambda cube: cube.isel(sample=4, drop=True),
    "no token at all": lambda cube: cube.isel(token=1, drop=True),
    "no attributes": lambda cube: cube.drop_attrs(),
    "renamed samples": lambda cube: cube.rename(sample="prompt"),
    "renamed layers": lambda cube: cube.rename(layer="block"),
    "renamed tokens": lambda cube: cube.rename(token="position"),
    "renamed dimensions": lambda cube: cube.rename_dims(sample="prompt"),
    "stacked": lambda cube: cube.stack(place=("sample", "token")),
    "empty layers": lambda cube: cube.isel(layer=[]),
    "empty samples": lambda cube: cube.isel(sample=[]),
    "empty tokens": lambda cube: cube.isel(token=[]),
    "two samples": lambda cube: cube.isel(sample=[0, 1]),
    "two layers": lambda cube: cube.isel(layer=[1, 3]),
    "some tokens": lambda cube: cube.isel(token=slice(3, None)),
    "one variable": lambda cube: cube[["pooled"]],
    "mean over layers": lambda cube: cube.mean("layer"),
    "twice": lambda cube: xr.concat([cube, cube], "sample"),
}


@pytest.fixture(scope="module")
def whole(planted_run: Path) -> xr.Dataset:
    """The cube in memory, with features, which are the positive dimensions of the residual stream."""
    cube = actkit.open_cube(planted_run).load()
    value = cube.residual.rename(hidden="k").clip(min=0).fillna(0).astype(np.float32)
    index = xr.zeros_like(value, dtype=np.uint16) + xr.DataArray(np.arange(12, dtype=np.uint16), dims="k")
    return cube.assign(feature_value=value, feature_index=index).assign_attrs(n_features=12)


def outcome(name: str, cube: xr.Dataset) -> Any:
    """Return the computed result of a call, or its ActkitError; any other error is a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            found = CALLS[name](cube)
            return found.compute() if isinstance(found, xr.Dataset | xr.DataArray) else found
        except ActkitError as error:
            return error


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted), (found, wanted)
    if isinstance(wanted, xr.Dataset | xr.DataArray):
        xr.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    elif isinstance(wanted, pd.DataFrame):
        pd.testing.assert_frame_equal(found, wanted, check_like=True)
    elif isinstance(wanted, ActkitError | list):
        assert str(found) == str(wanted)


def some(name: str, changes: dict[str, Any], every: bool) -> dict[str, Any]:
    """Return each sixth change, from call to call another one, or all of them."""
    first = list(CALLS).index(name)
    return {change: act for at, (change, act) in enumerate(changes.items()) if every or (first + at) % 6 == 0}


def marked(names: Iterable[str]) -> pytest.MarkDecorator:
    """Return a test's parameter `name`; most of the calls are slow."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=() if name in FAST else slow) for name in names]
    )


FAST = ("cka", "layer_norms", "top_activating")
NAMES = marked(CALLS)
OF_FEATURES = ("dense_vectors", "feature_differential", "feature_map", "feature_rates")
EVERY = pytest.mark.parametrize(
    "every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["some", "all"]
)


def test_every_public_function_that_takes_a_cube_is_called() -> None:
    assert {name.split(".")[0] for name in CALLS} - {"plots"} == set(actkit.__all__) - NO_CUBE


@EVERY
@NAMES
def test_one_label_is_a_list_of_it(whole: xr.Dataset, name: str, every: bool) -> None:
    for selection, (single, several) in some(name, SINGLE, every).items():
        assert_same(outcome(name, single(whole)), outcome(name, several(whole))), selection


@EVERY
@NAMES
def test_form_changes_nothing(whole: xr.Dataset, name: str, every: bool) -> None:
    wanted = outcome(name, whole)
    assert not isinstance(wanted, ActkitError)
    for change in some(name, SAME, every).values():
        assert_same(outcome(name, change(whole)), wanted)


@EVERY
@NAMES
def test_missing_variables_are_reported(whole: xr.Dataset, name: str, every: bool) -> None:
    for change in some(name, ODD, every).values():
        outcome(name, change(whole))


COUNTS: dict[str, Callable[[xr.Dataset, Any], Any]] = {
    "batch": lambda cube, n: actkit.cka(cube, batch=n),
    "count": lambda cube, n: actkit.top_activating(cube, layer=3, hidden=3, count=n),
    "folds": lambda cube, n: actkit.transfer(cube, by="gender", folds=n),
    "folds of differences": lambda cube, n: actkit.group_differential(cube, by="gender", folds=n),
    "k": lambda cube, n: actkit.similarity(cube, k=n),
    "max_sampled_tokens": lambda cube, n: actkit.cka(cube, vectors="tokens", max_sampled_tokens=n),
    "permutations": lambda cube, n: actkit.group_differential(cube, by="gender", permutations=n),
    "permutations of samples": lambda cube, n: actkit.similarity(cube, permutations=n),
    "resamples": lambda cube, n: actkit.layer_norms(cube, resamples=n),
    "resamples of updates": lambda cube, n: actkit.layer_updates(cube, resamples=n),
    "seeds": lambda cube, n: actkit.transfer(cube, by="gender", seeds=n),
    "splits": lambda cube, n: actkit.direction_cosines(cube, by="gender", splits=n),
}


@pytest.mark.parametrize("wrong", [-1, 2.5, "3", True])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_positive_integers(whole: xr.Dataset, name: str, wrong: Any) -> None:
    with pytest.raises(InputError, match=f"{name.split()[0]}: is {wrong!r}"):
        COUNTS[name](whole, wrong)
