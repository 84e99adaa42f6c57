"""Samples with NaN or Inf values are excluded from every analysis, at all layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import actkit
from actkit import plots
from actkit.errors import InputError, NonfiniteError

BAD = {3: [7], 2: [7, 22]}  # layer to samples
Analysis = Callable[[xr.Dataset], Any]
_MATRICES = ("mean", "transform_matrix", "inverse_matrix", "samples")
ANALYSES: dict[str, Analysis] = {
    "layer_norms": lambda cube: actkit.layer_norms(cube, resamples=20),
    "layer_norms by": lambda cube: actkit.layer_norms(cube, by="gender", resamples=20),
    "layer_updates": lambda cube: actkit.layer_updates(cube, resamples=20),
    "massive_activations": actkit.massive_activations,
    "cka": actkit.cka,
    "cka of last": lambda cube: actkit.cka(cube, vectors="last"),
    "cka of tokens": lambda cube: actkit.cka(cube, vectors="tokens", max_sampled_tokens=10**6),
    "cka of two": lambda cube: actkit.cka(cube, cube.isel(layer=[0, 1])),
    "adjacent_cka": actkit.adjacent_cka,
    "adjacent_cka of tokens": lambda cube: actkit.adjacent_cka(cube, vectors="tokens"),
    "language_cka": actkit.language_cka,
    "transitions": actkit.transitions,
    "group_differential": lambda cube: actkit.group_differential(
        cube, by="gender", permutations=2, folds=2, seeds=1
    ),
    "classification_probe": lambda cube: actkit.classification_probe(
        cube, by="gender", permutations=2, folds=2, seeds=1
    ),
    "regression_probe": lambda cube: actkit.regression_probe(
        cube.assign_coords(rating=cube.n_tokens * 0.5), by="rating", permutations=2, folds=2, seeds=1
    ),
    "direction_cosines": lambda cube: actkit.direction_cosines(cube, by="gender"),
    "transfer": lambda cube: actkit.transfer(cube, by="gender", folds=2, seeds=1),
    "erasure_probe": lambda cube: actkit.erasure_probe(cube, by="gender", folds=2),
    "similarity": lambda cube: actkit.similarity(cube, permutations=3),
    "similarity, rsa": lambda cube: actkit.similarity(cube, measure="rsa", permutations=3),
    "similarity, mutual_knn": lambda cube: actkit.similarity(cube, measure="mutual_knn", permutations=3),
    "similarity, procrustes": lambda cube: actkit.similarity(cube, measure="procrustes", permutations=3),
    "intrinsic_dimension": actkit.intrinsic_dimension,
    "anisotropy": lambda cube: actkit.anisotropy(cube, cluster="gender"),
    "top_activating": lambda cube: actkit.top_activating(cube, layer=3, hidden=1),
    "layer_subset": lambda cube: actkit.layer_subset(actkit.adjacent_cka, cube, layers=(0, 1, 4)),
    "Eraser": lambda cube: actkit.Eraser.fit(cube, by="gender").maps,
    "Whitener": lambda cube: actkit.Whitener.fit(cube, layer=3),
    "Whitener of last": lambda cube: actkit.Whitener.fit(cube, layer=3, vectors="last"),
    "projection": lambda cube: plots.projection(cube, 3),
}


def _spoilt(cube: xr.Dataset, value: float, *, counted: bool) -> xr.Dataset:
    """Put a non-finite value into some samples, as an overflowing model does."""
    result = cube.compute().copy(deep=True)
    for layer, samples in BAD.items():
        for sample in samples:
            result["residual"][layer, sample, 1, 1] = value
            result["norm"][layer, sample, 1] = value
            result["pooled"][layer, sample, 1] = value
            result["last"][layer, sample, 1] = value
            result["nonfinite"][layer, sample] = int(counted)
    return result


def _without(cube: xr.Dataset) -> xr.Dataset:
    return cube.isel(sample=[at for at in range(cube.sizes["sample"]) if at not in (7, 22)])


def _computed(result: Any) -> Any:
    return result.compute() if isinstance(result, xr.Dataset) else result


def _same(one: Any, two: Any) -> None:
    if isinstance(one, xr.Dataset):
        xr.testing.assert_identical(one.compute(), two.compute())
    elif isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, two)
    elif isinstance(one, actkit.Whitener):
        for name in _MATRICES:
            assert np.array_equal(getattr(one, name), getattr(two, name))
    else:
        for ours, theirs in zip(one, two, strict=True):
            pd.testing.assert_frame_equal(ours.dframe(), theirs.dframe())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*samples contain NaN or Inf")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        # one of the two each, in turn; both at night
        pytest.param(name, value, marks=() if (at + number) % 2 else pytest.mark.nightly)
        for at, name in enumerate(ANALYSES)
        for number, value in enumerate([np.inf, np.nan])
    ],
)
def test_results_equal_those_without_the_samples(cube: xr.Dataset, name: str, value: float) -> None:
    _same(ANALYSES[name](_spoilt(cube, value, counted=True)), ANALYSES[name](_without(cube.compute())))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.nightly if at % 3 else ()) for at, name in enumerate(ANALYSES)],
)
def test_one_warning_names_number_layers_and_remedy(cube: xr.Dataset, name: str) -> None:
    message = (
        r"^2 of 120 samples contain NaN or Inf values at layers 2-3 and are excluded; "
        r"cube.sel\(layer=\[0, 1, 4\]\) keeps all samples$"
    )
    spoilt = _spoilt(cube, np.inf, counted=True)
    with pytest.warns(UserWarning, match=message) as caught:
        ANALYSES[name](spoilt)
    assert len([warning for warning in caught if "NaN or Inf" in str(warning.message)]) == (
        1 if name != "cka of two" else len(caught)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lazy"),
    [
        # each third, half of these of a lazy cube; all at night
        pytest.param(name, lazy, marks=pytest.mark.nightly if (at + 3 * lazy) % 6 else ())
        for at, name in enumerate(ANALYSES)
        for lazy in (False, True)
    ],
)
def test_uncounted_nonfinite_values_are_an_error(cube: xr.Dataset, name: str, lazy: bool) -> None:
    spoilt = _spoilt(cube, -np.inf, counted=False)
    with pytest.raises(
        NonfiniteError, match=r"`\w+` contains NaN or Inf values.* that `nonfinite` does not count"
    ):
        _computed(ANALYSES[name](spoilt.chunk(sample=16) if lazy else spoilt))


@pytest.mark.slow
def test_layers_without_such_values_keep_all_samples(cube: xr.Dataset) -> None:
    chosen = _spoilt(cube, np.nan, counted=True).sel(layer=[0, 1, 4])
    _same(actkit.cka(chosen), actkit.cka(cube.compute().sel(layer=[0, 1, 4])))


def test_no_sample_left_is_an_error(cube: xr.Dataset) -> None:
    spoilt = cube.assign(nonfinite=cube.nonfinite.compute() + 1)
    message = r"^all 120 samples contain NaN or Inf values at layers 0-4; extract it again in bfloat16"
    with pytest.raises(NonfiniteError, match=message):
        actkit.layer_norms(spoilt)


def test_values_set_to_0_are_finite(cube: xr.Dataset) -> None:
    zeroed = _spoilt(cube, 0, counted=True).assign_attrs(options='{"on_nonfinite": "zero"}')
    assert actkit.cka(zeroed).n.values.tolist() == [60, 60]


@pytest.mark.slow
def test_report_lists_excluded_samples(cube: xr.Dataset, tmp_path: Path) -> None:
    spoilt = _spoilt(cube, np.nan, counted=True).sel(layer=[0, 1, 2])
    page = actkit.report(spoilt, out=tmp_path / "report.html", by="gender").read_text(encoding="utf-8")
    assert page.count("2 of 120 samples contain NaN or Inf values at layers 2 and are excluded") == 1
    assert "118 samples" in page


def test_no_content_token_at_all_has_a_message_of_its_own(cube: xr.Dataset) -> None:
    kinds = cube.token_kind.compute().where(cube.token_kind.compute() != 3, 1)
    for name in ("cka", "cka of tokens", "adjacent_cka of tokens", "transitions", "Whitener", "projection"):
        with pytest.raises(InputError, match="no sample has a content token"):
            ANALYSES[name](cube.assign_coords(token_kind=kinds))
    arabic = kinds.where(cube.language == "arabic", cube.token_kind.compute())
    with pytest.warns(UserWarning, match="60 of 120 samples have no content token.*none remain in arabic$"):
        actkit.cka(cube.assign_coords(token_kind=arabic))
