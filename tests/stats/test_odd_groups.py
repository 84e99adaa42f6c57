"""Empty, single or identical groups, languages and samples give a result or one clear error."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit import plots
from actkit.errors import ActkitError

N = 48


def _labelled(cube: xr.Dataset, values: list[str]) -> xr.Dataset:
    return cube.assign_coords(g=("sample", np.array(values, dtype=object), {"label": True}))


def _halves(
    cube: xr.Dataset, languages: tuple[str, ...] = ("english", "arabic"), other: str = ""
) -> list[str]:
    own = cube.language.values.tolist()
    return ["ab"[at // 2 % 2] if language in languages else other for at, language in enumerate(own)]


CUBES: dict[str, Callable[[xr.Dataset], xr.Dataset]] = {
    "a group in one language": lambda c: _labelled(c, _halves(c, ("english",), "c")),
    "disjoint groups": lambda c: _labelled(
        c, ["ab"[name == "arabic"] for name in c.language.values.tolist()]
    ),
    "no label": lambda c: _labelled(c, [""] * N),
    "no label in a language": lambda c: _labelled(c, _halves(c, ("english",))),
    "a group of one": lambda c: _labelled(c, ["z", *_halves(c)[1:]]),
    "one group": lambda c: _labelled(c, ["a"] * N),
    "groups of one": lambda c: _labelled(c, [f"v{at}" for at in range(N)]).isel(sample=slice(0, 16)),
    "a language of one": lambda c: _labelled(c, _halves(c)).isel(sample=[*range(0, N, 2), 1]),
    "one sample": lambda c: _labelled(c, _halves(c)).isel(sample=[0]),
    "no sample": lambda c: _labelled(c, _halves(c)).isel(sample=[]),
    "one layer": lambda c: _labelled(c, _halves(c)).isel(layer=[2]),
    "nothing differs": lambda c: _labelled(c, _halves(c)).map(lambda x: xr.where(x.notnull(), 1, x)),
}
CALLS: dict[str, Callable[[xr.Dataset], Any]] = {
    "layer_norms": lambda c: actkit.layer_norms(c, by="g", resamples=5),
    "layer_updates": lambda c: actkit.layer_updates(c, by="g", resamples=5),
    "layer_subset": lambda c: actkit.layer_subset(actkit.layer_norms, c, layers=(2, 3), by="g", resamples=5),
    "massive_activations": actkit.massive_activations,
    "cka": lambda c: actkit.cka(c, cluster="g"),
    "adjacent_cka": lambda c: actkit.adjacent_cka(c, cluster="g"),
    "adjacent_cka of tokens": lambda c: actkit.adjacent_cka(c, vectors="tokens", cluster="g"),
    "language_cka": actkit.language_cka,
    "transitions": lambda c: actkit.transitions(c, cluster="g"),
    "group_differential": lambda c: actkit.group_differential(
        c, by="g", cluster=None, permutations=5, folds=2, seeds=1
    ),
    "classification_probe": lambda c: actkit.classification_probe(
        c, by="g", cluster=None, matched_on="length", permutations=5, folds=2, seeds=1
    ),
    "regression_probe": lambda c: actkit.regression_probe(
        c.assign_coords(rating=c.n_tokens), by="rating", cluster=None, permutations=5, folds=2, seeds=1
    ),
    "direction_cosines": lambda c: actkit.direction_cosines(c, by="g", cluster=None, splits=2),
    "transfer": lambda c: actkit.transfer(c, by="gender", across="g", cluster=None, folds=2),
    "Eraser": lambda c: actkit.Eraser.fit(c, by="g", cluster="image_id").transform(c),
    "similarity": lambda c: actkit.similarity(c, cluster="g", permutations=3),
    "similarity of languages": lambda c: actkit.similarity(
        c, across="language", measure="procrustes", cluster=None, permutations=3
    ),
    "intrinsic_dimension": lambda c: actkit.intrinsic_dimension(c, cluster="g"),
    "anisotropy": lambda c: actkit.anisotropy(c, cluster="g"),
    "projection": lambda c: plots.projection(c, 2, by="g"),
    "plot of layer_norms": lambda c: plots.layer_norms(actkit.layer_norms(c, by="g", resamples=5)),
    "plot of layer_updates": lambda c: plots.layer_updates(actkit.layer_updates(c, by="g", resamples=5)),
    "plot of language_cka": lambda c: plots.language_cka(actkit.language_cka(c)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`g` is missing")
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.nightly)], ids=["some", "all"])
@pytest.mark.parametrize("kind", CUBES)
def test_result_or_clear_error(cube: xr.Dataset, kind: str, every: bool) -> None:
    part = CUBES[kind](cube.isel(sample=slice(0, N)))
    strange = []
    for at, (name, call) in enumerate(CALLS.items(), start=list(CUBES).index(kind)):
        if at % 6 and not every:  # from cube to cube another sixth of them
            continue
        try:
            found = call(part)
            if isinstance(found, xr.Dataset):
                found.compute()
        except ActkitError:
            continue
        except Exception as error:
            strange.append(f"{name}: {type(error).__name__}: {error}")
    assert not strange


@pytest.mark.parametrize("lazy", [True, False])
def test_norms_of_a_group_that_a_language_lacks_are_nan(cube: xr.Dataset, lazy: bool) -> None:
    part = CUBES["a group in one language"](cube.isel(sample=slice(0, N)))
    found = actkit.layer_norms(part if lazy else part.compute(), by="g", resamples=50).compute()
    assert found.n_tokens.sel(language="english", g="c").values.tolist() == [0] * 5
    assert found["mean"].sel(language="english", g="c").isnull().all()
    alone = actkit.layer_norms(part.isel(sample=part.language.values == "english"), by="g", resamples=50)
    xr.testing.assert_allclose(
        found.sel(language="english", g=["a", "b"]), alone.sel(language="english").compute()
    )


def test_no_value_of_a_label_has_a_message(cube: xr.Dataset) -> None:
    part = CUBES["no label"](cube.isel(sample=slice(0, N)))
    for name in ("layer_norms", "group_differential", "direction_cosines", "transfer"):
        with pytest.raises(ActkitError, match="no sample has a value of `g`"):
            CALLS[name](part)
