"""Options for loading the weights of a model: dtype, quantization, device map and attention."""

import copy
import re
from typing import Any

import torch
from transformers import BitsAndBytesConfig, GgufConfig, PreTrainedConfig, PreTrainedModel

from ...config import Config
from .checkpoint import Checkpoint
from .quantization import loadable_config, read_quantization
from .weight_files import FLOATS, stored_tensors, weight_files
from .weight_keys import is_of_quantized

_COMPUTED = {getattr(torch, name) for name in FLOATS.values()}


def is_quantized(full: PreTrainedConfig, config: Config) -> bool:
    """Return whether a model computes with quantized weights, rather than dequantized ones.

    Parameters
    ----------
    full
        Full config of the model.
    config
        Options of the run.
    """
    declared = read_quantization(full)
    return config.quantization is not None or (declared is not None and not declared.dequantized)


def weights_dtype(checkpoint: Checkpoint, full: PreTrainedConfig, config: Config) -> str:
    """Return the dtype in which the weights of a model are loaded, or the compute dtype if quantized.

    Parameters
    ----------
    checkpoint
        The model.
    full
        Full config of the model.
    config
        Options of the run. With ``dtype="auto"`` the config of the model decides or, if it declares no dtype,
        the first weight of the first file that has a floating-point type, as in transformers. float64 is
        loaded as float32, the widest type of a cube.
    """
    if config.dtype != "auto":
        return config.dtype
    if checkpoint.gguf is not None:
        return checkpoint.gguf.dtype
    for part in (full, full.get_text_config()):
        declared = str(getattr(part, "dtype", None)).removeprefix("torch.")
        if declared in FLOATS.values():
            return _at_most_float32(declared)
    stored = sorted(stored_tensors(weight_files(checkpoint.folder)[:1]), key=lambda tensor: tensor.name)
    return _at_most_float32(next((FLOATS[tensor.dtype] for tensor in stored if tensor.is_float), "float32"))


def _at_most_float32(dtype: str) -> str:
    return "float32" if dtype == "float64" else dtype


def load_options(
    checkpoint: Checkpoint, full: PreTrainedConfig, config: Config, device: torch.device
) -> dict[str, Any]:
    """Return the arguments of ``from_pretrained``, without options left at their defaults.

    Parameters
    ----------
    checkpoint
        The model.
    full
        Full config of the model.
    config
        Options of the run.
    device
        Device that computes.
    """
    options: dict[str, Any] = {
        "dtype": getattr(torch, weights_dtype(checkpoint, full, config)),
        "ignore_mismatched_sizes": True,  # check_keys reports them by name; this error would not
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "output_loading_info": True,
    }
    declared = read_quantization(full)
    if checkpoint.gguf is not None:
        # passing the config avoids parsing the header again, which is slow
        options |= {"config": copy.deepcopy(full), "quantization_config": GgufConfig(dequantize=True)}
    if declared is not None:
        options["config"] = loadable_config(full)
    if config.quantization is not None:
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_8bit=config.quantization == "8bit",
            load_in_4bit=config.quantization == "4bit",
            bnb_4bit_compute_dtype=options["dtype"],
        )
    if config.device_map is not None:
        options["device_map"] = config.device_map
    elif declared is not None or config.quantization is not None:  # or the quantizer would choose a device
        options["device_map"] = {"": device}
    if config.attn_implementation is not None:
        options["attn_implementation"] = config.attn_implementation
    return options


def cast_unquantized(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the unquantized weights of a quantized checkpoint, as transformers does for other checkpoints.

    Parameters
    ----------
    model
        The loaded model. Quantized weights, and weights that the architecture keeps in float32, are left
        unchanged.
    dtype
        Requested dtype.
    """
    kept = [name.replace(".", r"\.").replace("*", ".*") for name in model._get_dtype_plan(dtype)]
    for name, parameter in model.named_parameters():
        # bitsandbytes has its own parameter types
        if type(parameter) is not torch.nn.Parameter or parameter.is_meta or is_of_quantized(name):
            continue
        # torch counts float8 as floating point, but its values are meaningless without their scale
        if parameter.dtype in _COMPUTED and not any(re.search(pattern, name) for pattern in kept):
            parameter.data = parameter.data.to(dtype)
