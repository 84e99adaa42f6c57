"""LoRA adapters are merged completely, with the values of a merge by hand; others are refused."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import importlib.util
import json
import math
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import actkit
from actkit.errors import InputError
from actkit.extraction.models.adapter_files import find_adapter
from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.extraction.models.loader import LoadedModel, load_model
from tests.extraction.gguf_models import write_gguf
from tests.extraction.loaded_models import CONFIGS, options
from tests.extraction.models.test_checkpoint import COMMIT, Touch, cached

RANK, ALPHA = 3, 7
LLAMA = ["q_proj", "v_proj", "down_proj"]
GPT2: Callable[[], Any] = lambda: tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)  # noqa: E731


def base_model(folder: Path, name: str = "llama") -> Any:
    """Save a random model with its head and return it."""
    torch.manual_seed(0)
    auto = tf.AutoModelForMaskedLM if name == "bert" else tf.AutoModelForCausalLM
    model = auto.from_config({**CONFIGS, "gpt2": GPT2}[name]()).eval()
    model.save_pretrained(folder)
    return model


def write_adapter(
    folder: Path, model: Any, targets: list[str], *, prefix: str = "", **entries: Any
) -> dict[str, Any]:
    """Write a random adapter for modules with these name endings, without peft; return its tensors."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] not in targets:
            continue
        weight, key = module.weight, f"base_model.model.{prefix}{name}"
        inner, outer = weight.shape if type(module).__name__ == "Conv1D" else weight.shape[::-1]
        tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inner) / 3
        tensors[f"{key}.lora_B.weight"] = torch.randn(outer, RANK) / 3
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": targets,
        **entries,
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def add(folder: Path, tensors: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Rewrite the tensors of an adapter, with additional ones."""
    save_file({**tensors, **more}, folder / "adapter_model.safetensors")
    return {**tensors, **more}


def merged_by_hand(model: Any, tensors: dict[str, Any], scaling: float) -> dict[str, Any]:
    """Return the weights of a model plus scaling · B · A, computed in plain torch."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modules = dict(model.named_modules())
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            delta = scaling * tensors[key.replace("lora_A", "lora_B")] @ down
            state[f"{name}.weight"] += delta.T if type(modules[name]).__name__ == "Conv1D" else delta
    return state


def load(base: Path, adapter: Path, **settings: Any) -> LoadedModel:
    checkpoint, faults = find_checkpoint(str(base), None, adapter=str(adapter))
    assert faults == []
    assert checkpoint is not None
    architecture, faults = read_architecture(checkpoint)
    assert faults == []
    assert architecture is not None
    return load_model(checkpoint, architecture, options(base, **settings))


def assert_holds(model: Any, state: dict[str, Any]) -> None:
    """Check that a loaded model has these weights, by their names with or without the head."""
    for name, tensor in model.state_dict().items():
        wanted = state[name] if name in state else state[f"{model.base_model_prefix}.{name}"]
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-6)


GENERATES: list[dict[str, Any]] = [{}, {"generate": {"max_new_tokens": 1}}]


@pytest.mark.parametrize("changes", GENERATES, ids=["body", "head"])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_weights_equal_those_merged_by_hand(
    rslora: bool, changes: dict[str, Any], tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base)
    tensors = write_adapter(adapter, model, LLAMA, use_rslora=rslora)
    state = merged_by_hand(model, tensors, ALPHA / (math.sqrt(RANK) if rslora else RANK))
    loaded = load(base, adapter, **changes)
    assert (type(loaded.model) is tf.LlamaForCausalLM) == bool(changes)
    assert_holds(loaded.model, state)


@pytest.mark.parametrize("changes", GENERATES, ids=["body", "head"])
def test_the_weights_of_conv1d_are_transposed(changes: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base, "gpt2")
    tensors = write_adapter(adapter, model, ["c_attn", "c_proj"], fan_in_fan_out=True)
    assert_holds(load(base, adapter, **changes).model, merged_by_hand(model, tensors, ALPHA / RANK))


