"""Quantized checkpoints: supported methods, and the packages and devices that each requires."""

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.quantizers.auto import AutoHfQuantizer
from transformers.utils import logging

from ...errors import Fault
from .weight_files import declaring_part

# names on PyPI of packages with a different import name
FROM_PIP = {
    "compressed_tensors": "compressed-tensors",
    "flash_attn": "flash-attn",
    "flash_attn_interface": "flash-attn-3",
}
_INSTEAD = "use the unquantized checkpoint"
# default bits of a stored weight, if the config does not specify them
_BITS = 8


@dataclass(frozen=True)
class Method:
    """Support for checkpoints of one quantization method.

    Parameters
    ----------
    packages
        Import names of the required packages.
    dequantized
        Whether weights are dequantized during loading, so that the model computes like an unquantized one,
        on every device and without kernels from the Hugging Face Hub.
    bits
        Bits of a stored weight, for methods that are dequantized; 0 if the config specifies them.
    refusal
        Reason why this method is not supported; empty if it is.
    remedy
        Remedy to suggest if it is not supported.
    """

    packages: tuple[str, ...] = ()
    dequantized: bool = False
    bits: int = 0
    refusal: str = ""
    remedy: str = _INSTEAD


_UNTESTED = Method(
    refusal="actkit has not been tested with",
    remedy=f"dequantize it with the package that made it and save the model, or {_INSTEAD}",
)
_BROKEN = Method(refusal="transformers cannot load")
# one entry for each key of transformers' AUTO_QUANTIZER_MAPPING
METHODS: dict[str, Method] = {
    "aqlm": _UNTESTED,
    "auto-round": _UNTESTED,
    "awq": _UNTESTED,
    "bitnet": _UNTESTED,  # rounds activations as well
    "bitsandbytes_4bit": Method(("accelerate", "bitsandbytes")),
    "bitsandbytes_8bit": Method(("accelerate", "bitsandbytes")),
    "compressed-tensors": Method(("compressed_tensors",), dequantized=True),
    "eetq": Method(refusal="runs kernels from the Hugging Face Hub, which actkit never does"),
    "fbgemm_fp8": _UNTESTED,
    "fouroversix": _UNTESTED,
    "fp8": Method(("accelerate",), dequantized=True, bits=8),
    "fp_quant": _UNTESTED,
    "gemma": _UNTESTED,  # rounds activations as well
    "gguf": Method(refusal="must be loaded from a GGUF file", remedy="give the file: `model: file.gguf`"),
    "gptq": _UNTESTED,
    "higgs": _UNTESTED,
    "hqq": _UNTESTED,
    "metal": Method(dequantized=True),
    "mxfp4": Method(dequantized=True, bits=4),
    "mxfp8": Method(("accelerate",), dequantized=True, bits=8),
    "nvfp4": _BROKEN,
    "quanto": _BROKEN,
    "quark": _UNTESTED,
    "sinq": _UNTESTED,
    "spqr": _UNTESTED,
    "torchao": _UNTESTED,
    "vptq": _UNTESTED,
}


@dataclass(frozen=True)
class Quantization:
    """Quantization of a checkpoint, as declared by its config.

    Parameters
    ----------
    method
        Name of the method: a key of transformers' ``AUTO_QUANTIZER_MAPPING``, if transformers supports it.
    declared
        Content of ``quantization_config``.
    """

    method: str
    declared: Mapping[str, Any]

    @property
    def dequantized(self) -> bool:
        """Whether the weights are dequantized during loading."""
        return self.method in METHODS and METHODS[self.method].dequantized

    @cached_property
    def bits(self) -> int:
        """Bits of a stored weight, for methods whose weights are dequantized."""
        if bits := METHODS[self.method].bits:
            return bits
        declared_bits = self.declared.get("bits", _BITS)
        if self.method == "compressed-tensors":
            declared_bits = _compressed_bits(self.declared)
        return declared_bits if type(declared_bits) is int and declared_bits > 0 else _BITS

    def __str__(self) -> str:
        return f"{self.method}, dequantized" if self.dequantized else self.method


def _compressed_bits(declared: Mapping[str, Any]) -> int | None:
    """Return the bits of a weight in the first group, which may be spelled out or a preset."""
    try:
        from compressed_tensors.quantization import QuantizationConfig

        groups = QuantizationConfig(config_groups=declared.get("config_groups")).config_groups.values()
    except (ImportError, KeyError, TypeError, ValueError):  # check_quantization reports what is wrong
        return None
    return next((group.weights.num_bits for group in groups if group.weights is not None), None)


def read_quantization(config: PreTrainedConfig) -> Quantization | None:
    """Return the quantization declared by a config, or None if the weights are not quantized.

    Parameters
    ----------
    config
        Full config of a model.
    """
    part = declaring_part(config)
    if part is None:
        return None
    declared: Any = part.quantization_config
    declared = dict(declared if isinstance(declared, Mapping) else declared.to_dict())
    method = str(getattr(declared.get("quant_method"), "value", declared.get("quant_method")))
    if declared.get("load_in_4bit") or declared.get("load_in_8bit"):
        method = "bitsandbytes_4bit" if declared.get("load_in_4bit") else "bitsandbytes_8bit"
    return Quantization(method, declared)


def check_quantization(quantization: Quantization, name: str, device: torch.device) -> list[Fault]:
    """Check, before reading weights, that a quantized checkpoint can be loaded on this machine.

    Parameters
    ----------
    quantization
        Quantization of the checkpoint.
    name
        Name of the model.
    device
        Device that will compute.
    """
    where, subject = f"model {name}", f"is quantized with `{quantization.method}`, which"
    method = METHODS.get(quantization.method)
    if method is None:
        problem = f"{subject} transformers {transformers.__version__} does not support"
        return [Fault(where, problem, _INSTEAD)]
    if method.refusal:
        return [Fault(where, f"{subject} {method.refusal}", method.remedy)]
    missing = [package for package in method.packages if importlib.util.find_spec(package) is None]
    needed = [FROM_PIP.get(package, package) for package in missing]
    if needed:
        hint = f"pip install {' '.join(needed)}, or {_INSTEAD}"
        return [Fault(where, f"{subject} needs {' and '.join(needed)}", hint)]
    return _check_environment(quantization, where, subject, device)


def _check_environment(
    quantization: Quantization, where: str, subject: str, device: torch.device
) -> list[Fault]:
    """Run the environment check of transformers, which may require newer packages or a newer device."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        quantizer = AutoHfQuantizer.from_config(_load_settings(quantization), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except Exception as error:  # each quantizer raises its own
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return [Fault(where, f"{subject} cannot be loaded here: {reason}", _INSTEAD)]
    finally:
        logging.set_verbosity(level)
    return []


def loadable_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of a config that requests dequantization, for methods that are dequantized.

    Parameters
    ----------
    config
        Full config of a model with quantized weights.
    """
    copied = copy.deepcopy(config)
    quantization, part = read_quantization(copied), declaring_part(copied)
    if quantization is not None and part is not None:
        part.quantization_config = _load_settings(quantization)
    return copied


def _load_settings(quantization: Quantization) -> dict[str, Any]:
    declared = dict(quantization.declared)
    if quantization.dequantized:
        declared.pop("run_compressed", None)  # former option with the opposite meaning
        declared["dequantize"] = True
    return declared
