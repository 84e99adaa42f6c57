"""Activation patching: against plain hooks, the twin's logits, and its refusals."""

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
from actkit.extraction.models.hook_points import find_hook_points, hook_output, hooks
from actkit.features.cube_model import CubeModel
from tests.models.architectures import build

PLACES = ("house", "river", "school")
# the last pair has twins of different length
TWINS = [(f"He went to the {place}", f"She went to the {place}") for place in PLACES] + [
    ("He saw the school", "She and he saw the school")
]
FAST = ("GPT-2", "Granite")
NIGHTLY = (
    "Llama", "Gemma 2", "Qwen3", "Phi-3", "GPT-NeoX (parallel)", "OPT", "BLOOM", "MPT", "Cohere",
    "Gemma 3", "Gemma",
)  # fmt: skip
NAMES = [*FAST, *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)]


def third_logit(logits: torch.Tensor) -> torch.Tensor:
    """Return the logit of one token, as a metric."""
    return logits[:, 3]


def extracted(model: Path, folder: Path) -> Path:
    lines = [
        f"{2 * pair + side},{text},{('male', 'female')[side]},p{pair}"
        for pair, texts in enumerate(TWINS)
        for side, text in enumerate(texts)
    ]
    (folder / "data.csv").write_text("sample_id,text,gender,pair\n" + "\n".join(lines) + "\n")
    options: Any = {"layers": "all", "dtype": "float32", "listeners": []}
    actkit.extract(model=str(model), data=str(folder / "data.csv"), out=str(folder / "run"), **options)
    return folder / "run"


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extracted(tiny_model, tmp_path_factory.mktemp("patching"))


@pytest.fixture(scope="module")
def patched(run: Path) -> xr.Dataset:
    return actkit.patch(run, metric=third_logit, **OPTIONS)


OPTIONS: dict[str, Any] = {
    "paired_by": "pair",
    "by": "gender",
    "between": ("male", "female"),
    "progress": False,
}


@pytest.mark.parametrize("name", NAMES)
def test_each_value_is_that_of_plain_hooks(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "model")
    path = extracted(folder, tmp_path)
    model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    n_layers = len(actkit.open_cube(path).layer)
    points = find_hook_points(model, n_layers)
    components = ["residual", *points.components]
    result = actkit.patch(path, metric=third_logit, component=components, **OPTIONS)
    cube = actkit.open_cube(path)
    ids = {
        str(sample): torch.from_numpy(row[None, :length].astype(np.int64))
        for sample, row, length in zip(
            cube.sample_id.values, cube.token_id.values, cube.n_tokens.values, strict=True
        )
    }
    pair = result.isel(sample=0)  # its unrelated prompt has the same length
    base = ids[str(pair.sample_id.item())]
    scale = float(abs(result["value"]).max())
    modules = {"residual": points.blocks, **points.components}
    for source, label in (("twin", "twin_sample_id"), ("unrelated", "unrelated_sample_id")):
        other = ids[str(pair[label].item())]
        assert other.shape == base.shape
        for component in components:
            for layer in (0, n_layers - 1):
                expected = plain(model, modules[component][layer], base, other)
                actual = pair.value.sel(source=source, component=component, layer=layer)
                np.testing.assert_allclose(actual[: base.shape[1]], expected, atol=1e-5 * scale)


def plain(model: Any, module: Any, base: torch.Tensor, other: torch.Tensor) -> list[float]:
    """Return the logit after patching each token, one forward pass each."""
    kept: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).clone())

    with torch.no_grad(), hooks([module.register_forward_hook(keep)]):
        model(other)
    values = []
    for token in range(base.shape[1]):

        def put(_module: Any, _args: Any, output: Any, token: int = token) -> None:
            hook_output(output).reshape(-1, kept[0].shape[-1])[token] = kept[0].reshape(
                -1, kept[0].shape[-1]
            )[token]

        with torch.no_grad(), hooks([module.register_forward_hook(put)]):
            values.append(float(model(base).logits[0, -1, 3]))
    return values


def test_the_last_token_of_the_last_layer_gives_the_prediction_of_the_twin(patched: xr.Dataset) -> None:
    last = patched.sel(source="twin", component="residual").isel(layer=-1)
    for row in range(len(TWINS)):
        effects = last.effect[row].dropna("token")
        assert float(effects[-1]) == pytest.approx(1, abs=1e-4)
        np.testing.assert_allclose(effects[:-1], 0, atol=1e-4)
    assert float(last.share.sel(region="last")) == pytest.approx(1, abs=1e-4)
    assert float(last.share.sel(region="suffix")) == pytest.approx(0, abs=1e-4)