@pytest.mark.parametrize("changes", GENERATES, ids=["body", "head"])
def test_an_adapter_of_the_model_without_head_is_merged(changes: dict[str, Any], tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base)
    tensors = write_adapter(adapter, model.model, LLAMA, task_type="FEATURE_EXTRACTION")
    state = merged_by_hand(model.model, tensors, ALPHA / RANK)
    whole = {
        **{f"model.{name}": tensor for name, tensor in state.items()},
        "lm_head.weight": model.lm_head.weight,
    }
    assert_holds(load(base, adapter, **changes).model, whole)


def test_an_adapter_of_an_encoder_with_its_head_is_merged(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base, "bert")
    tensors = write_adapter(adapter, model, ["query", "value"], task_type=None)
    state = merged_by_hand(model, tensors, ALPHA / RANK)
    loaded = load(base, adapter)
    for name, tensor in loaded.model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, state[f"bert.encoder.{name}"], rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_fully_trained_modules_are_replaced(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base)
    tensors = write_adapter(adapter, model, LLAMA, modules_to_save=["embed_tokens", "model.norm"])
    whole = {"model.embed_tokens": torch.randn(97, 32), "model.norm": torch.randn(32)}
    tensors = add(
        adapter, tensors, {f"base_model.model.{name}.weight": tensor for name, tensor in whole.items()}
    )
    state = merged_by_hand(model, tensors, ALPHA / RANK)
    state |= {f"{name}.weight": tensor for name, tensor in whole.items()}
    assert_holds(load(base, adapter).model, state)


@pytest.mark.parametrize("layer", [".base_layer", ""], ids=["now", "before peft 0.7"])
def test_trained_biases_are_merged(layer: str, tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base, "gpt2")
    tensors = write_adapter(adapter, model, ["c_attn"], fan_in_fan_out=True, bias="lora_only")
    biases = {
        f"base_model.model.{name.removesuffix('.bias')}{layer}.bias": torch.randn(parameter.shape)
        for name, parameter in model.named_parameters()
        if name.endswith("c_attn.bias")
    }
    state = merged_by_hand(model, add(adapter, tensors, biases), ALPHA / RANK)
    for name, tensor in biases.items():
        state[name.removeprefix("base_model.model.").replace(".base_layer", "")] = tensor
    assert_holds(load(base, adapter).model, state)


def test_an_adapter_saved_by_peft_is_merged(tmp_path: Path) -> None:
    import peft

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = base_model(base)
    config = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=LLAMA, init_lora_weights=False, lora_dropout=0.5
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers warns about how peft uses it
        adapted = peft.get_peft_model(model, config).eval()
    adapted.save_pretrained(adapter)
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        wanted = model.model(ids).last_hidden_state
        merged = load(base, adapter).model(ids).last_hidden_state
    torch.testing.assert_close(merged, wanted, rtol=1e-5, atol=1e-5)


def test_an_adapter_is_merged_into_a_gguf_file(tmp_path: Path, tokenizer: Any) -> None:
    held = write_gguf(tmp_path / "base.gguf", tokenizer)
    checkpoint, _ = find_checkpoint(str(tmp_path / "base.gguf"), None)
    assert checkpoint is not None
    architecture, _ = read_architecture(checkpoint)
    assert architecture is not None
    skeleton = tf.AutoModelForCausalLM.from_config(architecture.full, dtype=torch.float32)
    tensors = write_adapter(tmp_path / "adapter", skeleton, LLAMA)
    skeleton.load_state_dict({name: torch.from_numpy(array) for name, array in held.items()}, strict=False)
    state = merged_by_hand(skeleton, tensors, ALPHA / RANK)
    assert_holds(load(tmp_path / "base.gguf", tmp_path / "adapter", dtype="float32").model, state)


@pytest.fixture
def tuned(tiny_model: Path, tmp_path: Path) -> Path:
    """An adapter of the tiny model."""
    model = tf.AutoModelForCausalLM.from_pretrained(tiny_model)
    write_adapter(tmp_path / "adapter", model, LLAMA, base_model_name_or_path=str(tiny_model))
    return tmp_path / "adapter"


