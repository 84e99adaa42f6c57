"""Quantized checkpoints: equal to their dequantized weights, or refused by method."""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from bitsandbytes.functional import has_avx512bf16
from safetensors.torch import load_file, save_file
from transformers.integrations.fbgemm_fp8 import FbgemmFp8Linear
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, get_hf_quantizer

import actkit
from actkit.errors import ChangedError, InputError
from actkit.extraction.models.checkpoint import Checkpoint
from actkit.extraction.models.hook_points import hook_output, hooks
from actkit.extraction.models.load_options import cast_unquantized
from actkit.extraction.models.loader import check_model_options
from actkit.extraction.models.quantization import METHODS, Quantization, read_quantization
from actkit.extraction.models.weight_files import declared_quantization
from actkit.extraction.preflight.model_memory import weights_bytes
from tests.extraction.loaded_models import load, options, read
from tests.extraction.quantized import CONFIGS, DEQUANTIZED, FP8, build, compressed, fp8

IDS = torch.arange(3, 17).reshape(2, 7)
INSTEAD = "(use the unquantized checkpoint)"


UNTESTED = [
    "actkit has not been tested with (dequantize it with the package that made it "
    "and save the model, or use the unquantized checkpoint)"
]
# message for each method; None for supported methods, which are compared with a reference below
DECIDED: dict[str, list[str] | None] = {
    **dict.fromkeys(
        ("aqlm", "auto-round", "awq", "bitnet", "fbgemm_fp8", "fouroversix", "fp_quant"), UNTESTED
    ),
    **dict.fromkeys(("gemma", "gptq", "higgs", "hqq", "quark", "sinq", "spqr", "torchao", "vptq"), UNTESTED),
    **dict.fromkeys(("bitsandbytes_4bit", "bitsandbytes_8bit", "compressed-tensors"), None),
    **dict.fromkeys(("fp8", "metal", "mxfp4", "mxfp8"), None),
    "nvfp4": [f"transformers cannot load {INSTEAD}"],
    "quanto": [f"transformers cannot load {INSTEAD}"],
    "eetq": [f"runs kernels from the Hugging Face Hub, which actkit never does {INSTEAD}"],
    "gguf": ["must be loaded from a GGUF file (give the file: `model: file.gguf`)"],
}


def declare(folder: Path, **entries: Any) -> None:
    """Declare quantized weights in the config of an ordinary model."""
    CONFIGS["llama"]().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": entries}))


def residual(model: Any, blocks: Any) -> list[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    handles = [b.register_forward_hook(lambda _m, _a, out: outputs.append(hook_output(out))) for b in blocks]
    with hooks(handles), torch.no_grad():
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
    return outputs


def ours(folder: Path, **settings: Any) -> list[torch.Tensor]:
    loaded = load(folder, **settings)
    return residual(loaded.hook_points.decoder, loaded.hook_points.blocks)


def theirs(folder: Path, dtype: Any = torch.float32) -> list[torch.Tensor]:
    """Return transformers' hidden states for ordinary weights, before the final norm."""
    model = tf.AutoModel.from_pretrained(folder, dtype=dtype).eval()
    model.config.tie_last_hidden_states = False
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True, use_cache=False).hidden_states
    return list(states[1:])


def test_every_method_of_transformers_is_supported_or_refused() -> None:
    assert METHODS.keys() == AUTO_QUANTIZER_MAPPING.keys() == DECIDED.keys()
    dequantized = {name for name, method in METHODS.items() if method.dequantized}
    assert dequantized == {name.partition(",")[0].removesuffix(" of experts") for name in DEQUANTIZED}
    tested = dequantized | {"bitsandbytes_4bit", "bitsandbytes_8bit"}
    assert tested == {name for name, messages in DECIDED.items() if messages is None}


@pytest.mark.parametrize("method", AUTO_QUANTIZER_MAPPING)
def test_methods_are_accepted_or_refused_before_loading(method: str, tmp_path: Path) -> None:
    name, _, bits = method.partition("_")
    flags = {f"load_in_{bits}": True} if name == "bitsandbytes" else {}
    declare(tmp_path, quant_method=name if flags else method, **flags)
    faults = check_model_options(read(tmp_path), options(tmp_path, device="cpu"))
    where = f"model {tmp_path}: is quantized with `{method}`, which"
    assert [str(fault) for fault in faults] == [f"{where} {message}" for message in DECIDED[method] or []]


