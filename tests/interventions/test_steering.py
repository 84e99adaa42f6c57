"""Directions as interventions: against edited weights, and against the model's own head."""

from itertools import combinations
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import torch
import transformers as tf
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.extraction.models.hook_points import find_hook_points
from actkit.interventions.direction_edits import ablated

TEXTS = [
    f"{word} went to the {place}" for word in ("He", "She") for place in ["house", "river", "school", "town"]
]


def their_logits(model: Any, cube: xr.Dataset) -> torch.Tensor:
    """Return the logits of transformers after the last token of each prompt, one prompt at a time."""
    rows = []
    with torch.no_grad():
        for ids, length in zip(cube.token_id.values, cube.n_tokens.values, strict=True):
            rows.append(model(torch.from_numpy(ids[None, :length].astype(np.int64))).logits[0, -1])
    return torch.stack(rows)


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight prompts of two groups, in pairs."""
    folder = tmp_path_factory.mktemp("steering")
    lines = [
        f"{at % 4 * 2 + at // 4},{text},{('male', 'female')[at // 4]},p{at % 4}"
        for at, text in enumerate(TEXTS)
    ]
    (folder / "data.csv").write_text("sample_id,text,gender,pair\n" + "\n".join(lines) + "\n")
    options: Any = {"layers": "all", "listeners": []}
    actkit.extract(model=str(tiny_model), data=str(folder / "data.csv"), out=str(folder / "run"), **options)
    return folder / "run"


@pytest.fixture(scope="module")
def directions(run: Path) -> xr.Dataset:
    return (
        actkit.group_directions(run, by="gender", cluster="pair", vectors="last").isel(language=0).compute()
    )


def first_logit(logits: torch.Tensor) -> torch.Tensor:
    """Return the logit of one token, as a metric."""
    return logits[:, 5]


def test_directions_are_differences_of_means_of_one_half(run: Path, directions: xr.Dataset) -> None:
    cube = actkit.open_cube(run)
    every = actkit.group_directions(run, by="gender", cluster="pair", vectors="last", fit="all").isel(
        language=0
    )
    means = [cube["last"].values[:, cube.gender.values == name].mean(axis=1) for name in ("female", "male")]
    np.testing.assert_allclose(every.direction, means[1] - means[0], atol=1e-6)
    np.testing.assert_allclose(every.norm, np.linalg.norm(means[1] - means[0], axis=1), rtol=1e-5)
    assert every.n.values.tolist() == [4, 4]
    assert directions.n.values.tolist() == [2, 2]
    assert directions.attrs["cluster"] == "pair"
    assert directions.attrs["between"] == "female to male"


def test_ablation_equals_weights_that_cannot_write_the_direction(
    run: Path, directions: xr.Dataset, tiny_model: Path
) -> None:
    only = directions.sel(layer=1)
    steered = actkit.steer(run, only, metric=first_logit, model=tiny_model, controls=0, progress=False)
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    np.testing.assert_allclose(steered.intact, their_logits(model, actkit.open_cube(run))[:, 5], atol=1e-5)
    unit = torch.from_numpy(directions.direction.sel(layer=1).values.astype(np.float32))
    unit = unit / unit.norm()
    away = torch.eye(len(unit)) - torch.outer(unit, unit)
    with torch.no_grad():
        if model.lm_head.weight is model.model.embed_tokens.weight:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ away)
        for block in model.model.layers:
            for linear in (block.self_attn.o_proj, block.mlp.down_proj):
                linear.weight.copy_(away @ linear.weight)
    expected = their_logits(model, actkit.open_cube(run))[:, 5]
    np.testing.assert_allclose(steered.value.isel(layer=0, scale=0, direction=0), expected, atol=1e-5)
    assert np.abs(steered.value.isel(layer=0, scale=0, direction=0) - steered.intact).max() > 1e-3


@pytest.mark.parametrize("mode", ["add", "clamp"])
def test_an_edit_of_the_last_layer_is_what_the_head_says_of_it(
    mode: Any, run: Path, directions: xr.Dataset, tiny_model: Path
) -> None:
    steered = actkit.steer(
        run, directions, metric=first_logit, mode=mode, layers=[2], scale=[0, 1.5], controls=2, progress=False
    )
    cube = actkit.open_cube(run)
    vectors = torch.from_numpy(cube.residual.sel(layer=2).values[np.arange(8), cube.n_tokens.values - 1])
    table = directions.sel(layer=2)
    direction, first = (
        torch.from_numpy(table[name].values.astype(np.float32)) for name in ("direction", "mean")
    )
    first = first[0]
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for at, scale in enumerate([0, 1.5]):
        edited = vectors + scale * direction
        if mode == "clamp":
            unit = direction / direction.norm()
            target = (first + scale * direction) @ unit
            edited = vectors + (target - vectors @ unit)[:, None] * unit
        with torch.no_grad():
            expected = model.lm_head(model.model.norm(edited))
        value = steered.value.isel(layer=0, scale=at, direction=0)
        np.testing.assert_allclose(value, expected[:, 5], atol=1e-5)
        logs = [logits.double().log_softmax(-1) for logits in (their_logits(model, cube), expected)]
        kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        np.testing.assert_allclose(steered.kl.isel(layer=0, scale=at, direction=0), kl, atol=1e-5)
    assert steered.direction.values.tolist() == ["groups", "random 1", "random 2"]
    if mode == "add":
        np.testing.assert_array_equal(steered.kl.isel(scale=0), 0)


def test_effects_are_reported_on_clusters_that_the_direction_was_not_fitted_on(
    run: Path, directions: xr.Dataset
) -> None:
    steered = actkit.steer(run, directions, metric=first_logit, controls=1, progress=False)
    assert steered.half.values.tolist() == ["fit", "held_out"]
    assert steered.n.values.tolist() == [[2, 2], [2, 2]]
    cube = actkit.open_cube(run)
    fitted = [name for name in ["p0", "p1", "p2", "p3"] if name in _fitted(cube, directions)]
    mask = np.isin(cube.pair.values, fitted)
    for half, rows in (("fit", mask), ("held_out", ~mask)):
        value = steered.value.isel(layer=1, scale=0, direction=1).values[rows]
        male = cube.gender.values[rows] == "male"
        gap = steered.gap.sel(half=half).isel(layer=1, scale=0, direction=1)
        assert float(gap) == pytest.approx(value[male].mean() - value[~male].mean(), abs=1e-9)
    assert int(steered.chosen.sum()) == 1
    best = abs(steered.remaining.sel(half="fit").isel(direction=0))
    assert bool(steered.chosen.values.ravel()[int(best.values.argmin())])


def _fitted(cube: xr.Dataset, directions: xr.Dataset) -> set[str]:
    """Return the two pairs whose means give the direction."""
    male = cube.gender.values == "male"
    vectors = cube["last"].sel(layer=1).values
    for pairs in combinations(["p0", "p1", "p2", "p3"], 2):
        rows = np.isin(cube.pair.values, pairs)
        difference = vectors[rows & male].mean(axis=0) - vectors[rows & ~male].mean(axis=0)
        if np.allclose(difference, directions.direction.sel(layer=1), atol=1e-6):
            return set(pairs)
    raise AssertionError("no two pairs give the direction")


def test_prompts_of_other_languages_are_left_out(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options: Any = {"layers": "all", "listeners": []}
    actkit.extract(model=str(tiny_model), data=str(prompts), out=str(tmp_path / "run"), **options)
    both = actkit.group_directions(tmp_path / "run", by="gender", cluster=None, fit="all")
    english = both.sel(language="english")
    steered = actkit.steer(tmp_path / "run", english, metric=first_logit, controls=0, progress=False)
    assert set(steered.language.values) == {"english"}
    assert steered.half.values.tolist() == ["all"]


@pytest.mark.parametrize("backend", ["bokeh", "matplotlib"])
def test_pictures_show_the_held_out_half_beside_random_directions(
    backend: str, run: Path, directions: xr.Dataset
) -> None:
    actkit.plots.load_matplotlib()
    options: Any = {"metric": first_logit, "layers": [0, 2], "controls": 1, "progress": False}
    steered = actkit.steer(run, directions, mode="add", scale=[-1, 1], **options)
    by_layer, by_scale = actkit.plots.steering(steered)
    for picture, axis in ((by_layer, "layer"), (by_scale, "scale")):
        held_out = steered.change_first.sel(half="held_out")
        row, column = np.argwhere(steered.chosen.values)[0]
        fixed = {"scale": column} if axis == "layer" else {"layer": row}
        curves = [part for part in picture if part.label]
        assert [part.label for part in curves] == ["direction of the groups", "random directions"]
        for at, curve in enumerate(curves):
            expected = held_out.isel(direction=at, **fixed)
            np.testing.assert_array_equal(curve.dimension_values("change_first"), expected)
        assert axis in str(picture.opts.get().kwargs["xlabel"])
    hv.render(actkit.plots.steering(steered), backend=backend)


def test_hooks_are_removed_and_a_zero_vector_changes_nothing(tiny_model: Path) -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    points = find_hook_points(model.model, 3)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        before = model(ids).logits
        with ablated(points, torch.eye(16)[0]):
            assert not torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "erase"}, "mode: 'erase' is not an option"),
        ({"layers": []}, "layers: names no layer"),
        ({"layers": np.array([1, 9])}, "layers: the direction lacks [9] (it has [0, 1, 2])"),
        ({"scale": float("nan")}, "scale: is nan (give a finite number or several)"),
        (
            {"metric": 3},
            "metric: is a int (give a metric, such as actkit.LogitDifference, or a function of the logits)",
        ),
        ({"metric": actkit.LogitDifference("house river", "a")}, 'positive: "house river" is'),
        ({"where": {"gender": "male"}}, "gender female: has no sample"),
        ({"metric": lambda logits: logits}, "metric: returned shape"),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, Any], message: str, run: Path, directions: xr.Dataset
) -> None:
    with pytest.raises(InputError) as caught:
        actkit.steer(run, directions, **{"metric": first_logit, "progress": False, "controls": 0, **options})
    assert message in str(caught.value)


def test_directions_of_several_languages_or_another_model_are_refused(
    run: Path, directions: xr.Dataset
) -> None:
    whole = directions.expand_dims(language=["english"])
    other = directions.isel(hidden=slice(4)).assign_attrs(model="gpt2")
    for wrong, messages in (
        (whole, ['select one, such as directions.sel(language="en")']),
        (other, ["has 4 dimensions, the model 16", "was computed from gpt2"]),
        (directions[["norm"]], ["give the result of actkit.group_directions"]),
    ):
        with pytest.raises(InputError) as caught:
            actkit.steer(run, wrong, metric=first_logit)
        assert all(message in str(caught.value) for message in messages)
