"""Attention and MLP components: layer sets, the sum rule, and architectures without them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import actkit
from actkit.errors import InputError


def _extract(model: Path, table: Path, out: Path, layers: str, **options: Any) -> Any:
    return actkit.extract(
        model=str(model),
        data=str(table),
        out=str(out),
        layers=layers,
        dtype="float32",
        listeners=[],
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo", "llama", "gpt2", "gemma3"])
def test_the_parts_of_a_block_add_up(architectures: Any, table: Path, tmp_path: Path, name: str) -> None:
    cube = _extract(architectures(name), table, tmp_path, "all attention_all mlp_all").load()
    stream = np.concatenate([cube.embedding.values[None], cube.residual.values])
    total = stream[:-1] + cube.attention.values + cube.mlp.values
    real = (cube.token_kind > 0).values
    assert np.abs(stream[1:] - total)[:, real].max() < 1e-5 * np.abs(stream[:, real]).max()
    assert cube.attrs["sum_rule"] == "holds"
    assert 0 < cube.attrs["sum_rule_error"] < 1e-5
    assert cube.has_attention.all()


@pytest.mark.slow
def test_layer_sets_mix_on_one_axis(architectures: Any, table: Path, tmp_path: Path) -> None:
    folder = architectures("llama")
    cube = _extract(folder, table, tmp_path / "mixed", "residual_0 mlp_1-2 attentions_3").load()
    whole = _extract(folder, table, tmp_path / "whole", "all mlp_all attention_all").load()
    assert cube.layer.values.tolist() == [0, 1, 2, 3]
    held = {"residual": [0], "mlp": [1, 2], "attention": [3]}
    for name, layers in held.items():
        assert cube.layer.values[cube[f"has_{name}"].values].tolist() == layers
        assert np.array_equal(cube[name].sel(layer=layers), whole[name].sel(layer=layers), equal_nan=True)
        assert cube[name].sel(layer=~cube[f"has_{name}"]).isnull().all()
    assert cube.norm.sel(layer=[1, 2, 3]).isnull().all()
    assert np.array_equal(cube.norm.sel(layer=0), whole.norm.sel(layer=0), equal_nan=True)
    assert cube.attrs["layers"] == "0 attention_3 mlp_1-2"


def test_a_cube_without_the_residual(architectures: Any, table: Path, tmp_path: Path) -> None:
    cube = _extract(architectures("llama"), table, tmp_path, "mlp_1 mlp_3")
    assert cube.layer.values.tolist() == [1, 3]
    assert "mlp" in cube
    assert not {"residual", "attention", "norm", "pooled", "last"} & set(cube)


def test_layers_without_a_norm_are_marked_where_the_residual_is_not_saved(
    architectures: Any, table: Path, tmp_path: Path
) -> None:
    cube = _extract(architectures("llama"), table, tmp_path, "residual_0 mlp_3", save=["norm"])
    assert "residual" not in cube
    assert cube.has_residual.values.tolist() == [True, False]
    assert cube.norm.sel(layer=~cube.has_residual).isnull().all()
    assert cube.norm.sel(layer=cube.has_residual).notnull().any()


def test_variables_of_the_residual_require_it(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        _extract(tiny_model, prompts, tmp_path / "run", "attention_0", save=["norm", "pooled"])
    assert str(caught.value.faults[0]) == (
        "save: norm, pooled cannot be kept: no layer of `residual` is selected "
        "(add residual layers to `layers`)"
    )


@pytest.mark.slow
def test_a_post_norm_encoder_records_its_sum_rule(minilm: Path, table: Path, tmp_path: Path) -> None:
    import torch
    import transformers as tf

    cube = _extract(minilm, table, tmp_path, "all attention_all mlp_all").load()
    assert "normalises each sum" in cube.attrs["sum_rule"]
    assert 0 < cube.attrs["sum_rule_error"] < 1e-6
    # BERT: LayerNorm(LayerNorm(in + attention) + mlp), with the norms of the model
    model = tf.AutoModel.from_pretrained(minilm, dtype="float32").eval()
    before = cube.embedding.values
    real = (cube.token_kind > 0).values
    for layer, block in enumerate(model.encoder.layer):
        parts = (torch.from_numpy(cube[name].values[layer][real]) for name in ("attention", "mlp"))
        with torch.inference_mode():
            attention, mlp = parts
            middle = block.attention.output.LayerNorm(torch.from_numpy(before[real]) + attention)
            expected = block.output.LayerNorm(middle + mlp).numpy()
        np.testing.assert_allclose(cube.residual.values[layer][real], expected, atol=1e-4)
        before = cube.residual.values[layer]


@pytest.mark.slow
def test_resuming_needs_no_new_sum_rule(architectures: Any, table: Path, tmp_path: Path) -> None:
    from actkit.testing import contents

    def stop(event: Any) -> None:
        if event.state == "running" and event.samples > 8:
            raise KeyboardInterrupt

    options: dict[str, Any] = {
        "model": str(architectures("llama")),
        "data": str(table),
        "layers": "all mlp_2",
        "window_samples": 4,
    }
    with pytest.raises(KeyboardInterrupt):
        actkit.extract(**options, out=str(tmp_path / "run"), listeners=[stop])
    actkit.extract(**options, out=str(tmp_path / "run"), listeners=[])
    actkit.extract(**options, out=str(tmp_path / "whole"), listeners=[])
    assert contents(tmp_path / "run" / "cube.zarr") == contents(tmp_path / "whole" / "cube.zarr")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("mlp_9", "layers: `mlp_9`: the model has no layer 9 (it has 3 layers, 0–2)"),
        ("vision_all", "layers: `vision_all`: the model has no `vision` that can be captured"),
    ],
)
def test_components_that_a_model_lacks(
    tiny_model: Path, prompts: Path, tmp_path: Path, layers: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        _extract(tiny_model, prompts, tmp_path / "run", layers)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_mamba_has_only_a_residual(tmp_path: Path, tokenizer: Any, prompts: Path) -> None:
    import transformers as tf

    folder = tmp_path / "mamba"
    config = tf.MambaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, state_size=4, time_step_rank=2
    )
    tf.MambaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    message = r"the model has no `attention` that can be captured \(it has residual\)"
    with pytest.raises(InputError, match=message):
        _extract(folder, prompts, tmp_path / "run", "attention_all")
    assert _extract(folder, prompts, tmp_path / "run", "all").sizes["layer"] == 2
