"""Small quantized checkpoints, and what their weights stand for, computed in plain torch."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from safetensors.torch import load_file, save_file

WIDE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 256,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "head_dim": 64}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**WIDE),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(**WIDE, **EXPERTS),
    "gpt-oss": lambda: tf.GptOssConfig(
        **{**WIDE, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64, "sliding_window": 8},
        layer_types=["sliding_attention", "full_attention"],
    ),
}
# a quantized weight: the tensors that are stored for it, by what is put after its name, and its values
Stored = tuple[dict[str, torch.Tensor], torch.Tensor]
Quantizer = Callable[[torch.Tensor], Stored]
CODES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])


def blocks_of(scale: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    return scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


def fp8(weight: torch.Tensor, block: tuple[int, int] = (128, 128)) -> Stored:
    rows, columns = (size // step for size, step in zip(weight.shape, block, strict=True))
    largest = weight.view(rows, block[0], columns, block[1]).abs().amax((1, 3))
    scale = largest / 448
    stored = (weight / blocks_of(scale, block)).to(torch.float8_e4m3fn)
    return {"": stored, "_scale_inv": scale}, stored.float() * blocks_of(scale, block)


def mxfp8(weight: torch.Tensor) -> Stored:
    exponent = (weight.unflatten(1, (-1, 32)).abs().amax(2) / 448).log2().ceil()
    scale = blocks_of(exponent.exp2(), (1, 32))
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"": stored, "_scale_inv": (exponent + 127).to(torch.uint8)}, stored.float() * scale


def mxfp4(weight: torch.Tensor) -> Stored:
    """Quantize experts, dims ``(expert, input, output)``, as gpt-oss stores them: outputs first."""
    parts = weight.transpose(1, 2).unflatten(2, (-1, 32))
    exponent = (parts.abs().amax(3) / 6).log2().ceil()
    scale = exponent.exp2()[..., None]
    codes = (parts[..., None] / scale[..., None] - CODES).abs().argmin(-1)
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    values = (CODES[codes] * scale).flatten(2).transpose(1, 2)
    return {"_blocks": packed, "_scales": (exponent + 127).to(torch.uint8)}, values


def channels8(weight: torch.Tensor) -> Stored:
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"": stored, "_scale": scale}, stored.float() * scale


def integers8(weight: torch.Tensor) -> Stored:
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"": stored, "_scale": scale}, stored.float() * scale


def packed4(weight: torch.Tensor) -> Stored:
    """Pack eight values of 4 bits into each int32, in groups of 32 columns with one scale."""
    scale = weight.unflatten(1, (-1, 32)).abs().amax(2) / 7
    levels = (weight / blocks_of(scale, (1, 32))).round().clamp(-8, 7)
    nibbles = (levels + 8).long().unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)
    packed = nibbles.sum(2)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).int()
    shape = torch.tensor(weight.shape)
    tensors = {"_packed": packed, "_scale": scale, "_shape": shape}
    return tensors, levels * blocks_of(scale, (1, 32))


def affine4(weight: torch.Tensor) -> Stored:
    """Pack eight values of 4 bits into each uint32, with a scale and a bias for each 64 columns."""
    parts = weight.unflatten(1, (-1, 64))
    low, high = parts.amin(2), parts.amax(2)
    scale = (high - low) / 15
    levels = ((parts - low[..., None]) / scale[..., None]).round()
    packed = (levels.flatten(1).long().unflatten(1, (-1, 8)) << torch.arange(0, 32, 4)).sum(2)
    values = (levels * scale[..., None] + low[..., None]).flatten(1)
    return {"": packed.to(torch.uint32), ".scales": scale, ".qbiases": low}, values


def build(
    folder: Path,
    architecture: str,
    quantize: Quantizer,
    declared: Mapping[str, Any],
    *,
    of: str = "_proj.weight",
    auto: Any = tf.AutoModelForCausalLM,
) -> tuple[Path, Path]:
    """Save a quantized model, and an ordinary one with the same values.

    Parameters
    ----------
    of
        End of the names of what is quantized.
    """
    torch.manual_seed(0)
    ordinary, quantized = folder / "ordinary", folder / "quantized"
    auto.from_config(CONFIGS[architecture]()).save_pretrained(ordinary)
    values, stored = load_file(ordinary / "model.safetensors"), {}
    for name, tensor in list(values.items()):
        if not name.endswith(of):
            stored[name] = tensor
            continue
        parts, values[name] = quantize(tensor)
        for suffix, part in parts.items():
            key = name.removesuffix(".weight") + suffix if suffix.startswith(".") else name + suffix
            stored[key] = part.contiguous()
    values = {name: tensor.contiguous() for name, tensor in values.items()}
    save_file(values, ordinary / "model.safetensors", metadata={"format": "pt"})
    quantized.mkdir()
    save_file(stored, quantized / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((ordinary / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": dict(declared)}))
    return quantized, ordinary


def compressed(format_: str, **weights: Any) -> dict[str, Any]:
    """Return the entry of a config by which compressed-tensors declares its weights."""
    scheme = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": format_,
        "quantization_status": "compressed",
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
    }


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
# architecture, quantizer, what its config declares, and end of the names of what is quantized
DEQUANTIZED: dict[str, tuple[str, Quantizer, dict[str, Any], str]] = {
    "fp8": ("llama", fp8, FP8, "_proj.weight"),
    "fp8 of experts": ("qwen3-moe", fp8, FP8, "_proj.weight"),
    "mxfp8": (
        "llama",
        mxfp8,
        {"quant_method": "mxfp8", "weight_block_size": [1, 32], "scale_fmt": "ue8m0"},
        "_proj.weight",
    ),
    "mxfp4": (
        "gpt-oss",
        mxfp4,
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
        "_proj",
    ),
    "metal": ("llama", affine4, {"quant_method": "metal", "bits": 4, "group_size": 64}, "_proj.weight"),
    "compressed-tensors, float-quantized": (
        "llama",
        channels8,
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        "_proj.weight",
    ),
    "compressed-tensors, int-quantized": (
        "llama",
        integers8,
        compressed("int-quantized", num_bits=8, type="int", strategy="channel"),
        "_proj.weight",
    ),
    "compressed-tensors, pack-quantized": (
        "llama",
        packed4,
        compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32),
        "_proj.weight",
    ),
}
