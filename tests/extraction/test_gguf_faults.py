"""GGUF files that cannot be read, or not as they are meant, are refused before anything is loaded."""

# ruff: noqa: E501 - a table of exact messages is easier to read unbroken

import importlib.util
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.integrations.gguf.gguf_config_mapping import GGUF_CONFIG_ARCHS

import actkit
from actkit.errors import InputError
from actkit.extraction.models.gguf_files import check_contents, read_gguf
from tests.extraction.gguf_models import HIDDEN, MATRICES, VECTORS, write_gguf


def faults_of(model: Path | str, data: Path, tmp_path: Path, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        actkit.plan(model=str(model), data=str(data), out=str(tmp_path / "run"), **options)
    return [str(fault) for fault in caught.value.faults]


def header(version: int = 3, tensors: int = 1, entries: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


ARCHITECTURE = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "cannot mmap an empty file"),
    "another format": (lambda _: b"PK\x03\x04" * 20, "it does not start with GGUF"),
    "pointer of git lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "it does not start with GGUF"),
    "of another version": (lambda _: header(version=77), "version 77 is not supported"),
    "cut in its header": (lambda content: content[:1000], "it ends too early"),
    "cut in its first bytes": (lambda content: content[:11], "it ends too early"),
    "cut in its tensors": (lambda content: content[:-5000], "it ends before the end of `blk.1.ffn_down.weight`"),
    "too many tensors": (lambda _: header(tensors=2**60), f"it declares {2**60:,} tensors"),
    "too many entries": (lambda _: header(entries=2**60), f"it declares {2**60:,} entries"),
    "endless text": (lambda _: header() + struct.pack("<Q", 2**63), "it ends too early"),
    "endless array": (lambda _: header() + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 8, 2**62), "it ends too early"),
    "endless numbers": (lambda _: header() + struct.pack("<Q", 1) + b"a" + struct.pack("<IIQ", 9, 4, 2**62), "it ends too early"),
    "arrays of arrays": (lambda _: header() + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 2000, "it holds a value of unknown type 9"),
    "unknown value": (lambda _: header() + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 99), "it holds a value of unknown type 99"),
    "no architecture": (lambda _: header(entries=0, tensors=0), "it declares no architecture"),
    "no tensors": (lambda _: header(tensors=0) + ARCHITECTURE, "it holds no tensors"),
    "too many dimensions": (lambda _: header() + ARCHITECTURE + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 2**31), f"`a` has {2**31:,} dimensions"),
    "huge tensor": (lambda _: header() + ARCHITECTURE + struct.pack("<Q", 1) + b"a" + struct.pack("<IQQQQIQ", 4, *[2**63] * 4, 0, 0), "it ends before the end of `a`"),
    "unknown tensor type": (lambda _: header() + ARCHITECTURE + struct.pack("<Q", 1) + b"a" + struct.pack("<IQIQ", 1, 1, 999, 0), "999 is not a valid GGMLQuantizationType"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_one_fault(
    name: str, small_gguf: tuple[Path, dict[str, np.ndarray]], prompts: Path, tmp_path: Path
) -> None:
    damage, reason = BAD[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(small_gguf[0].read_bytes()))
    assert faults_of(path, prompts, tmp_path) == [
        f"model {path}: is not a valid GGUF file: {reason} (download it again)"
    ]


def test_an_architecture_that_transformers_cannot_read_is_one_fault(
    prompts: Path, tmp_path: Path, tokenizer: Any
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, tokenizer, architecture="plamo")
    (fault,) = faults_of(path, prompts, tmp_path)
    assert (
        f"model {path}: its config cannot be read: GGUF model with architecture plamo is not supported yet"
        in fault
    )


def test_a_shard_is_one_fault(
    small_gguf: tuple[Path, dict[str, np.ndarray]], prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model-00001-of-00002.gguf"
    shutil.copy(small_gguf[0], path)
    message = f"model {path}: is one of 2 shards (merge them with llama.cpp's `llama-gguf-split --merge`)"
    assert faults_of(path, prompts, tmp_path) == [message]
    shutil.copy(small_gguf[0], tmp_path / "model-00002-of-00002.gguf")
    assert faults_of(tmp_path, prompts, tmp_path) == [message]


def test_tensors_that_nothing_would_read_are_a_fault(prompts: Path, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "model.gguf"
    extra = {"rope_freqs.weight": np.ones(8, np.float32), "blk.0.attn_q.bias": np.ones(HIDDEN, np.float32)}
    write_gguf(path, tokenizer, extra=extra)
    assert faults_of(path, prompts, tmp_path) == [
        f"model {path}: holds tensors that transformers does not read: rope_freqs.weight, blk.0.attn_q.bias (use the model's safetensors)"
    ]


SCALED: dict[str, dict[str, Any]] = {
    "rope.scaling.type = yarn": {"scaling.type": "yarn"},
    "rope.scaling.factor = 4.0": {"scaling.type": "linear", "scaling.factor": 4.0},
    "rope.scaling.factor = 2.0": {"scaling.factor": 2.0},
    "rope.scale_linear = 4.0": {"scale_linear": 4.0},
    "rope.scaling.attn_factor = 0.5": {"scaling.type": "none", "scaling.attn_factor": 0.5},
    "rope.scaling.of_tomorrow = 3.0": {"scaling.of_tomorrow": 3.0},
}


UNSCALED: list[dict[str, Any]] = [
    {"scaling.type": "none", "scaling.factor": 4.0},
    {"scaling.type": "linear", "scaling.factor": 1.0},
    {"scale_linear": 1.0},
    {"scaling.factor": 0.0, "scaling.attn_factor": 1.0, "scaling.original_context_length": 64.0},
]


@pytest.mark.parametrize("scaling", SCALED)
def test_scaled_positions_are_a_fault(scaling: str, prompts: Path, tmp_path: Path, tokenizer: Any) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(
        path, tokenizer, entries={f"llama.rope.{key}": value for key, value in SCALED[scaling].items()}
    )
    assert faults_of(path, prompts, tmp_path) == [
        f"model {path}: scales its rotary positions ({scaling}), which transformers does not read from GGUF (use the model's safetensors)"
    ]


@pytest.mark.parametrize("entries", UNSCALED)
def test_entries_of_positions_that_change_nothing_are_no_fault(
    entries: dict[str, Any], tmp_path: Path, tokenizer: Any
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, tokenizer, entries={f"llama.rope.{key}": value for key, value in entries.items()})
    file, faults = read_gguf(path)
    assert faults == []
    assert file is not None
    assert file.rope_scaling == ""


def test_scaled_positions_are_a_fault_of_every_reader(tmp_path: Path, tokenizer: Any) -> None:
    """Transformers reads the config of some architectures in another way, and none of their scaling."""
    path = tmp_path / "model.gguf"
    for architecture in GGUF_CONFIG_ARCHS:
        entries = {f"{architecture}.rope.scaling.factor": 4.0}
        write_gguf(path, tokenizer, architecture=architecture, entries=entries)
        file, _ = read_gguf(path)
        assert file is not None
        (fault,) = check_contents(file, None)
        assert "(rope.scaling.factor = 4.0)" in fault.what


@pytest.mark.slow
def test_options_that_a_file_cannot_have_are_faults(
    small_gguf: tuple[Path, dict[str, np.ndarray]], prompts: Path, tmp_path: Path
) -> None:
    faults = faults_of(small_gguf[0], prompts, tmp_path, quantization="8bit", revision="main")
    assert faults == [
        f"quantization: the GGUF file is already quantized: Q8_0 ({VECTORS} F32, {MATRICES} Q8_0) (leave it out, or use the model's safetensors)",
        "revision: cannot be used with a GGUF file (leave it out; files have no revisions)",
    ]


def test_a_missing_package_is_named(
    small_gguf: tuple[Path, dict[str, np.ndarray]],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest)
    )
    assert faults_of(small_gguf[0], prompts, tmp_path) == [
        f"model {small_gguf[0]}: GGUF files need gguf (pip install gguf)"
    ]
