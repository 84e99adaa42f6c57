"""Estimates of the memory of a model: weights, and activations during a pass."""

from pathlib import Path
from typing import Any

import psutil
import torch

from ...config import Config
from ..models.architecture import Architecture
from ..models.checkpoint import Checkpoint
from ..models.devices import pick_device
from ..models.quantization import Quantization
from ..models.weight_files import stored_tensors, weight_files
from ..models.weight_keys import is_of_quantized

# no GPU that we know of computes more positions per second with larger batches
MOST_TOKENS = 2**14
_LEAST_TOKENS = 2**8
# share of device memory; the rest is for the driver, generation and fragmentation
_USED = 0.8
_WAITING = 2  # batches with values on the device: one is computed, one is copied
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
_QUANTIZED = {"8bit": 1.02, "4bit": 0.56}  # bytes per value, including scales
_VALUES = ("weight", "_packed", "_blocks")  # name suffixes of quantized weights, without scales
_TOKEN = 3200  # bytes of host memory per token of the vocabulary, while a GGUF file is read
# names in GGUF files
_EMBEDDING = "token_embd.weight"
_EXPERTS = "_exps"
_INNER = ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size")
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def weights_bytes(
    checkpoint: Checkpoint,
    dtype: str,
    quantization: str | None = None,
    *,
    declared: Quantization | None = None,
) -> int:
    """Return the size of a model's weights in memory.

    Parameters
    ----------
    checkpoint
        Checkpoint of the model.
    dtype
        Dtype in which the weights are loaded.
    quantization
        The option ``quantization``.
    declared
        Quantization of the checkpoint; None if its weights are not quantized.
    """
    if checkpoint.gguf is not None:
        return sum(checkpoint.gguf.elements.values()) * _BYTES.get(dtype, 4)
    total, each = 0.0, _BYTES.get(dtype, 4)
    dequantized = declared is not None and declared.dequantized
    for tensor in stored_tensors(weight_files(checkpoint.folder)):
        if declared is not None and (not tensor.is_float or is_of_quantized(tensor.name)):
            if not dequantized:
                total += tensor.n_bytes
            elif tensor.name.endswith(_VALUES):
                total += tensor.n_bytes * 8 / declared.bits * each
        elif tensor.is_float:
            # bitsandbytes leaves embeddings and vectors as they are
            linear = len(tensor.shape) == 2 and "emb" not in tensor.name
            total += tensor.n_values * (_QUANTIZED[quantization] if quantization and linear else each)
        else:
            total += tensor.n_bytes
    return int(total)


def loading_bytes(checkpoint: Checkpoint, hidden: int, dtype: str) -> int:
    """Return the peak host memory while a model is loaded, including its weights.

    Parameters
    ----------
    checkpoint
        Checkpoint of the model.
    hidden
        Width of the residual stream.
    dtype
        Dtype in which the weights are loaded.

    Returns
    -------
    int
        0 for safetensors, which are loaded tensor by tensor to their final place.

    Notes
    -----
    transformers dequantizes a GGUF file in host memory for any device: each tensor to float32, then copied,
    then cast; experts stay float32 until all tensors are read. Its reader also creates an object for each
    token and each merge of the vocabulary. Pages of the mapped file are not counted, since the operating
    system can drop them.
    """
    if checkpoint.gguf is None:
        return 0
    elements, item = checkpoint.gguf.elements, _BYTES.get(dtype, 4)
    most = held = experts = 0
    for name, count in elements.items():  # in the order of the file
        is_expert = _EXPERTS in name
        size = 4 if is_expert else item
        most = max(most, held + (2 * 4 + size) * count)
        held += size * count
        experts += count if is_expert else 0
    cast = item * experts if item != 4 else 0
    return max(most, held + cast) + _TOKEN * (elements.get(_EMBEDDING, 0) // hidden)


def position_bytes(architecture: Architecture, kept: int, dtype: str) -> int:
    """Return the bytes that a pass holds on its device for each position of a batch.

    Parameters
    ----------
    architecture
        Architecture of the model.
    kept
        Number of outputs kept of each position.
    dtype
        Dtype of the weights.
    """
    config, hidden, item = architecture.config, architecture.hidden, _BYTES.get(dtype, 4)
    heads = _number(config, "num_attention_heads") or 1
    head = _number(config, "head_dim") or hidden // heads
    keys = _number(config, "num_key_value_heads") or heads
    inner = next((size for name in _INNER if (size := _number(config, name))), 4 * hidden)
    experts = _number(config, "num_experts_per_tok") * _number(config, "moe_intermediate_size")
    attention = (2 * heads + 2 * keys) * head + 2 * hidden
    mlp = 4 * max(inner, experts)
    # the stream and its norm in float32, then one part, or a kept output reduced in float64
    block = (4 * item + 8) * hidden + max(item * attention, item * mlp, 2 * 8 * hidden)
    return block + item * _WAITING * kept * hidden


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if isinstance(value, list | tuple):  # one per block
        value = max(value, default=0)
    return value if isinstance(value, int) else 0


def device_bytes(config: Config) -> int | None:
    """Return the total memory of the devices that compute a model; None for host memory."""
    device = pick_device(config.device)
    if device.type != "cuda":
        return None
    indices = range(torch.cuda.device_count()) if config.device_map else (device.index or 0,)
    return sum(int(torch.cuda.get_device_properties(index).total_memory) for index in indices)


def auto_tokens(total: int, weights: int, position: int) -> int:
    """Return the maximum number of positions of a batch on a dedicated device, a power of two.

    Parameters
    ----------
    total
        Total memory of the device instead of its free memory, so that a run resumed on the same machine
        has the same batches.
    weights, position
        Bytes of the weights, and of each position during a pass.
    """
    room = max(int(_USED * total) - weights, 0) // position
    return min(max(1 << (max(room, 1).bit_length() - 1), _LEAST_TOKENS), MOST_TOKENS)


def host_bytes() -> int:
    """Return the total memory available to this process, on the machine or in its container."""
    limits = (Path(path) for path in _LIMITS)
    set_limits = [
        int(text) for path in limits if path.is_file() and (text := path.read_text().strip()).isdigit()
    ]
    return min([int(psutil.virtual_memory().total), *set_limits])
