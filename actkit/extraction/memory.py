"""The memory that a model takes, by arithmetic: its weights, and what a pass through them holds."""

import json
from pathlib import Path
from typing import Any

import psutil
import torch

from ..config import Config
from .models.checkpoints import Checkpoint
from .models.loading import Architecture, pick_device

# Beyond this, no GPU that we know of computes more positions a second.
MOST_TOKENS = 2**14
_LEAST_TOKENS = 2**8
# of the device's memory; the rest is for its driver, for generation, and for what allocators leave unused
_USED = 0.8
_WAITING = 2  # batches whose values are on the device: one is computed, one is being copied
_FLOATS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_QUANTIZED = {"8bit": 1.02, "4bit": 0.56}  # bytes a value, scales included
_INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def weights_bytes(checkpoint: Checkpoint, dtype: str, quantization: str | None = None) -> int:
    """Return the size of a model's weights in memory.

    Parameters
    ----------
    checkpoint
        Where they are.
    dtype
        As what they are loaded.
    quantization
        The option.
    """
    total = 0.0
    for path in checkpoint.folder.glob("*.safetensors"):
        for name, tensor in _header(path).items():
            begin, end = tensor["data_offsets"]
            size = end - begin
            if (stored := _FLOATS.get(tensor["dtype"])) is not None:
                # bitsandbytes leaves embeddings and vectors as they are
                linear = len(tensor["shape"]) == 2 and "emb" not in name
                each = _QUANTIZED[quantization] if quantization and linear else _BYTES.get(dtype, 4)
                size = size // stored * each
            total += size
    return int(total)


def _header(path: Path) -> dict[str, Any]:
    """Return what a safetensors file says of its tensors."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tensor for name, tensor in header.items() if name != "__metadata__"}


def position_bytes(architecture: Architecture, kept: int, dtype: str) -> int:
    """Return what a pass holds on its device for each position of a batch.

    Parameters
    ----------
    architecture
        Of the model.
    kept
        Number of outputs that are kept of each position.
    dtype
        That of the weights.
    """
    config, hidden, item = architecture.config, architecture.hidden, _BYTES.get(dtype, 4)
    heads = _number(config, "num_attention_heads") or 1
    head = _number(config, "head_dim") or hidden // heads
    keys = _number(config, "num_key_value_heads") or heads
    inner = next((size for name in _INNER if (size := _number(config, name))), 4 * hidden)
    experts = _number(config, "num_experts_per_tok") * _number(config, "moe_intermediate_size")
    attention = (2 * heads + 2 * keys) * head + 2 * hidden
    mlp = 4 * max(inner, experts)
    # the stream, and its norm in float32; then one of the parts, or what is kept, reduced in float64
    block = (4 * item + 8) * hidden + max(item * attention, item * mlp, 2 * 8 * hidden)
    return block + item * _WAITING * kept * hidden


def _number(config: Any, name: str) -> int:
    found = getattr(config, name, None)
    if isinstance(found, list | tuple):  # one a block
        found = max(found, default=0)
    return found if isinstance(found, int) else 0


def device_bytes(config: Config) -> int | None:
    """Return all the memory of the devices that compute a model; None where it is the host's."""
    device = pick_device(config.device)
    if device.type != "cuda":
        return None
    own = device.index or 0
    indices = range(torch.cuda.device_count()) if config.device_map else (own,)
    return sum(int(torch.cuda.get_device_properties(index).total_memory) for index in indices)


def auto_tokens(total: int, weights: int, position: int) -> int:
    """Return how many positions a batch may have on a device of its own; a power of two.

    Parameters
    ----------
    total
        Memory of the device: all of it, not what is free, so that a run which is continued on the same
        machine has the same batches.
    weights, position
        What the model takes of it, and a position of a pass.
    """
    room = max(int(_USED * total) - weights, 0) // position
    return min(max(1 << (max(room, 1).bit_length() - 1), _LEAST_TOKENS), MOST_TOKENS)


def host_bytes() -> int:
    """Return all the memory that this process could have: that of the machine, or of its container."""
    limits = (Path(path) for path in _LIMITS)
    own = [int(text) for path in limits if path.is_file() and (text := path.read_text().strip()).isdigit()]
    return min([int(psutil.virtual_memory().total), *own])
