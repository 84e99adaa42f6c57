"""Models are loaded with every option, and unsupported options are refused."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from actkit.errors import ModelError
from actkit.extraction.models.checkpoint import Checkpoint
from actkit.extraction.models.hook_points import check_sum_rule, hook_output, hooks
from actkit.extraction.models.loader import LoadedModel, check_model_options, load_model
from tests.extraction.loaded_models import CONFIGS, SMALL, load, options, read


def everything(loaded: LoadedModel) -> list[torch.Tensor]:
    """Run two prompts and return the outputs of each block and its parts."""
    outputs: list[torch.Tensor] = []
    hook_points = loaded.hook_points
    modules = [
        *hook_points.blocks,
        *(m for components in hook_points.components.values() for m in components),
    ]
    ids = torch.arange(3, 17).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    handles = [
        module.register_forward_hook(lambda _m, _a, out: outputs.append(hook_output(out).clone()))
        for module in modules
    ]
    with hooks(handles), torch.no_grad():
        hook_points.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    return outputs


@pytest.mark.parametrize(
    ("name", "changes", "missing", "messages"),
    [
        (
            "llama",
            {"quantization": "8bit", "device_map": "auto"},
            ["bitsandbytes", "accelerate"],
            [
                "device_map: `auto` needs accelerate (pip install accelerate)",
                "quantization: `8bit` needs accelerate (pip install accelerate)",
                "quantization: `8bit` needs bitsandbytes (pip install bitsandbytes)",
            ],
        ),
        (
            "llama",
            {"attn_implementation": "flash_attention_2"},
            ["flash_attn"],
            [
                "attn_implementation: `flash_attention_2` needs flash-attn (pip install flash-attn)",
                "attn_implementation: flash attention needs a CUDA device (try sdpa or eager)",
            ],
        ),
        (
            "mpt",
            {"attn_implementation": "sdpa"},
            [],
            [
                "attn_implementation: `mpt` cannot use `sdpa`: MptModel does not support an attention "
                "implementation through torch.nn.functional.scaled_dot_product_attention yet "
                "(leave it out, or try eager)"
            ],
        ),
        (
            "bert",
            {"generate": {"max_new_tokens": 2}, "device": "cuda:99"},
            [],
            [
                "device: there is no `cuda:99` here (0 CUDA devices; try auto)",
                "generate: `bert` cannot generate text (leave it out)",
            ],
        ),
        (
            "t5",
            {"generate": {"max_new_tokens": 2}},
            [],
            ["generate: `t5` cannot generate text (leave it out)"],
        ),
        ("mpt", {"attn_implementation": "eager", "generate": {"max_new_tokens": 2}}, [], []),
        ("gemma3", {"generate": {"max_new_tokens": 2}, "dtype": "bfloat16"}, [], []),
    ],
)
def test_unsupported_options_are_faults(
    name: str,
    changes: dict[str, Any],
    missing: list[str],
    messages: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in missing else find(name, *a)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    CONFIGS[name]().save_pretrained(tmp_path)
    faults = check_model_options(read(tmp_path), options(tmp_path, **changes))
    assert [str(fault) for fault in faults] == messages


def test_options_are_checked_as_far_as_they_can_be_without_an_architecture(tmp_path: Path) -> None:
    settings = {"device": "cuda:99", "generate": {"max_new_tokens": 2}, "attn_implementation": "sdpa"}
    faults = check_model_options(None, options(tmp_path, **settings))
    assert [fault.where for fault in faults] == ["device"]


def test_a_quantized_checkpoint_is_not_quantized_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: find("json" if name == "bitsandbytes" else name, *a)
    )
    CONFIGS["llama"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **quantized}))
    faults = check_model_options(read(tmp_path), options(tmp_path, quantization="4bit"))
    assert [str(fault) for fault in faults] == [
        "quantization: the checkpoint is already quantized (leave it out, or use the unquantized checkpoint)"
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_loaded_in_another_dtype(dtype: str, saved: Any) -> None:
    loaded = load(saved("llama"), dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {loaded.dtype}


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_the_requested_attention_implementation_is_used(name: str, saved: Any) -> None:
    loaded = load(saved("llama"), attn_implementation=name)
    assert loaded.hook_points.decoder.config._attn_implementation == name
    for ours, theirs in zip(everything(loaded), everything(load(saved("llama"))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_a_device_map_does_not_change_values(device_map: str, saved: Any) -> None:
    spread, whole = load(saved("llama"), device_map=device_map), load(saved("llama"))
    if torch.cuda.is_available():
        pytest.skip("other devices round in another way")
    assert spread.device == torch.device("cpu")
    for ours, theirs in zip(everything(spread), everything(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "bert", "gemma3"])
def test_blocks_offloaded_to_disk_are_captured(
    name: str, saved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    whole = load(saved(name))
    names = {module: path for path, module in whole.model.named_modules()}
    devices = {
        names[block]: ("disk", "cpu")[layer % 2] for layer, block in enumerate(whole.hook_points.blocks)
    }
    around = {path[: path.rindex(".")] for path in devices}
    around |= {path[: path.rindex(".")] for path in around if "." in path}
    for path in ["", *around]:
        for child, module in whole.model.get_submodule(path).named_children():
            full = f"{path}.{child}".lstrip(".")
            if full not in around | devices.keys():
                reads_tokens = whole.model.get_input_embeddings() in module.modules()
                devices[full] = "disk" if reads_tokens else "cpu"
    folder = saved(name)
    config = options(folder).model_copy(update={"device_map": devices})
    spread = load_model(Checkpoint("tiny", folder, ""), read(folder), config)
    assert {p.device.type for p in spread.hook_points.blocks[0].parameters()} == {"meta"}
    assert (spread.device, spread.dtype) == (torch.device("cpu"), torch.float32)
    for ours, theirs in zip(everything(spread), everything(whole), strict=True):
        assert torch.equal(ours, theirs)
    ids = torch.tensor([[5, 6, 7]])
    assert (
        0 < max(check_sum_rule(spread.hook_points, lambda: spread.hook_points.decoder(input_ids=ids))) < 1e-6
    )


@pytest.mark.parametrize(("bits", "dtype"), [("8bit", "auto"), ("4bit", "auto"), ("4bit", "bfloat16")])
def test_quantization_is_passed_to_transformers(
    bits: str, dtype: str, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing package is reported on machines without a GPU, too."""
    asked: dict[str, Any] = {}

    def load_nothing(*_: Any, **arguments: Any) -> None:
        asked.update(arguments)
        raise ImportError("that is enough")

    monkeypatch.setattr(tf.AutoModel, "from_pretrained", load_nothing)
    folder = saved("llama")
    config = options(folder, quantization=bits, dtype=dtype, device="cpu")
    with pytest.raises(ModelError, match=r"^tiny: cannot be loaded: that is enough$"):
        load_model(Checkpoint("tiny", folder, ""), read(folder), config)
    settings = asked["quantization_config"]
    assert (settings.load_in_8bit, settings.load_in_4bit) == (bits == "8bit", bits == "4bit")
    assert settings.bnb_4bit_compute_dtype == getattr(torch, "float32" if dtype == "auto" else dtype)
    assert asked["device_map"] == {"": torch.device("cpu")}


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_quantized_model_is_captured(bits: str, tmp_path: Path) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wide = {**SMALL, "hidden_size": 128, "intermediate_size": 192, "initializer_range": 0.05}
    torch.manual_seed(0)
    tf.AutoModel.from_config(tf.LlamaConfig(**wide)).save_pretrained(tmp_path)
    quantized, whole = load(tmp_path, quantization=bits), load(tmp_path)
    kind = {"8bit": bitsandbytes.nn.Linear8bitLt, "4bit": bitsandbytes.nn.Linear4bit}[bits]
    assert sum(isinstance(module, kind) for module in quantized.model.modules()) == 7 * 4
    outputs, expected = everything(quantized), everything(whole)
    assert not torch.equal(outputs[0], expected[0])
    for ours, theirs in zip(outputs, expected, strict=True):
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.8
    ids = torch.tensor([[5, 6, 7]])
    assert (
        0
        < max(check_sum_rule(quantized.hook_points, lambda: quantized.hook_points.decoder(input_ids=ids)))
        < 1e-6
    )
