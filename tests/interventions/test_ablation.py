"""Ablation of components: against edited weights, and its control."""

from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import torch
import transformers as tf

import actkit
from actkit.errors import InputError
from actkit.features.cube_model import CubeModel
from tests.interventions.test_patching import extracted, third_logit
from tests.models.architectures import build

# modules that write to the stream, by architecture
WRITERS = {
    "Llama": ("self_attn.o_proj", "mlp.down_proj"),
    "Qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "Gemma": ("self_attn.o_proj", "mlp.down_proj"),
    "Phi-3": ("self_attn.o_proj", "mlp.down_proj"),
    "Cohere": ("self_attn.o_proj", "mlp.down_proj"),
    "Granite": ("self_attn.o_proj", "mlp.down_proj"),
    "GPT-2": ("attn.c_proj", "mlp.c_proj"),
}
NAMES = [
    name if name == "Llama" else pytest.param(name, marks=pytest.mark.nightly) for name in sorted(WRITERS)
]
OPTIONS: dict[str, Any] = {"metric": third_logit, "progress": False}


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extracted(tiny_model, tmp_path_factory.mktemp("ablation"))


@pytest.mark.parametrize("name", NAMES)
def test_ablation_to_zero_equals_zeroed_weights(name: str, tmp_path: Path) -> None:
    folder = build(name, tmp_path / "model")
    path = extracted(folder, tmp_path)
    cube = actkit.open_cube(path)
    sites = ["attention_1", "mlp_0"]
    result = actkit.ablate(path, what=sites, value="zero", positions="all", controls=0, **OPTIONS)
    for site, writer in zip(sites, WRITERS[name], strict=True):
        model = tf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        suffix = f".{site[-1]}.{writer}"
        modules = [module for path, module in model.named_modules() if path.endswith(suffix)]
        assert len(modules) == 1
        with torch.no_grad():
            for weight in modules[0].parameters():
                weight.zero_()
            logits = torch.stack(
                [
                    model(torch.from_numpy(ids[None, :length].astype(np.int64))).logits[0, -1]
                    for ids, length in zip(cube.token_id.values, cube.n_tokens.values, strict=True)
                ]
            )
        scale = float(logits.abs().max())
        np.testing.assert_allclose(
            result.value.sel(site=site, arm="ablated"), logits[:, 3], atol=1e-6 * max(scale, 1)
        )
        assert (abs(result.value.sel(site=site, arm="ablated") - result.intact) > 1e-5).any()


def test_the_mean_replaces_every_content_token(run: Path) -> None:
    result = actkit.ablate(run, what="residual_2", positions="last", controls=0, **OPTIONS)
    np.testing.assert_allclose(result.value[0, 0], float(result.value[0, 0, 0]), atol=1e-5)
    assert float(result.intact.std()) > 1e-4


def test_the_twin_at_the_last_layer_gives_its_prediction(run: Path) -> None:
    options: dict[str, Any] = {"paired_by": "pair", "by": "gender", "between": ("male", "female"), **OPTIONS}
    result = actkit.ablate(run, what=["residual_2", "residual"], value="twin", positions="last", **options)
    patched = actkit.patch(run, layers=[2], **options)
    assert result.site.values.tolist() == ["residual_2", "residual_0", "residual_1"]
    twins = dict(zip(patched.sample_id.values, patched.twin.values, strict=True))
    expected = [twins[name] for name in result.sample_id.values]
    np.testing.assert_allclose(result.value.sel(site="residual_2", arm="ablated"), expected, atol=1e-5)
    assert (abs(result.value.sel(site="residual_2", arm="random 1") - expected) > 1e-4).all()


def test_gaps_compare_the_groups(run: Path) -> None:
    result = actkit.ablate(
        run, what="mlp", by="gender", between=("male", "female"), cluster="pair", **OPTIONS
    )
    is_female = np.array([int(name) % 2 == 1 for name in result.sample_id.values])
    value = result.value.values[1, 0]
    gap = value[is_female].mean() - value[~is_female].mean()
    assert float(result.gap[1, 0]) == pytest.approx(gap, abs=1e-9)
    change = (result.value - result.intact).mean("sample")
    np.testing.assert_allclose(result.change, change, atol=1e-12)
    assert (result.change_low < result.change).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"what": "heads_1"}, "what: 'heads_1' is not a site"),
        ({"what": []}, "what: names no site"),
        ({"what": "mlp_9"}, "the model has no mlp_9"),
        ({"value": "noise"}, "value: 'noise' is not an option"),
        ({"positions": "first"}, "positions: 'first' is not an option"),
        ({"value": "twin"}, "paired_by: is not given"),
        ({"by": "gender", "where": {"gender": "male"}}, "where: leaves a group without samples"),
    ],
)
def test_bad_arguments_are_named_before_a_model_is_loaded(
    options: dict[str, Any], message: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(CubeModel, "load")
    with pytest.raises(InputError) as caught:
        actkit.ablate(run, **{"what": "mlp_1", **OPTIONS, **options})
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", ["bokeh", "matplotlib"])
def test_effects_are_drawn_by_layer_with_the_control(backend: str, run: Path) -> None:
    actkit.plots.load_matplotlib()
    options: dict[str, Any] = {"by": "gender", "between": ("male", "female"), **OPTIONS}
    result = actkit.ablate(run, what=["mlp_1", "mlp_0"], **options)
    picture = actkit.plots.ablation(result)
    hv.render(picture, backend=backend)
    curves = [part for part in picture.traverse(lambda part: part, [hv.Curve]) if part.label]
    for arm, curve in enumerate(curves):
        np.testing.assert_array_equal(curve.dimension_values("remaining"), result.remaining[::-1, arm])
    assert [curve.label for curve in curves] == ["ablated", "random displacements"]
