"""Architectures are read without weights; models are loaded, or refused if something is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from actkit.errors import ModelError
from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.checkpoint import Checkpoint, find_checkpoint
from actkit.extraction.models.hook_points import hook_output, hooks
from actkit.extraction.models.loader import load_model
from tests.extraction.loaded_models import CONFIGS, load, options, read

PARTS = {"residual": 4, "attention": 4, "mlp": 4}
IMAGES = {**PARTS, "vision": 3}


@pytest.mark.parametrize(
    ("name", "model_type", "positions", "components", "can_generate"),
    [
        ("llama", "llama", 64, PARTS, True),
        ("bert", "bert", 512, PARTS, False),
        ("roberta", "roberta", 40, PARTS, False),  # numbers positions from after its pad id
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
    architecture = read(tmp_path)
    assert (architecture.config.model_type, architecture.n_layers, architecture.hidden) == (model_type, 4, 32)
    assert architecture.full.model_type == CONFIGS[name]().model_type
    assert architecture.config.vocab_size == 97
    assert (architecture.positions, architecture.can_generate) == (positions, can_generate)
    assert architecture.components == components


def test_reserved_positions_of_roberta_are_not_counted(saved: Any) -> None:
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
            "model tiny: AlbertModel: cannot identify its 4 blocks; matching module lists: none "
            "(not supported yet)",
        ),
        ("vit", "model tiny: `vit` takes pixel_values, not text"),
    ],
)
def test_unsupported_architectures_are_faults(name: str, message: str, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("auto", [tf.AutoModel, tf.AutoModelForCausalLM], ids=["base", "with head"])
def test_a_text_model_without_generation(auto: Any, saved: Any) -> None:
    loaded = load(saved("llama", auto))
    assert loaded.base is loaded.model is loaded.hook_points.decoder
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
    assert loaded.base is loaded.hook_points.decoder is loaded.model.model
    ids = torch.tensor([[5, 6, 7]])
    generated = loaded.model.generate(input_ids=ids, max_new_tokens=3, do_sample=False, eos_token_id=-1)  # type: ignore[operator]
    assert generated.shape == (1, 6)


def test_a_missing_head_is_an_error_only_where_it_is_needed(saved: Any) -> None:
    folder = saved("llama", tf.AutoModel)
    assert load(folder).dtype == torch.float32
    with pytest.raises(
        ModelError, match=r"^tiny: weights are missing or have a different shape: lm_head\.weight$"
    ):
        load(folder, generate={"max_new_tokens": 3})


def test_missing_weights_are_an_error_except_those_of_the_pooler(saved: Any, tmp_path: Path) -> None:
    weights = load_file(saved("bert") / "model.safetensors")
    CONFIGS["bert"]().save_pretrained(tmp_path)
    without = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    assert len(without) < len(weights)
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load(tmp_path).dtype == torch.float32
    gone = "encoder.layer.1.output.dense.bias"
    del without[gone]
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"^tiny: weights are missing or have a different shape: {gone}$"):
        load(tmp_path)


@pytest.mark.parametrize(
    "auto",
    [tf.AutoModel, tf.AutoModelForSeq2SeqLM, tf.AutoModelForTextEncoding],
    ids=["both", "head", "encoder"],
)
def test_only_the_encoder_of_t5_is_loaded(auto: Any, saved: Any) -> None:
    loaded = load(saved("t5", auto))
    assert type(loaded.model).__name__ == "T5EncoderModel"
    assert len(loaded.hook_points.blocks) == 4
    assert not any(name.startswith("decoder") for name, _ in loaded.model.named_parameters())


@pytest.mark.parametrize("generate", [False, True])
@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2.5-vl"])
def test_a_model_with_images_has_a_base_and_a_vision_tower(name: str, generate: bool, saved: Any) -> None:
    changes = {"generate": {"max_new_tokens": 2}} if generate else {}
    loaded = load(saved(name, tf.AutoModelForImageTextToText), **changes)
    assert type(loaded.model).__name__.endswith("ForConditionalGeneration") is generate
    assert loaded.base is (loaded.model.model if generate else loaded.model)
    assert loaded.hook_points.decoder is loaded.base.language_model
    assert (len(loaded.hook_points.blocks), len(loaded.vision)) == (4, 3)
    tower = loaded.base.get_encoder(modality="image")
    given_by: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: given_by.append(hook_output(out)))
        for block in loaded.vision
    ]
    torch.manual_seed(0)
    pixels: dict[str, Any] = {"pixel_values": torch.rand(2, 3, 32, 32)}
    if name == "qwen2.5-vl":
        pixels = {"hidden_states": torch.rand(64, 96), "grid_thw": torch.tensor([[1, 8, 8]])}
    with hooks(handles), torch.no_grad():
        states = tower(**pixels, output_hidden_states=True).hidden_states
    assert len(states) == 4
    # as in the text model, the last state may come after a norm
    for ours, theirs in zip(given_by[:-1], states[1:-1], strict=True):
        assert torch.equal(ours, theirs)
    assert len(given_by) == 3


def test_a_checkpoint_that_transformers_cannot_load_is_one_error(saved: Any, tmp_path: Path) -> None:
    CONFIGS["llama"]().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"^tiny: cannot be loaded: "):
        load(tmp_path)
    weights = load_file(saved("llama") / "model.safetensors")
    weights["norm.weight"] = weights["norm.weight"][:-1].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load(tmp_path)
    assert (
        str(caught.value)
        == "tiny: weights are missing or have a different shape: norm.weight (31,) not (32,)"
    )


@pytest.mark.parametrize("name", ["llama", "tied", "gemma3"])
def test_a_head_is_loaded_on_request(name: str, saved: Any) -> None:
    auto = tf.AutoModelForImageTextToText if name == "gemma3" else tf.AutoModelForCausalLM
    folder = saved(name, auto)
    config = options(folder)
    checkpoint, faults = find_checkpoint(str(folder), None)
    assert checkpoint is not None
    assert not faults
    loaded = load_model(checkpoint, read(folder), config, head=True)
    ids = torch.arange(5, 12)[None]
    with torch.no_grad():
        expected = auto.from_pretrained(folder).eval()(input_ids=ids).logits
        assert torch.equal(loaded.model(input_ids=ids).logits, expected)
    assert loaded.base is loaded.model.base_model
    assert len(loaded.hook_points.blocks) == 4
    assert not hasattr(load(folder).model, "lm_head")
