"""Calculated memory of models, compared with measurements in PyTorch."""

import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoModelForCausalLM

from actkit.config import Config
from actkit.estimates import PROGRAM_BYTES
from actkit.extraction.models.architecture import Architecture, read_architecture
from actkit.extraction.models.checkpoint import Checkpoint, find_checkpoint
from actkit.extraction.preflight import model_memory, run_size
from actkit.extraction.preflight.model_memory import (
    MOST_TOKENS,
    auto_tokens,
    device_bytes,
    host_bytes,
    loading_bytes,
    position_bytes,
    weights_bytes,
)
from actkit.extraction.preflight.preparation import prepare

GB = 10**9


class Live(TorchDispatchMode):
    """Mode that records the peak size of all live tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return output

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def opened(folder: Path) -> tuple[Checkpoint, Architecture]:
    checkpoint, _ = find_checkpoint(str(folder), None)
    assert checkpoint is not None
    architecture, faults = read_architecture(checkpoint)
    assert architecture is not None, faults
    return checkpoint, architecture


@pytest.mark.parametrize("name", ["demo", "minilm", "gemma3", "qwen2", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_bytes_match_pytorch(name: str, dtype: str, architectures: Callable[[str], Path]) -> None:
    checkpoint, _ = opened(architectures(name))
    auto = AutoModel if name == "minilm" else AutoModelForCausalLM
    model = auto.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype))
    held = sum(tensor.nbytes for tensor in model.parameters())
    # position ids and the like, which some checkpoints hold
    assert weights_bytes(checkpoint, dtype) == pytest.approx(held, rel=0.01)


def test_files_that_are_not_loaded_take_no_memory(model_copy: Path) -> None:
    checkpoint, _ = opened(model_copy)
    before = weights_bytes(checkpoint, "bfloat16")
    for name in ("consolidated.safetensors", "model-00001-of-00002.safetensors"):
        shutil.copy(model_copy / "model.safetensors", model_copy / name)
    assert weights_bytes(checkpoint, "bfloat16") == before


WIDE = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from tests.extraction import gguf_models
gguf_models.HIDDEN, gguf_models.INNER, gguf_models.HEAD = 1024, 6144, 256
gguf_models.write_gguf(Path(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[2]))
"""

LOADED = """
import sys
from pathlib import Path
from actkit.extraction.models.checkpoint import find_checkpoint
from actkit.extraction.models.architecture import read_architecture
from actkit.extraction.models.loader import load_model
from tests.extraction.loaded_models import held_privately, options
checkpoint, _ = find_checkpoint(sys.argv[1], None)
architecture, _ = read_architecture(checkpoint)
with held_privately() as most:
    load_model(checkpoint, architecture, options(Path(sys.argv[1]).parent, dtype=sys.argv[2], batch_size=1))
print(most())
"""


