"""Models are read before their weights, loaded with every option, and refused where something is amiss."""

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from actkit.config import Config
from actkit.errors import ModelError
from actkit.extraction.models.checkpoints import Checkpoint
from actkit.extraction.models.loading import (
    Architecture,
    LoadedModel,
    check_model_options,
    load_model,
    read_architecture,
)
from actkit.extraction.models.sites import check_sum_rule, hooks, site_output

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
PIXELS = {"image_size": 32, "patch_size": 8}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=2, max_position_embeddings=64),
    "tied": lambda: tf.LlamaConfig(**SMALL, num_key_value_heads=2, tie_word_embeddings=True),
    "bert": lambda: tf.BertConfig(**SMALL),
    "roberta": lambda: tf.RobertaConfig(**{**SMALL, "pad_token_id": 3}, max_position_embeddings=44),
    "mamba": lambda: tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=4, state_size=4),
    "t5": lambda: tf.T5Config(**T5, num_decoder_layers=2),
    "mpt": lambda: tf.MptConfig(vocab_size=97, d_model=32, n_layers=4, n_heads=4),
    "albert": lambda: tf.AlbertConfig(**SMALL, embedding_size=16),
    "vit": lambda: tf.ViTConfig(**TOWER, **PIXELS),
    "gemma3": lambda: tf.Gemma3Config(
        text_config={**SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
        vision_config={**TOWER, **PIXELS},
        mm_tokens_per_image=4,
        image_token_index=90,
        boi_token_index=91,
        eoi_token_index=92,
    ),
    "llava": lambda: tf.LlavaConfig(
        text_config=tf.LlamaConfig(**SMALL),
        vision_config=tf.CLIPVisionConfig(**TOWER, **PIXELS),
        image_token_index=90,
    ),
    "qwen2.5-vl": lambda: tf.Qwen2_5_VLConfig(
        text_config={
            **SMALL,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "depth": 3,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [2],
        },
        image_token_id=90,
        video_token_id=93,
        vision_start_token_id=91,
        vision_end_token_id=92,
    ),
}
PARTS = {"residual": 4, "attention": 4, "mlp": 4}
IMAGES = {**PARTS, "vision": 3}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random model, as a class of transformers makes it."""
    folders: dict[tuple[str, Any], Path] = {}

    def folder(name: str, auto: Any = tf.AutoModel) -> Path:
        if (name, auto) not in folders:
            torch.manual_seed(0)
            folders[name, auto] = tmp_path_factory.mktemp(name)
            auto.from_config(CONFIGS[name]()).save_pretrained(folders[name, auto])
        return folders[name, auto]

    return folder


def options(folder: Path, **given: Any) -> Config:
    return Config(model=str(folder), data="data.csv", out="run", **given)


def read(folder: Path) -> Architecture:
    architecture, faults = read_architecture(Checkpoint("tiny", folder, ""))
    assert faults == []
    assert architecture is not None
    return architecture


def load(folder: Path, **given: Any) -> LoadedModel:
    config, architecture = options(folder, **given), read(folder)
    assert check_model_options(architecture, config) == []
    return load_model(Checkpoint("tiny", folder, ""), architecture, config)


def everything(loaded: LoadedModel) -> list[torch.Tensor]:
    """Run two prompts, and return what each block and each part of it gave."""
    given: list[torch.Tensor] = []
    sites = loaded.sites
    modules = [*sites.blocks, *(m for found in sites.components.values() for m in found)]
    ids = torch.arange(3, 17).reshape(2, 7)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    handles = [
        module.register_forward_hook(lambda _m, _a, out: given.append(site_output(out).clone()))
        for module in modules
    ]
    with hooks(handles), torch.no_grad():
        sites.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    return given


@pytest.mark.parametrize(
    ("name", "model_type", "positions", "components", "can_generate"),
    [
        ("llama", "llama", 64, PARTS, True),
        ("bert", "bert", 512, PARTS, False),
        ("roberta", "roberta", 40, PARTS, False),  # which counts from after its pad id on
        ("mamba", "mamba", None, {"residual": 4}, True),
        ("t5", "t5", None, PARTS, False),
        ("mpt", "mpt", None, PARTS, True),
        ("gemma3", "gemma3_text", 131072, IMAGES, True),
        ("llava", "llama", 2048, IMAGES, True),
        ("qwen2.5-vl", "qwen2_5_vl_text", 32768, IMAGES, True),
    ],
)
def test_an_architecture_is_read_without_weights(
    name: str,
    model_type: str,
    positions: int | None,
    components: dict[str, int],
    can_generate: bool,
    tmp_path: Path,
) -> None:
    CONFIGS[name]().save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    found = read(tmp_path)
    assert (found.config.model_type, found.n_layers, found.hidden) == (model_type, 4, 32)
    assert found.full.model_type == CONFIGS[name]().model_type
    assert found.config.vocab_size == 97
    assert (found.positions, found.can_generate) == (positions, can_generate)
    assert found.components == components


def test_the_positions_of_roberta_are_those_that_it_computes(saved: Any) -> None:
    loaded = load(saved("roberta"))
    ids = torch.full((1, read(saved("roberta")).positions), 7)  # type: ignore[arg-type]
    with torch.no_grad():
        loaded.model(input_ids=ids)
        with pytest.raises(RuntimeError, match="index 44 is out of bounds"):
            loaded.model(input_ids=torch.cat([ids, ids[:, :1]], dim=1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "albert",
            "model tiny: AlbertModel: cannot tell its 4 blocks for certain; these lists fit: none "
            "(not supported yet)",
        ),
        ("vit", "model tiny: `vit` reads pixel_values, not text"),
    ],
)
def test_what_cannot_be_captured_is_a_fault(name: str, message: str, tmp_path: Path) -> None:
    CONFIGS[name]().save_pretrained(tmp_path)
    architecture, faults = read_architecture(Checkpoint("tiny", tmp_path, ""))
    assert architecture is None
    assert [str(fault) for fault in faults] == [message]


def test_a_config_that_cannot_be_built_is_a_fault(tmp_path: Path) -> None:
    CONFIGS["llama"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "wish"}))
    architecture, faults = read_architecture(Checkpoint("tiny", tmp_path, ""))
    assert architecture is None
    assert [fault.what.partition(":")[0] for fault in faults] == ["`llama` cannot be built"]


@pytest.mark.parametrize(
    ("name", "given", "missing", "messages"),
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
                "generate: `bert` reads text, and cannot continue it (leave it out)",
            ],
        ),
        (
            "t5",
            {"generate": {"max_new_tokens": 2}},
            [],
            ["generate: `t5` reads text, and cannot continue it (leave it out)"],
        ),
        ("mpt", {"attn_implementation": "eager", "generate": {"max_new_tokens": 2}}, [], []),
        ("gemma3", {"generate": {"max_new_tokens": 2}, "dtype": "bfloat16"}, [], []),
    ],
)
def test_options_that_cannot_be_met_are_faults(
    name: str,
    given: dict[str, Any],
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
    faults = check_model_options(read(tmp_path), options(tmp_path, **given))
    assert [str(fault) for fault in faults] == messages


def test_options_are_checked_as_far_as_they_can_be_without_an_architecture(tmp_path: Path) -> None:
    given = {"device": "cuda:99", "generate": {"max_new_tokens": 2}, "attn_implementation": "sdpa"}
    faults = check_model_options(None, options(tmp_path, **given))
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
        "quantization: the checkpoint is quantized already (leave it out, or use the unquantized checkpoint)"
    ]


@pytest.mark.parametrize("auto", [tf.AutoModel, tf.AutoModelForCausalLM], ids=["base", "with head"])
def test_a_text_model_without_generation(auto: Any, saved: Any) -> None:
    loaded = load(saved("llama", auto))
    assert loaded.base is loaded.model is loaded.sites.decoder
    assert type(loaded.model).__name__ == "LlamaModel"
    assert (loaded.vision, loaded.device, loaded.dtype) == ((), torch.device("cpu"), torch.float32)
    assert not loaded.model.training


@pytest.mark.parametrize(
    ("name", "auto"),
    [("llama", tf.AutoModelForCausalLM), ("tied", tf.AutoModel), ("tied", tf.AutoModelForCausalLM)],
)
def test_generation_comes_with_the_head(name: str, auto: Any, saved: Any) -> None:
    loaded = load(saved(name, auto), generate={"max_new_tokens": 3})
    assert type(loaded.model).__name__ == "LlamaForCausalLM"
    assert loaded.base is loaded.sites.decoder is loaded.model.model
    ids = torch.tensor([[5, 6, 7]])
    generated = loaded.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, eos_token_id=-1)  # type: ignore[operator]
    assert generated.shape == (1, 6)


def test_a_missing_head_is_an_error_only_where_it_is_needed(saved: Any) -> None:
    folder = saved("llama", tf.AutoModel)
    assert load(folder).dtype == torch.float32
    with pytest.raises(ModelError, match=r"^tiny: weights are missing or of another shape: lm_head\.weight$"):
        load(folder, generate={"max_new_tokens": 3})


def test_missing_weights_are_an_error_but_for_the_pooler(saved: Any, tmp_path: Path) -> None:
    weights = load_file(saved("bert") / "model.safetensors")
    CONFIGS["bert"]().save_pretrained(tmp_path)
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(without) < len(weights)
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path).dtype == torch.float32
    gone = "encoder.layer.1.output.dense.bias"
    del without[gone]
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"^tiny: weights are missing or of another shape: {gone}$"):
        load(tmp_path)


@pytest.mark.parametrize(
    "auto",
    [tf.AutoModel, tf.AutoModelForSeq2SeqLM, tf.AutoModelForTextEncoding],
    ids=["both", "head", "encoder"],
)
def test_of_t5_the_encoder_is_loaded(auto: Any, saved: Any) -> None:
    loaded = load(saved("t5", auto))
    assert type(loaded.model).__name__ == "T5EncoderModel"
    assert len(loaded.sites.blocks) == 4
    assert not any(name.startswith("decoder") for name, _ in loaded.model.named_parameters())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_loaded_in_another_dtype(dtype: str, saved: Any) -> None:
    loaded = load(saved("llama"), dtype=dtype)
    assert loaded.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {loaded.dtype}


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_attention_is_computed_as_asked(name: str, saved: Any) -> None:
    loaded = load(saved("llama"), attn_implementation=name)
    assert loaded.sites.decoder.config._attn_implementation == name
    for ours, theirs in zip(everything(loaded), everything(load(saved("llama"))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device_map", ["auto", "balanced", "sequential"])
def test_a_device_map_changes_no_number(device_map: str, saved: Any) -> None:
    spread, whole = load(saved("llama"), device_map=device_map), load(saved("llama"))
    if torch.cuda.is_available():
        pytest.skip("other devices round in another way")
    assert spread.device == torch.device("cpu")
    for ours, theirs in zip(everything(spread), everything(whole), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["llama", "bert", "gemma3"])
def test_blocks_that_accelerate_keeps_on_disk_are_seen_all_the_same(
    name: str, saved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    whole = load(saved(name))
    names = {module: path for path, module in whole.model.named_modules()}
    devices = {names[block]: ("disk", "cpu")[layer % 2] for layer, block in enumerate(whole.sites.blocks)}
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
    assert {p.device.type for p in spread.sites.blocks[0].parameters()} == {"meta"}
    assert (spread.device, spread.dtype) == (torch.device("cpu"), torch.float32)
    for ours, theirs in zip(everything(spread), everything(whole), strict=True):
        assert torch.equal(ours, theirs)
    ids = torch.tensor([[5, 6, 7]])
    assert 0 < max(check_sum_rule(spread.sites, lambda: spread.sites.decoder(input_ids=ids))) < 1e-6


@pytest.mark.parametrize(("bits", "dtype"), [("8bit", "auto"), ("4bit", "auto"), ("4bit", "bfloat16")])
def test_quantization_is_asked_of_transformers(
    bits: str, dtype: str, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package, which needs no GPU to be asked for."""
    asked: dict[str, Any] = {}

    def load_nothing(*_: Any, **given: Any) -> None:
        asked.update(given)
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
    given, expected = everything(quantized), everything(whole)
    assert not torch.equal(given[0], expected[0])
    for ours, theirs in zip(given, expected, strict=True):
        assert torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1] > 0.8
    ids = torch.tensor([[5, 6, 7]])
    assert 0 < max(check_sum_rule(quantized.sites, lambda: quantized.sites.decoder(input_ids=ids))) < 1e-6


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2.5-vl"])
def test_a_model_with_images_has_a_base_and_a_vision_tower(name: str, generate: bool, saved: Any) -> None:
    given = {"generate": {"max_new_tokens": 2}} if generate else {}
    loaded = load(saved(name, tf.AutoModelForImageTextToText), **given)
    assert type(loaded.model).__name__.endswith("ForConditionalGeneration") is generate
    assert loaded.base is (loaded.model.model if generate else loaded.model)
    assert loaded.sites.decoder is loaded.base.language_model
    assert (len(loaded.sites.blocks), len(loaded.vision)) == (4, 3)
    tower = loaded.base.get_encoder(modality="image")
    given_by: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: given_by.append(site_output(out)))
        for block in loaded.vision
    ]
    torch.manual_seed(0)
    pixels: dict[str, Any] = {"pixel_values": torch.rand(2, 3, 32, 32)}
    if name == "qwen2.5-vl":
        pixels = {"hidden_states": torch.rand(64, 96), "grid_thw": torch.tensor([[1, 8, 8]])}
    with hooks(handles), torch.no_grad():
        states = tower(**pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4
    # as in the text model, the last one may be after a norm
    for ours, theirs in zip(given_by[:-1], states[1:-1], strict=True):
        assert torch.equal(ours, theirs)
    assert len(given_by) == 3


def test_what_transformers_cannot_load_is_one_error(saved: Any, tmp_path: Path) -> None:
    CONFIGS["llama"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^tiny: cannot be loaded: "):
        load(tmp_path)
    weights = load_file(saved("llama") / "model.safetensors")
    weights["norm.weight"] = weights["norm.weight"][:-1].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert str(caught.value) == "tiny: weights are missing or of another shape: norm.weight (31,) not (32,)"
