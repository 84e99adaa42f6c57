"""Every weight of a checkpoint is used, and none is initialised randomly."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from transformers.models.auto import modeling_auto
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from actkit.errors import ModelError
from actkit.extraction.models.quantization import METHODS
from actkit.extraction.models.weight_keys import is_of_quantized
from tests.extraction.loaded_models import CONFIGS, SMALL, load
from tests.extraction.models.test_quantization import ours
from tests.models.architectures import ARCHITECTURES

ONE = torch.ones(4)
GENERATE = {"generate": {"max_new_tokens": 1}}
LEFT = "does not use some weights of the checkpoint: "


def changed(
    folder: Path,
    copy: Path,
    *,
    add: Mapping[str, torch.Tensor] | None = None,
    rename: Callable[[str], str] = str,
    **config: Any,
) -> Path:
    """Copy a model with other weights or another config."""
    shutil.copytree(folder, copy)
    weights = {rename(name): tensor for name, tensor in load_file(copy / "model.safetensors").items()}
    save_file({**weights, **(add or {})}, copy / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**content, **config}))
    return copy


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.2.self_attn.q_proj.bias",
        "model.layers.2.self_attn.q_norm.weight",
        "model.layers.4.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.lora_A.weight",
        "model.layers.2.mlp.up_proj.weight_scale_inv",
        "model.layers.2.mlp.up_proj.weight_scale",
        "model.layers.2.mlp.up_proj.input_scale",
        "model.layers.2.mlp.up_proj.weight_packed",
        "model.layers.2.mlp.up_proj.qweight",
        "model.layers.2.mlp.up_proj.scales",
        "model.layers.2.mlp.up_proj.SCB",
        "model.layers.2.mlp.up_proj.weight.absmax",
        "model.layers.2.mlp.up_proj.weight.quant_state.bitsandbytes__nf4",
        "model.layers.2.mlp.experts.down_proj_blocks",
        "lm_head.weight_scale_inv",
        "lm_head.qweight",
        "wte.weight",
    ],
)
def test_unused_weights_are_an_error(key: str, saved: Any, tmp_path: Path) -> None:
    base = key.startswith("wte")  # in a checkpoint without a head, every weight belongs to the base model
    folder = saved("llama", tf.AutoModel if base else tf.AutoModelForCausalLM)
    copy = changed(folder, tmp_path / "copy", add={key: ONE})
    with pytest.raises(ModelError, match=re.escape(f"tiny: LlamaModel {LEFT}{key}; its config.json")):
        load(copy)


def test_the_first_few_unused_weights_are_listed(saved: Any, tmp_path: Path) -> None:
    add = {f"model.layers.{layer}.extra": ONE.clone() for layer in range(9)}
    copy = changed(saved("llama", tf.AutoModelForCausalLM), tmp_path / "copy", add=add)
    with pytest.raises(ModelError, match=r"model\.layers\.0\.extra, .*\.4\.extra and 4 more; its"):
        load(copy)


@pytest.mark.parametrize(
    "key",
    [
        "score.weight",
        "v_head.summary.weight",
        "v_head.summary.weight_g",
        "logit_scale",
        "v_head.norm.scale",
        "mtp.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.embed_tokens.position_ids",
        "model.pooler.dense.weight",
    ],
)
@pytest.mark.parametrize("changes", [{}, GENERATE], ids=["base", "head"])
def test_weights_that_no_block_reads_are_harmless(
    key: str, changes: dict[str, Any], saved: Any, tmp_path: Path
) -> None:
    folder = saved("llama", tf.AutoModelForCausalLM)
    copy = changed(folder, tmp_path / "copy", add={key: ONE})
    for values, expected in zip(ours(copy, **changes), ours(folder, **changes), strict=True):
        assert torch.equal(values, expected)


def test_weights_of_a_head_are_required_only_if_it_is_loaded(saved: Any, tmp_path: Path) -> None:
    folder = saved("llama", tf.AutoModelForCausalLM)
    copy = changed(folder, tmp_path / "copy", add={"lm_head.bias": torch.ones(97)})
    load(copy)
    with pytest.raises(ModelError, match=re.escape(f"LlamaForCausalLM {LEFT}lm_head.bias;")):
        load(copy, **GENERATE)


def test_a_config_of_fewer_layers_than_the_file_holds_is_an_error(saved: Any, tmp_path: Path) -> None:
    copy = changed(saved("llama"), tmp_path / "copy", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"checkpoint: layers\.3\.input_layernorm\.weight, .* and 4 more"):
        load(copy)


@pytest.mark.parametrize("declared", [0, 1])
def test_declared_multi_token_prediction_blocks_are_harmless(
    declared: int, saved: Any, tmp_path: Path
) -> None:
    copy = changed(saved("llama"), tmp_path / "copy", num_hidden_layers=3, num_nextn_predict_layers=declared)
    if declared:
        assert len(load(copy).hook_points.blocks) == 3
        return
    with pytest.raises(ModelError, match=LEFT):
        load(copy)


def test_weights_with_other_names_are_not_replaced_by_random_ones(saved: Any, tmp_path: Path) -> None:
    copy = changed(saved("llama"), tmp_path / "copy", rename=lambda name: f"wrapped.{name}")
    with pytest.raises(ModelError, match=r"missing or have a different shape: embed_tokens\.weight"):
        load(copy)


def test_norms_of_the_first_bert_checkpoints_are_read(saved: Any, tmp_path: Path) -> None:
    def rename(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    folder = saved("bert")
    weights = {
        name: tensor + torch.rand_like(tensor) if "LayerNorm" in name else tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    new = changed(folder, tmp_path / "new", add=weights)
    old = changed(new, tmp_path / "old", rename=rename)
    assert "embeddings.LayerNorm.gamma" in load_file(old / "model.safetensors")
    for values, expected in zip(ours(old), ours(new), strict=True):
        assert torch.equal(values, expected)


def heads(name: str) -> list[Any]:
    """Return the classes that save checkpoints of an architecture, other than the one in the matrix."""
    architecture = ARCHITECTURES[name]
    config = getattr(tf, architecture.config)
    autos = [tf.AutoModelForCausalLM, tf.AutoModelForMaskedLM, tf.AutoModelForSequenceClassification]
    classes = {auto._model_mapping.get(config, None) for auto in autos} - {None}
    # a decoder with cross-attention that was saved without its encoder cannot be captured
    named = {cls.__name__: cls for cls in classes} | {"BartForCausalLM": None}
    return [cls for name, cls in sorted(named.items()) if cls is not None and name != architecture.model]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, record in ARCHITECTURES.items() if not record.error])
def test_heads_raise_no_false_alarm(name: str, tmp_path: Path) -> None:
    """The class of the matrix is covered by the matrix itself."""
    for cls in heads(name):
        model = cls(getattr(tf, ARCHITECTURES[name].config)(**ARCHITECTURES[name].options))
        model.save_pretrained(tmp_path / cls.__name__)
        parameters = {
            name.removeprefix(f"{model.base_model_prefix}."): tensor
            for name, tensor in model.named_parameters()
        }
        # batches of one: padding is covered by the matrix
        for key, tensor in load(tmp_path / cls.__name__, batch_size=1).model.named_parameters():
            assert "pooler" in key or torch.equal(tensor, parameters[key])


@pytest.mark.nightly
def test_transformers_hides_no_keys_of_quantized_weights() -> None:
    """transformers hides unexpected keys by patterns of each class, none of which match quantized weights."""
    names = {
        name
        for mapping in (
            modeling_auto.MODEL_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        )
        for entry in mapping.values()
        for name in ([entry] if isinstance(entry, str) else entry)
    }
    keys = [
        f"model.{part}layers.3.{module}.{suffix}"
        for part in ("", "language_model.")
        for module in ("self_attn.q_proj", "mlp.down_proj", "mlp.experts.7.up_proj")
        for suffix in ("weight_scale_inv", "weight_packed", "qweight", "SCB", "scales", "bias")
    ]
    assert all(is_of_quantized(key) for key in keys if not key.endswith("bias"))
    hidden = {}
    for name in names:
        patterns = getattr(getattr(tf, name, None), "_keys_to_ignore_on_load_unexpected", None) or ()
        matches = [pattern for pattern in patterns for key in keys if re.search(pattern, key)]
        if matches:
            hidden[name] = matches
    assert hidden == {}


def test_tensors_of_quantized_weights_are_recognised_by_full_name() -> None:
    serialized = {
        name
        for method, quantizer in AUTO_QUANTIZER_MAPPING.items()
        if not METHODS[method].refusal
        for weight, names in quantizer.serialized_names.items()
        for name in names
        if name != weight
    }
    assert len(serialized) > 15
    assert [name for name in serialized if not is_of_quantized(f"model.layers.3.mlp.up_proj.{name}")] == []
    ordinary = [
        "logit_scale",
        "text.logit_scale",
        "layers.0.layer_scale",
        "norm.scale",
        "conv.weight_g",
        "conv.weight_v",
    ]
    ordinary += [
        "lstm.weight_ih_l0",
        "scale",
        "mlp.per_expert_scale",
        "attn.per_dim_scale",
        "blocks.3.weight",
    ]
    assert [key for key in ordinary if is_of_quantized(key)] == []


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_ordinary_weight_is_mistaken_for_part_of_a_quantized_one(name: str) -> None:
    record = ARCHITECTURES[name]
    with torch.device("meta"):
        model = getattr(tf, record.model)(getattr(tf, record.config)(**record.options))
    assert [key for key in model.state_dict() if is_of_quantized(key)] == []


def test_tied_weights_that_differ(tmp_path: Path) -> None:
    """If the config ties head and embedding but the file has both, the file takes precedence."""
    torch.manual_seed(0)
    config = CONFIGS["tied"]()
    tf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    head = torch.rand(SMALL["vocab_size"], SMALL["hidden_size"])
    copy = changed(tmp_path / "tied", tmp_path / "copy", add={"lm_head.weight": head})
    loaded = load(copy, **GENERATE).model
    assert torch.equal(loaded.get_output_embeddings().weight, head)
    assert not torch.equal(loaded.get_input_embeddings().weight, head)


@pytest.mark.parametrize(
    ("stored", "declared", "dtype"),
    [
        ({"": torch.float64}, None, torch.float32),
        ({"": torch.float64}, "float64", torch.float32),
        ({"": torch.bfloat16, "norm": torch.float32}, None, torch.bfloat16),
        ({"": torch.bfloat16, "norm": torch.float32}, "bfloat16", torch.bfloat16),
        ({"": torch.float32, "embed": torch.float16}, None, torch.float16),
        ({"": torch.float32}, "bfloat16", torch.bfloat16),
    ],
)
def test_weights_are_loaded_in_one_dtype_however_they_are_stored(
    stored: dict[str, torch.dtype], declared: str | None, dtype: torch.dtype, saved: Any, tmp_path: Path
) -> None:
    def dtype_of(name: str) -> torch.dtype:
        return next(dtype for part, dtype in reversed(stored.items()) if part in name)

    weights = load_file(saved("llama") / "model.safetensors")
    cast = {name: tensor.to(dtype_of(name)) for name, tensor in weights.items()}
    copy = changed(saved("llama"), tmp_path / "copy", add=cast, dtype=declared)
    loaded = load(copy)
    assert loaded.dtype == dtype
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, cast[name].to(dtype))
    if torch.float64 not in stored.values():
        assert tf.AutoModel.from_pretrained(copy, dtype="auto").dtype == dtype