def test_twins_of_different_length_are_aligned_by_common_prefix_and_suffix(
    run: Path, patched: xr.Dataset
) -> None:
    cube = actkit.open_cube(run)
    values = patched.value.sel(source="twin").isel(component=0, layer=1, sample=3)
    by_id = {str(name): row for row, name in enumerate(cube.sample_id.values)}
    base, twin = (
        cube.token_id.values[row, : cube.n_tokens.values[row]].tolist() for row in (by_id["6"], by_id["7"])
    )
    assert len(base) < len(twin)
    suffix = 0
    while base[-1 - suffix] == twin[-1 - suffix]:
        suffix += 1
    is_defined = values.notnull().values[: len(base)]
    assert is_defined[-suffix:].all()
    prefix = next(at for at, (a, b) in enumerate(zip(base, twin, strict=False)) if a != b)
    assert is_defined.tolist() == [True] * prefix + [False] * (len(base) - prefix - suffix) + [True] * suffix


def test_tokens_before_the_first_difference_change_nothing(patched: xr.Dataset) -> None:
    share = patched.share.sel(source="twin", region="prefix")
    np.testing.assert_allclose(share.fillna(0), 0, atol=1e-5)


def test_the_share_is_the_mean_change_over_the_mean_difference(patched: xr.Dataset) -> None:
    part = patched.sel(source="unrelated", component="residual").isel(layer=1)
    ends = [int(row.notnull().values.nonzero()[0][-1]) for row in patched.value[0, 0, 0]]
    change = [float(part.value[row, end] - part.base[row]) for row, end in enumerate(ends)]
    expected = np.nanmean(change) / float((part.twin - part.base).mean())
    assert float(part.share.sel(region="last")) == pytest.approx(expected, rel=1e-6)
    assert set(part.unrelated_sample_id.values.tolist()) <= {"0", "2", "4", "6"}


def test_results_do_not_depend_on_the_layers_that_are_asked_for(run: Path, patched: xr.Dataset) -> None:
    only = actkit.patch(run, metric=third_logit, layers=[1], **OPTIONS)
    np.testing.assert_array_equal(only.value, patched.value.sel(layer=[1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"component": "heads"}, "component: 'heads' is not an option"),
        ({"component": []}, "component: names no component"),
        ({"layers": []}, "layers: names no layer"),
        ({"layers": [9]}, "what: the model has no residual_9"),
        ({"paired_by": "sample_id"}, "no value of `sample_id` has a sample of male and female"),
        ({"between": ("male", "other")}, "between: two labels are compared"),
        ({"where": {"pair": "p1"}}, "paired_by: all belong to one cluster"),
        ({"metric": actkit.LogitDifference("house river", "a")}, 'positive: "house river" is'),
    ],
)
def test_bad_arguments_are_named_before_a_model_is_loaded(
    options: dict[str, Any], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(CubeModel, "load")
    with pytest.raises(InputError) as caught:
        actkit.patch(run, **{"metric": third_logit, **OPTIONS, **options})
    assert message in str(caught.value)


def test_two_samples_of_a_group_in_a_pair_are_refused(run: Path) -> None:
    cube = actkit.open_cube(run)
    doubled = cube.assign_coords(pair=("sample", ["p0"] * 4 + ["p1"] * 4))
    with pytest.raises(InputError, match="has 2 samples of male"):
        actkit.patch(doubled, metric=third_logit, **OPTIONS)


@pytest.mark.parametrize("backend", ["bokeh", "matplotlib"])
def test_a_map_is_drawn_over_the_tokens(backend: str, patched: xr.Dataset) -> None:
    actkit.plots.load_matplotlib()
    picture = actkit.plots.patching(patched.isel(sample=0))
    hv.render(picture, backend=backend)
    mesh = next(part for part in picture.traverse(lambda x: x, [hv.QuadMesh]))
    expected = patched.effect.isel(sample=0).sel(source="twin").isel(component=0).dropna("token")
    np.testing.assert_allclose(mesh.dimension_values(2, flat=False), expected, atol=1e-12)
