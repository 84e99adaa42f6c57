"""Merging of LoRA adapters into their base models, with a check that no tensor is left out."""

import importlib.util
import re
import warnings
from typing import Any

from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from ...config import Config
from ...errors import Fault, ModelError, listed
from .adapter_files import WEIGHTS, Adapter
from .quantization import Quantization
from .weight_keys import HEADS

# prefix that peft adds to the names of a model's modules
_PREFIX = "base_model.model."
# suffixes that peft adds to them
_SUFFIXES = (".lora_A", ".lora_B", ".lora_embedding_A", ".lora_embedding_B", ".base_layer")


def check_adapter(adapter: Adapter, skeleton: PreTrainedModel) -> list[Fault]:
    """Check, without loading weights, that every tensor of an adapter matches a module of a model.

    Parameters
    ----------
    adapter
        The adapter.
    skeleton
        The model without weights, including its head if it has one.
    """
    try:
        module, _ = _match_modules(adapter, skeleton)
    except ModelError as error:
        return [Fault(adapter.where, str(error), "set `model` to the model that it was trained on")]
    tied = _tied_targets(adapter, module) if skeleton.config.get_text_config().tie_word_embeddings else []
    if tied:
        problem = f"adapts {tied[0]}, whose weights the model uses as both input and output embedding"
        return [Fault(adapter.where, problem, "merge it with peft and save the model")]
    return []


def check_adapter_options(config: Config, quantization: Quantization | None) -> list[Fault]:
    """Check that an adapter can be merged under the options of a run.

    Parameters
    ----------
    config
        Options of the run.
    quantization
        Quantization of the base model; None if its weights are not quantized or its config is unreadable.
    """
    faults = []
    if importlib.util.find_spec("peft") is None:
        faults.append(Fault("adapter", "adapters need peft", "pip install peft"))
    if config.quantization is not None:
        problem = "an adapter cannot be merged into quantized weights"
        faults.append(Fault("quantization", problem, "leave it out, or merge the adapter first"))
    elif quantization is not None and not quantization.dequantized:
        problem = f"cannot be merged into weights that stay quantized ({quantization})"
        faults.append(Fault("adapter", problem, "use the unquantized checkpoint"))
    if config.device_map is not None:
        problem = "an adapter can only be merged on a single device"
        faults.append(Fault("device_map", problem, "leave it out, or merge the adapter first"))
    return faults


def merge_adapter(adapter: Adapter, model: PreTrainedModel) -> None:
    """Merge an adapter into the weights of its base model, in place.

    Parameters
    ----------
    adapter
        The adapter.
    model
        The base model, including its head if it has one.

    Raises
    ------
    ModelError
        If a tensor of the adapter matches no module of the model, or the adapter lacks the tensor of a module
        that its config names.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

    base, prefix = _match_modules(adapter, model)
    names = _names(base)
    tensors = {
        _PREFIX + key.removeprefix(_PREFIX).removeprefix(prefix): tensor
        for key, tensor in load_file(adapter.folder / WEIGHTS).items()
        if _path(key).removeprefix(prefix) in names  # skips heads that the model lacks: no block reads them
    }
    # dropout and initialisation only matter in training
    options = {**adapter.config, "init_lora_weights": True, "lora_dropout": 0.0, "auto_mapping": None}
    for name in ("eva_config", "corda_config", "lora_ga_config", "loftq_config", "runtime_config"):
        options.pop(name, None)
    try:
        with warnings.catch_warnings():
            # warnings about tied embeddings and Conv1D, which the config of the adapter determines
            warnings.simplefilter("ignore")
            adapted: Any = PeftModel(base, LoraConfig(**options), autocast_adapter_dtype=False)
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            for key in (
                tensors.keys() - expected.keys()
            ):  # names of biases in versions of peft without base layers
                renamed = f"{key.removesuffix('.bias')}.base_layer.bias"
                if key.endswith(".bias") and renamed in expected and renamed not in tensors:
                    tensors[renamed] = tensors.pop(key)
            problems = [f"no tensor for {key}" for key in expected.keys() - tensors.keys()]
            problems += [f"{key} matches no module" for key in tensors.keys() - expected.keys()]
            problems += [
                f"{key} has shape {tuple(tensor.shape)} rather than {tuple(expected[key].shape)}"
                for key, tensor in tensors.items()
                if key in expected and tensor.shape != expected[key].shape
            ]
            if problems:
                raise ModelError(f"{adapter.where}: does not fit the model: {listed(sorted(problems))}")
            set_peft_model_state_dict(adapted, tensors)
            adapted.merge_and_unload(safe_merge=True)  # raises if the result contains NaN
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{adapter.where}: cannot be merged: {error}") from error


def _match_modules(adapter: Adapter, model: PreTrainedModel) -> tuple[Any, str]:
    """Return the module that an adapter was trained on, and the prefix of the adapter's keys.

    The module is the model either with or without its head.
    """
    base: Any = model.base_model
    head = f"{model.base_model_prefix}."
    candidates = [(model, ""), (base, ""), (base, head)]
    unmatched: list[str] = []
    for module, prefix in candidates:
        known = _names(module)
        remaining = [
            path
            for path in {_path(key) for key in adapter.shapes}
            if path.removeprefix(prefix) not in known and not _is_head(adapter, path)
        ]
        if not remaining:
            return module, prefix
        unmatched = unmatched or remaining
    raise ModelError(
        f"has tensors that match no module of the model ({type(model).__name__}): {listed(sorted(unmatched))}"
    )


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_modules()} | {name for name, _ in module.named_parameters()}


def _path(key: str) -> str:
    """Return the module or parameter that a tensor belongs to, as the adapter names it."""
    path = key.removeprefix(_PREFIX)
    for suffix in _SUFFIXES:
        path = path.partition(suffix)[0]
    return path


def _is_head(adapter: Adapter, path: str) -> bool:
    """Return whether a path lies in a head that was fully trained, such as a classifier."""
    head = re.search(HEADS, f"{path}.")
    return head is not None and head[2] in (adapter.config.get("modules_to_save") or ())


def _tied_targets(adapter: Adapter, module: Any) -> list[str]:
    """Return the input and output embeddings that an adapter modifies."""
    embeddings: list[nn.Module] = [
        part for part in (module.get_input_embeddings(), module.get_output_embeddings()) if part
    ]
    names = {
        name for name, part in module.named_modules() if any(part is embedding for embedding in embeddings)
    }
    targets = {key.removeprefix(_PREFIX).partition(".lora_")[0] for key in adapter.shapes if ".lora_" in key}
    return sorted(
        target for target in targets if any(target == name or target.endswith(f".{name}") for name in names)
    )
