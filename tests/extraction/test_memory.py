"""The memory of a model by arithmetic, against what PyTorch counts."""

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
from actkit.extraction import memory
from actkit.extraction.memory import (
    MOST_TOKENS,
    auto_tokens,
    device_bytes,
    host_bytes,
    position_bytes,
    weights_bytes,
)
from actkit.extraction.models.checkpoints import Checkpoint, find_checkpoint
from actkit.extraction.models.loading import Architecture, read_architecture

GB = 10**9


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and remembers the most."""

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
def test_weights_are_as_large_as_pytorch_says(
    name: str, dtype: str, architectures: Callable[[str], Path]
) -> None:
    checkpoint, _ = opened(architectures(name))
    auto = AutoModel if name == "minilm" else AutoModelForCausalLM
    model = auto.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype))
    held = sum(tensor.nbytes for tensor in model.parameters())
    # position ids and the like, which some checkpoints hold
    assert weights_bytes(checkpoint, dtype) == pytest.approx(held, rel=0.01)


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
    found = weights_bytes(checkpoint, "bfloat16", bits)
    assert found == pytest.approx(model.get_memory_footprint(), rel=0.1)
    assert found < weights_bytes(checkpoint, "bfloat16")


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


def test_what_is_kept_waits_on_the_device(architectures: Callable[[str], Path]) -> None:
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
        # where nothing seems to fit it is tried all the same: batches are halved
        (8 * GB, 8 * GB, 700_000, 2**8),
        (8 * GB, 80 * GB, 700_000, 2**8),
    ],
)
def test_batches_are_as_large_as_the_device_allows(
    total: int, weights: int, position: int, tokens: int
) -> None:
    assert auto_tokens(total, weights, position) == tokens


def test_a_cpu_has_no_memory_of_its_own() -> None:
    assert device_bytes(Config(model="m", data="d", out="o", device="cpu")) is None


@pytest.mark.parametrize(
    ("limit", "expected"), [("1000\n", 1000), ("max\n", None), (f"{2**62}\n", None), (None, None)]
)
def test_a_container_may_have_less_memory_than_the_machine(
    limit: str | None, expected: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LIMITS", (str(tmp_path / "memory.max"), str(tmp_path / "none")))
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
    pages = next(line for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    assert host_bytes() == expected if expected else host_bytes() == int(pages.split()[1]) * 1024