def faults_of(data: Path, out: Path, **settings: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        actkit.plan(data=str(data), out=str(out), **settings)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.slow
def test_a_run_applies_and_records_the_adapter(
    tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    settings = {"model": str(tiny_model), "data": str(prompts)}
    plain = actkit.extract(out=str(tmp_path / "plain"), **settings)
    cube = actkit.extract(out=str(tmp_path / "run"), adapter=str(tuned), **settings)
    assert cube.attrs["adapter"] == str(tuned)
    adapter, _ = find_adapter(str(tuned))
    assert adapter is not None
    assert cube.attrs["adapter_sha256"] == adapter.digest
    assert not np.array_equal(cube.residual.values, plain.residual.values, equal_nan=True)
    with pytest.raises(InputError, match="adapter_sha256"):  # the adapter is part of a run's identity
        actkit.extract(out=str(tmp_path / "run"), **settings)
    tensors = load_file(tuned / "adapter_model.safetensors")
    save_file({key: 2 * tensor for key, tensor in tensors.items()}, tuned / "adapter_model.safetensors")
    with pytest.raises(InputError, match="adapter_sha256"):
        actkit.extract(out=str(tmp_path / "run"), adapter=str(tuned), **settings)


@pytest.mark.slow
def test_an_adapter_as_model_finds_its_base(
    tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    data = str(prompts)
    named = actkit.plan(model=str(tiny_model), adapter=str(tuned), data=data, out=str(tmp_path / "run"))
    plan = actkit.plan(model=str(tuned), data=data, out=str(tmp_path / "run"))
    assert plan.attrs == named.attrs
    assert plan.attrs["model"] == str(tiny_model)


def test_a_base_in_the_cache_of_the_hub_is_found(
    tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    cached(tmp_path / "hub", tiny_model)
    for revision in (None, "main"):
        edit(tuned, base_model_name_or_path="someone/tiny", revision=revision)
        attrs = actkit.plan(model=str(tuned), data=str(prompts), out=str(tmp_path / "run"), trial=False).attrs
        assert (attrs["model"], attrs["model_revision"]) == ("someone/tiny", COMMIT)
        assert attrs["adapter"] == str(tuned)


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def rename(folder: Path, before: str, after: str) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {key.replace(before, after): tensor for key, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def only_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Touch(folder / "marker")))


MERGE = "(merge it with peft and save the model)"
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no adapter": (lambda folder: (folder / "adapter_config.json").unlink(), "adapter {}: is not a folder with adapter_config.json (give a folder saved by peft; download an adapter from the Hub first)"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "adapter {}: has no weights (adapter_model.safetensors) (download the whole adapter)"),
    "only a pickle": (only_pickle, "adapter {}: has only pickled weights (adapter_model.bin) (a pickle can run code when read: save the adapter as safetensors)"),
    "cut": (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "{}/adapter_model.safetensors: is not a valid safetensors file: Error while deserializing header: header too small (download it again)"),
    "no JSON": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "{}/adapter_config.json: is not a JSON object"),
    "another type": (lambda folder: edit(folder, peft_type="IA3"), "adapter {}: is of type 'IA3' (only LoRA is supported; merge it with peft)"),
    "DoRA": (lambda folder: edit(folder, use_dora=True), f"adapter {{}}: uses unsupported options: use_dora {MERGE}"),
    "newer than this": (lambda folder: edit(folder, use_magic=3), f"adapter {{}}: uses unsupported options: use_magic {MERGE}"),
    "activated": (lambda folder: edit(folder, alora_invocation_tokens=[1]), f"adapter {{}}: uses unsupported options: alora_invocation_tokens {MERGE}"),
    "of another base": (lambda folder: edit(folder, init_lora_weights="pissa"), f"adapter {{}}: was initialised with 'pissa', which modifies the base model {MERGE}"),
    "code": (lambda folder: edit(folder, auto_mapping={"parent_library": "evil", "base_model_class": "M"}), "adapter {}: refers to custom code (auto_mapping: evil) (actkit never runs code from an adapter)"),
    "a mapping that is none": (lambda folder: edit(folder, auto_mapping="M"), "adapter {}: auto_mapping is not an object: 'M' (download it again)"),
    "other names": (lambda folder: rename(folder, "layers.2.self_attn", "layers.9.self_attn"), "adapter {}: has tensors that match no module of the model (LlamaForCausalLM): model.layers.9.self_attn.q_proj, model.layers.9.self_attn.v_proj (set `model` to the model that it was trained on)"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_adapter_is_one_fault(
    name: str, tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    damage, message = BAD[name]
    damage(tuned)
    faults = faults_of(prompts, tmp_path / "run", model=str(tiny_model), adapter=str(tuned))
    assert faults == [message.format(tuned)]
    assert not (tuned / "marker").exists(), "a pickle was read"


def test_a_transformers_class_in_auto_mapping_is_allowed(
    tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    mapping = {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    edit(tuned, auto_mapping=mapping)
    actkit.plan(model=str(tiny_model), adapter=str(tuned), data=str(prompts), out=str(tmp_path / "run"))


@pytest.mark.parametrize("base", [None, "/nowhere/base", "someone/never-downloaded"])
def test_a_missing_base_model_is_one_fault(
    base: str | None, tuned: Path, prompts: Path, tmp_path: Path
) -> None:
    edit(tuned, base_model_name_or_path=base)
    where = (
        f"holds an adapter whose base model is not on this machine ({base})"
        if base
        else "holds an adapter, not a model"
    )
    assert faults_of(prompts, tmp_path / "run", model=str(tuned)) == [
        f"model {tuned}: {where} (give `model: BASE` and `adapter: {tuned}`)"
    ]


def test_two_adapters_are_a_fault(tuned: Path, prompts: Path, tmp_path: Path) -> None:
    assert faults_of(prompts, tmp_path / "run", model=str(tuned), adapter=str(tuned)) == [
        f"model {tuned}: holds an adapter, but `adapter` names another one (set `model` to the base model)"
    ]


def test_options_incompatible_with_a_merge_are_faults(
    tiny_model: Path, tuned: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest)
    )
    settings = {"quantization": "8bit", "device_map": "auto", "adapter": str(tuned)}
    assert faults_of(prompts, tmp_path / "run", model=str(tiny_model), **settings) == [
        "adapter: adapters need peft (pip install peft)",
        "quantization: an adapter cannot be merged into quantized weights (leave it out, or merge the adapter first)",
        "device_map: an adapter can only be merged on a single device (leave it out, or merge the adapter first)",
    ]


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_of_tied_embeddings_are_refused(target: str, tmp_path: Path) -> None:
    model = base_model(tmp_path / "base", "tied")
    tensors = write_adapter(tmp_path / "adapter", model, [target])
    if target == "embed_tokens":
        names = {
            key: key.replace("lora_A.weight", "lora_embedding_A").replace("lora_B.weight", "lora_embedding_B")
            for key in tensors
        }
        save_file(
            {names[key]: tensor for key, tensor in tensors.items()},
            tmp_path / "adapter" / "adapter_model.safetensors",
        )
    checkpoint, _ = find_checkpoint(str(tmp_path / "base"), None, adapter=str(tmp_path / "adapter"))
    assert checkpoint is not None
    _, (fault,) = read_architecture(checkpoint)
    assert f"{target}, whose weights the model uses as both input and output embedding" in str(fault)


def test_an_adapter_in_the_folder_of_a_model_is_a_fault(
    tiny_model: Path, tuned: Path, tmp_path: Path, prompts: Path
) -> None:
    both = shutil.copytree(tiny_model, tmp_path / "both")
    shutil.copytree(tuned, both, dirs_exist_ok=True)
    assert faults_of(prompts, tmp_path / "run", model=str(both)) == [
        f"model {both}: holds an adapter (adapter_config.json) (set `adapter`, not `model`, to this folder)"
    ]
