"""Adapters must match their base: only heads may be omitted, and quantized bases are refused."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from actkit.errors import ModelError
from actkit.extraction.models.adapter_files import find_adapter
from actkit.extraction.models.adapters import check_adapter_options, merge_adapter
from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.extraction.models.loader import check_model_options
from actkit.extraction.models.quantization import read_quantization
from tests.extraction.loaded_models import CONFIGS, options
from tests.extraction.models.test_adapters import (
    ALPHA,
    GENERATES,
    LLAMA,
    RANK,
    add,
    assert_holds,
    base_model,
    load,
    merged_by_hand,
    tuned,
    write_adapter,
)
from tests.extraction.quantized import FP8, build, fp8

__all__ = ["tuned"]


@pytest.mark.parametrize("changes", GENERATES)
@pytest.mark.parametrize(
    "head", ["score.weight", "classifier.dense.weight", "score.modules_to_save.default.weight"]
)
def test_classification_heads_are_omitted(head: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """A sequence classifier has the base of a language model, and no block reads its head."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base)
    tensors = write_adapter(
        adapter,
        model,
        LLAMA,
        task_type="SEQ_CLS",
        modules_to_save=["classifier", "score"],
        target_parameters=[],
    )
    add(adapter, tensors, {f"base_model.model.{head}": torch.randn(2, 32)})
    assert_holds(load(base, adapter, **changes).model, merged_by_hand(model, tensors, ALPHA / RANK))


def test_adapters_are_merged_into_dequantized_weights(tmp_path: Path) -> None:
    quantized, ordinary = build(tmp_path, "llama", fp8, FP8)
    model = tf.AutoModelForCausalLM.from_pretrained(ordinary)
    tensors = write_adapter(tmp_path / "adapter", model, LLAMA)
    config = options(quantized, adapter=str(tmp_path / "adapter"))
    checkpoint, _ = find_checkpoint(str(quantized), None, adapter=str(tmp_path / "adapter"))
    assert checkpoint is not None
    architecture, _ = read_architecture(checkpoint)
    assert check_model_options(architecture, config, checkpoint) == []
    assert_holds(load(quantized, tmp_path / "adapter").model, merged_by_hand(model, tensors, ALPHA / RANK))


@pytest.mark.parametrize("part", ["whole", "text_config"])
def test_adapters_are_refused_for_quantized_weights(part: str, tuned: Path, tmp_path: Path) -> None:
    config = CONFIGS["llava"]()
    entry = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (config if part == "whole" else config.text_config).quantization_config = entry
    quantization = read_quantization(config)
    (fault,) = check_adapter_options(options(tmp_path, adapter=str(tuned)), quantization)
    assert fault.what == "cannot be merged into weights that stay quantized (bitsandbytes_8bit)"


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a target without tensors": (lambda tensors: [tensors.pop(key) for key in [*tensors] if "layers.1.self_attn.q_proj" in key], "no tensor for base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"),
    "half a target": (lambda tensors: tensors.pop("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"), "no tensor for base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"),
    "tensors without a target": (lambda tensors: tensors.update({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.ones(3, 16)}), "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight matches no module"),
    "a whole matrix": (lambda tensors: tensors.update({"base_model.model.model.embed_tokens.weight": torch.ones(320, 16)}), "base_model.model.model.embed_tokens.weight matches no module"),
    "another shape": (lambda tensors: tensors.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(3, 8)}), "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight has shape (3, 8) rather than (3, 16)"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISFITS)
def test_adapters_are_merged_completely_or_not_at_all(name: str, tiny_model: Path, tuned: Path) -> None:
    change, message = MISFITS[name]
    tensors = load_file(tuned / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tuned / "adapter_model.safetensors")
    adapter, faults = find_adapter(str(tuned))
    assert faults == []
    assert adapter is not None
    with pytest.raises(ModelError) as caught:
        merge_adapter(adapter, tf.AutoModelForCausalLM.from_pretrained(tiny_model))
    assert message in str(caught.value)


def test_a_base_without_head_is_enough_for_an_adapter_of_the_model_with_it(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base)
    model.model.save_pretrained(base)
    tensors = write_adapter(adapter, model, LLAMA)
    assert_holds(load(base, adapter).model, merged_by_hand(model, tensors, ALPHA / RANK))
    with pytest.raises(ModelError, match=r"weights are missing.*lm_head"):
        load(base, adapter, generate={"max_new_tokens": 1})