@pytest.mark.parametrize("method", [name for name, messages in DECIDED.items() if messages is UNTESTED])
def test_untested_methods_are_refused_even_with_their_packages(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: find(name, *rest) or find("json"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AUTO_QUANTIZER_MAPPING[method], "validate_environment", lambda *_, **__: None)
    declare(tmp_path, quant_method=method)
    (fault,) = check_model_options(read(tmp_path), options(tmp_path, device="cpu"))
    assert f"`{method}`" in fault.what


def test_a_method_unknown_to_transformers_is_refused(tmp_path: Path) -> None:
    declare(tmp_path, quant_method="wish")
    (fault,) = check_model_options(read(tmp_path), options(tmp_path))
    assert fault.what == f"is quantized with `wish`, which transformers {tf.__version__} does not support"


def test_checks_of_transformers_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old(*_: Any, **__: Any) -> None:
        raise ImportError("needs accelerate 99\nand more")

    monkeypatch.setattr(AUTO_QUANTIZER_MAPPING["fp8"], "validate_environment", too_old)
    declare(tmp_path, **FP8)
    (fault,) = check_model_options(read(tmp_path), options(tmp_path))
    assert fault.what == "is quantized with `fp8`, which cannot be loaded here: needs accelerate 99"


@pytest.mark.usefixtures("no_weights")
def test_a_missing_package_is_named_before_the_weights_are_read(
    model_copy: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, missing = importlib.util.find_spec, "compressed_tensors"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else find(name, *rest)
    )
    path, weights = model_copy / "config.json", model_copy / "model.safetensors"
    entry = {"quantization_config": {"quant_method": "compressed-tensors"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    save_file({**load_file(weights), "a.weight_packed": torch.ones(1, dtype=torch.int32)}, weights)
    with pytest.raises(InputError) as caught:
        actkit.plan(model=str(model_copy), data=str(prompts), out=str(tmp_path / "run"))
    assert [fault.message for fault in caught.value.faults] == [
        "is quantized with `compressed-tensors`, which needs compressed-tensors "
        "(pip install compressed-tensors, or use the unquantized checkpoint)"
    ]


@pytest.mark.parametrize("name", DEQUANTIZED)
def test_dequantized_weights_give_the_same_values_as_ordinary_ones(name: str, tmp_path: Path) -> None:
    architecture, quantize, declared, of = DEQUANTIZED[name]
    quantized, ordinary = build(tmp_path, architecture, quantize, declared, of=of)
    (dequantized,) = {read_quantization(tf.AutoConfig.from_pretrained(quantized)).dequantized}  # type: ignore[union-attr]
    assert dequantized
    for values, expected in zip(ours(quantized), theirs(ordinary), strict=True):
        assert torch.equal(values, expected)


def test_dequantized_weights_match_in_bfloat16_and_with_a_head(tmp_path: Path) -> None:
    quantized, ordinary = build(tmp_path, "llama", fp8, FP8)
    outputs = ours(quantized, dtype="bfloat16", generate={"max_new_tokens": 1})
    # the product of a weight and its scale is rounded once
    for values, expected in zip(outputs, theirs(ordinary, torch.bfloat16), strict=True):
        assert torch.equal(values, expected)


def test_modules_that_are_not_quantized_stay_as_they_are(tmp_path: Path) -> None:
    declared = {**FP8, "modules_to_not_convert": ["lm_head", "model.layers.1.mlp.down_proj"]}
    quantized, ordinary = build(tmp_path, "llama", fp8, declared)
    whole, stored = load_file(ordinary / "model.safetensors"), load_file(quantized / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    stored[name] = whole[name] = whole[name] + 0.001
    del stored[f"{name}_scale_inv"]
    save_file(stored, quantized / "model.safetensors")
    save_file(whole, ordinary / "model.safetensors")
    for values, expected in zip(ours(quantized), theirs(ordinary), strict=True):
        assert torch.equal(values, expected)


@pytest.fixture(scope="module")
def bitsandbytes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a model quantized by bitsandbytes."""
    pytest.importorskip("bitsandbytes")
    ordinary = tmp_path_factory.mktemp("ordinary")
    torch.manual_seed(0)
    tf.AutoModelForCausalLM.from_config(CONFIGS["llama"]()).save_pretrained(ordinary)

    def save(bits: str) -> Path:
        folder = tmp_path_factory.mktemp(bits)
        asked = tf.BitsAndBytesConfig(
            load_in_8bit=bits == "8bit", load_in_4bit=bits == "4bit", bnb_4bit_quant_type="nf4"
        )
        model = tf.AutoModelForCausalLM.from_pretrained(
            ordinary, quantization_config=asked, device_map={"": "cpu"}
        )
        model.save_pretrained(folder)
        return folder

    return save


def plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Dequantize weights saved by bitsandbytes, without bitsandbytes."""
    values = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight") and tensor.dtype == torch.int8:
            values[name] = tensor.float() * tensors[name.removesuffix("weight") + "SCB"][:, None] / 127
        elif name.endswith(".weight") and tensor.dtype == torch.uint8:
            state = bytes(tensors[f"{name}.quant_state.bitsandbytes__nf4"].tolist())
            nibbles = torch.stack([tensor >> 4, tensor & 15], -1).flatten().long()
            levels = tensors[f"{name}.quant_map"][nibbles].view(-1, json.loads(state)["blocksize"])
            whole = levels * tensors[f"{name}.absmax"][:, None]
            values[name] = whole.view(json.loads(state)["shape"])
        elif name.endswith("weight"):
            values[name] = tensor
    return values


# inputs of products are rounded: to 8 bits for 8-bit weights; for 4 bits to bfloat16, if the CPU supports it
@pytest.mark.parametrize(
    ("bits", "tolerance"), [("8bit", 0.03), ("4bit", 0.02 if has_avx512bf16() else 1e-5)]
)
def test_bitsandbytes_weights_match_their_dequantized_values(
    bits: str, tolerance: float, bitsandbytes: Callable[[str], Path], tmp_path: Path
) -> None:
    quantized = bitsandbytes(bits)
    CONFIGS["llama"]().save_pretrained(tmp_path)
    save_file(
        plain(load_file(quantized / "model.safetensors")), tmp_path / "model.safetensors", {"format": "pt"}
    )
    for values, expected in zip(ours(quantized), theirs(tmp_path), strict=True):
        assert (values - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("name", [*DEQUANTIZED, "8bit", "4bit"])
def test_the_memory_of_quantized_checkpoints_matches_pytorch(
    name: str, bitsandbytes: Callable[[str], Path], tmp_path: Path
) -> None:
    if name in DEQUANTIZED:
        architecture, quantize, declared, of = DEQUANTIZED[name]
        folder, _ = build(tmp_path, architecture, quantize, declared, of=of)
    else:
        folder = bitsandbytes(name)
    model = load(folder, dtype="bfloat16", generate={"max_new_tokens": 1}).model
    held = sum(tensor.nbytes for tensor in model.parameters())
    states = [getattr(tensor, "quant_state", None) for tensor in model.parameters()]
    held += sum(state.absmax.nbytes for state in states if state is not None)
    planned = weights_bytes(
        Checkpoint("tiny", folder, ""), "bfloat16", declared=read_quantization(read(folder).full)
    )
    assert planned == pytest.approx(
        held, rel=0.06
    )  # CPUs with bfloat16 products store the scales of 4-bit weights in bfloat16


def test_weights_of_float8_that_have_a_scale_keep_their_type() -> None:
    """Return the class that transformers computes with."""
    model = tf.AutoModel.from_config(CONFIGS["llama"]())
    linear = FbgemmFp8Linear(256, 384, bias=False)
    model.layers[1].mlp.up_proj = linear
    assert linear.weight.dtype == torch.float8_e4m3fn
    cast_unquantized(model, torch.bfloat16)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    kept = {
        f"layers.1.mlp.up_proj.{name}": types.pop(f"layers.1.mlp.up_proj.{name}")
        for name, _ in linear.named_parameters()
    }
    assert list(kept.values()) == [torch.float8_e4m3fn, torch.float32]
    assert set(types.values()) == {torch.bfloat16}


BITS: dict[str, tuple[dict[str, Any], int]] = {
    "groups": (compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32), 4),
    "a preset of 8 bits": ({"config_groups": {"W8A8": ["Linear"]}}, 8),
    "a preset of 4 bits": ({"config_groups": {"W4A16": ["Linear"]}}, 4),
    "a preset that is unknown": ({"config_groups": {"W9": ["Linear"]}}, 8),
    "no groups": ({"config_groups": {}}, 8),
    "null": ({"config_groups": None}, 8),
    "without weights": ({"config_groups": {"g": {"targets": ["Linear"], "weights": None}}}, 8),
    "a list": ({"config_groups": ["Linear"]}, 8),
    "a number": ({"config_groups": {"g": 3}}, 8),
}


@pytest.mark.parametrize("form", BITS)
def test_the_bits_of_every_form_of_compressed_tensors_are_known(form: str) -> None:
    declared, bits = BITS[form]
    assert Quantization("compressed-tensors", declared).bits == bits


@pytest.mark.parametrize("bits", [0, -4, "four", None, True])
def test_invalid_bits_default_to_eight(bits: Any) -> None:
    assert Quantization("metal", {"bits": bits}).bits == 8


@pytest.mark.parametrize("part", ["whole", "text_config", "decoder", "vision_config"])
def test_declarations_are_found_in_the_same_places_as_in_transformers(part: str) -> None:
    text, entry = {"model_type": "llama"}, {"quantization_config": {**FP8}}
    content: dict[str, Any] = {
        "whole": {**text, **entry},
        "text_config": {"model_type": "llava", "text_config": {**text, **entry}},
        "decoder": {
            "model_type": "vision-encoder-decoder",
            "encoder": {"model_type": "vit"},
            "decoder": {**text, **entry},
        },
        "vision_config": {
            "model_type": "llava",
            "text_config": text,
            "vision_config": {"model_type": "clip_vision_model", **entry},
        },
    }[part]
    config = tf.CONFIG_MAPPING[content["model_type"]].from_dict(content)
    quantization = read_quantization(config)
    quantizer, _, _ = get_hf_quantizer(config, None, {"": "cpu"}, True, {})
    assert (
        (quantization is not None) == (declared_quantization(content) is not None) == (quantizer is not None)
    )
    assert (quantization is not None) == (part != "vision_config")


@pytest.fixture
def quantized_copy(tiny_model: Path, model_copy: Path) -> Path:
    """Folder of the bundled model with weights in blocks of float8."""
    path, weights = model_copy / "config.json", model_copy / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    for key, tensor in load_file(weights).items():
        if "layers" in key and key.endswith("_proj.weight") and not any(size % 16 for size in tensor.shape):
            parts, _ = fp8(tensor.float(), (16, 16))
            stored |= {key + suffix: part for suffix, part in parts.items()}
        else:
            stored[key] = tensor
    save_file(stored, weights, metadata={"format": "pt"})
    entry = {"quantization_config": {**FP8, "weight_block_size": [16, 16]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    return model_copy


@pytest.mark.slow
def test_a_run_records_its_quantization_and_continues_only_with_the_same(
    quantized_copy: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract() -> Any:
        return actkit.extract(
            model=str(quantized_copy),
            data=str(prompts),
            out=str(tmp_path / "run"),
            device="cpu",
            listeners=[],
        )

    cube = extract()
    assert cube.attrs["weights_quantization"] == "fp8, dequantized"
    assert np.isfinite(cube.norm.values[cube.has_residual.values]).any()
    assert cube.attrs["weights_dtype"] == str(load(quantized_copy).dtype).removeprefix("torch.")
    extract()
    monkeypatch.setattr(Quantization, "__str__", lambda _: "fp8")
    with pytest.raises(ChangedError, match="weights_quantization: was 'fp8, dequantized', is now 'fp8'"):
        extract()


def test_a_run_records_the_versions_of_quantization_packages(
    bitsandbytes: Callable[[str], Path], model_copy: Path, prompts: Path, tmp_path: Path
) -> None:
    attrs = actkit.plan(
        model=str(model_copy),
        data=str(prompts),
        out=str(tmp_path / "run"),
        quantization="8bit",
        trial=False,
    ).attrs
    assert attrs["weights_quantization"] == "bitsandbytes_8bit"
    assert attrs["bitsandbytes_version"] == importlib.metadata.version("bitsandbytes")