@pytest.fixture(scope="module")
def wide_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of 46 million random values, stored as Q8_0."""
    path = tmp_path_factory.mktemp("gguf") / "wide.gguf"
    subprocess.run([sys.executable, "-c", WIDE, str(path), str(tiny_model)], check=True, capture_output=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.nightly)])
def test_loading_a_gguf_file_takes_the_memory_that_is_planned(dtype: str, wide_gguf: Path) -> None:
    checkpoint, architecture = opened(wide_gguf)
    # a separate process, because memory that another test freed would be reused
    program = [sys.executable, "-c", LOADED, str(wide_gguf), dtype]
    done = subprocess.run(program, check=True, capture_output=True, text=True)
    measured, planned = int(done.stdout), loading_bytes(checkpoint, architecture.hidden, dtype)
    assert planned > 1.2 * weights_bytes(checkpoint, dtype)
    # on a busy machine the peak may fall between two measurements
    assert 0.6 < measured / planned < 1.5


def test_experts_of_a_gguf_file_are_held_as_float32_until_they_are_cast() -> None:
    # of a Qwen3-MoE of this kind, 253 MB and 161 MB were measured while it was loaded
    experts = {f"blk.{block}.ffn_{name}_exps.weight": 6_291_456 for block in (0, 1) for name in "abc"}
    checkpoint: Any = SimpleNamespace(gguf=SimpleNamespace(elements={"output.weight": 5_000_000, **experts}))
    assert loading_bytes(checkpoint, 1024, "bfloat16") == 2 * 5_000_000 + (4 + 2) * 6 * 6_291_456
    reading = 4 * (5_000_000 + 5 * 6_291_456) + 12 * 6_291_456
    assert loading_bytes(checkpoint, 1024, "float32") == reading


def test_loading_safetensors_takes_no_additional_memory(architectures: Callable[[str], Path]) -> None:
    checkpoint, architecture = opened(architectures("demo"))
    assert loading_bytes(checkpoint, architecture.hidden, "float32") == 0


def test_the_host_needs_what_loading_takes_whatever_the_device(
    wide_gguf: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": str(wide_gguf), "data": str(prompts), "out": str(tmp_path / "run"), "dtype": "float32"}
    checkpoint, architecture = opened(wide_gguf)
    least = PROGRAM_BYTES + loading_bytes(checkpoint, architecture.hidden, "float32")
    assert prepare(None, asked).estimate.host >= least
    monkeypatch.setattr(run_size, "device_bytes", lambda _: 80 * GB)
    assert prepare(None, asked).estimate.host >= least


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantized_weights_are_about_as_large_as_bitsandbytes_makes_them(
    bits: str, architectures: Callable[[str], Path]
) -> None:
    from transformers import BitsAndBytesConfig

    checkpoint, _ = opened(architectures("demo"))
    quantized = BitsAndBytesConfig(load_in_8bit=bits == "8bit", load_in_4bit=bits == "4bit")
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder, quantization_config=quantized, device_map={"": "cpu"}
    )
    estimate = weights_bytes(checkpoint, "bfloat16", bits)
    assert estimate == pytest.approx(model.get_memory_footprint(), rel=0.1)
    assert estimate < weights_bytes(checkpoint, "bfloat16")


@pytest.mark.parametrize("name", ["demo", "minilm", "gemma3", "qwen2", "gpt2"])
def test_a_position_takes_about_what_pytorch_allocates(
    name: str, architectures: Callable[[str], Path]
) -> None:
    checkpoint, architecture = opened(architectures(name))
    model = AutoModel.from_pretrained(checkpoint.folder)
    ids = torch.ones(16, 32, dtype=torch.long)
    with torch.inference_mode(), Live() as live:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    dtype = str(model.dtype).removeprefix("torch.")
    expected = position_bytes(architecture, 0, dtype) * ids.numel()
    assert 0.9 * live.most < expected < 2 * live.most


def test_kept_values_occupy_the_device_until_copied(architectures: Callable[[str], Path]) -> None:
    _, architecture = opened(architectures("demo"))
    none, ten = (position_bytes(architecture, kept, "bfloat16") for kept in (0, 10))
    # one batch is computed, and one is being copied
    assert ten - none == 2 * 10 * architecture.hidden * 2


def test_experts_count_as_many_times_as_they_are_used() -> None:
    parts = {"num_attention_heads": 4, "intermediate_size": [64, 128]}
    dense: Any = SimpleNamespace(config=SimpleNamespace(**parts), hidden=32)
    experts = {"num_experts_per_tok": 8, "moe_intermediate_size": 48}
    sparse: Any = SimpleNamespace(config=SimpleNamespace(**parts, **experts), hidden=32)
    assert position_bytes(sparse, 0, "float32") - position_bytes(dense, 0, "float32") == 4 * 4 * (384 - 128)


@pytest.mark.parametrize(
    ("total", "weights", "position", "tokens"),
    [
        (80 * GB, 8 * GB, 700_000, MOST_TOKENS),
        (24 * GB, 8 * GB, 700_000, 2**13),
        (16 * GB, 8 * GB, 700_000, 2**12),
        (12 * GB, 8 * GB, 700_000, 2**11),
        (11 * GB, 8 * GB, 700_000, 2**10),
        # if nothing seems to fit, it is tried anyway, and batches are halved
        (8 * GB, 8 * GB, 700_000, 2**8),
        (8 * GB, 80 * GB, 700_000, 2**8),
    ],
)
def test_batches_are_as_large_as_the_device_allows(
    total: int, weights: int, position: int, tokens: int
) -> None:
    assert auto_tokens(total, weights, position) == tokens


def test_a_cpu_has_no_device_memory() -> None:
    assert device_bytes(Config(model="m", data="d", out="o", device="cpu")) is None


@pytest.mark.parametrize(
    ("limit", "expected"), [("1000\n", 1000), ("max\n", None), (f"{2**62}\n", None), (None, None)]
)
def test_a_container_may_have_less_memory_than_the_machine(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_memory, "_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    pages = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert host_bytes() == expected if expected else host_bytes() == int(pages.split()[1]) * 1024
