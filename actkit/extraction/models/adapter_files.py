"""LoRA adapter folders: location and validation, before any tensor is loaded."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

from ...errors import Fault
from ...fingerprints import file_digest
from ...regular_files import MOST_JSON, check_regular, read_regular

ADAPTER = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
# config keys that have no effect, or that a merge handles as peft does
_SUPPORTED_KEYS = {
    *("peft_type", "peft_version", "base_model_name_or_path", "revision", "task_type", "inference_mode"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "modules_to_save", "megatron_core", "qalora_group_size", "lora_ga_config"),
    *("eva_config", "loftq_config", "corda_config", "runtime_config", "auto_mapping"),
}
# initialisations that leave the weights of the base model unchanged
_SUPPORTED_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True)
class Adapter:
    """A validated LoRA adapter on this machine.

    Parameters
    ----------
    folder
        Path of the adapter, as the user gave it.
    digest
        SHA-256 of the config and the weights.
    config
        Content of ``adapter_config.json``.
    shapes
        Shape of each tensor, by name.
    """

    folder: Path
    digest: str
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def where(self) -> str:
        """Prefix of messages about this adapter."""
        return f"adapter {self.folder}"


def is_adapter(name: str) -> bool:
    """Return whether a path is a folder that holds an adapter and no model."""
    # os.path, unlike pathlib, raises no error for names that no folder can have
    return os.path.isfile(os.path.join(name, ADAPTER)) and not os.path.isfile(
        os.path.join(name, "config.json")
    )


def find_adapter(name: str) -> tuple[Adapter | None, list[Fault]]:
    """Find a LoRA adapter and check its files.

    Parameters
    ----------
    name
        Path of the folder.

    Returns
    -------
    adapter : Adapter or None
    faults : list of Fault
        Missing adapter, pickled weights, damaged file, or adapter of a type other than LoRA.
    """
    folder, where = Path(name), f"adapter {name}"
    if not os.path.isfile(folder / ADAPTER):
        hint = "give a folder saved by peft; download an adapter from the Hub first"
        return None, [Fault(where, f"is not a folder with {ADAPTER}", hint)]
    if not (folder / WEIGHTS).is_file():
        if (folder / _PICKLE).is_file():
            hint = "a pickle can run code when read: save the adapter as safetensors"
            return None, [Fault(where, f"has only pickled weights ({_PICKLE})", hint)]
        return None, [Fault(where, f"has no weights ({WEIGHTS})", "download the whole adapter")]
    try:
        config = json.loads(read_regular(folder / ADAPTER, MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        return None, [Fault(str(folder / ADAPTER), f"cannot be read: {error}", "download it again")]
    if not isinstance(config, dict):
        return None, [Fault(str(folder / ADAPTER), "is not a JSON object")]
    if faults := _check_kind(where, config):
        return None, faults
    try:
        check_regular([folder / WEIGHTS])
        with safe_open(folder / WEIGHTS, framework="np") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        problem = f"is not a valid safetensors file: {error}"
        return None, [Fault(str(folder / WEIGHTS), problem, "download it again")]
    if not shapes:
        return None, [Fault(str(folder / WEIGHTS), "holds no tensors", "download it again")]
    return Adapter(folder, _digest(folder), config, shapes), []


def find_base(adapter: Adapter, revision: str | None) -> tuple[str, str | None, list[Fault]]:
    """Find the model that an adapter was trained on.

    Returns
    -------
    name
        Path of a folder, or id of a model that has already been downloaded.
    revision
        Revision of an id: the requested one, or the one recorded by the adapter.
    faults : list of Fault
        Base model missing from this machine.
    """
    name, recorded = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if isinstance(name, str) and name:
        if os.path.isdir(name):
            return name, revision, []
        wanted = revision or (recorded if isinstance(recorded, str) else None)
        try:
            huggingface_hub.snapshot_download(
                name, revision=wanted, allow_patterns=["config.json"], local_files_only=True
            )
            return name, wanted, []
        except (HFValidationError, LocalEntryNotFoundError, OSError, ValueError):
            pass
    problem = "holds an adapter, not a model"
    if name:
        problem = f"holds an adapter whose base model is not on this machine ({name})"
    hint = f"give `model: BASE` and `adapter: {adapter.folder}`"
    return "", revision, [Fault(f"model {adapter.folder}", problem, hint)]


def _check_kind(where: str, config: dict[str, Any]) -> list[Fault]:
    kind = config.get("peft_type")
    if kind != "LORA":
        return [Fault(where, f"is of type {kind!r}", "only LoRA is supported; merge it with peft")]
    # peft records the transformers class there if the adapter has no task type
    mapping = config.get("auto_mapping") or {}
    if not isinstance(mapping, dict):
        return [Fault(where, f"auto_mapping is not an object: {mapping!r}", "download it again")]
    library = mapping.get("parent_library", "")
    if not str(library).startswith("transformers.") and mapping:
        problem = f"refers to custom code (auto_mapping: {library})"
        return [Fault(where, problem, "actkit never runs code from an adapter")]
    hint = "merge it with peft and save the model"
    unknown = [key for key, value in config.items() if key not in _SUPPORTED_KEYS and value]
    if unknown:
        return [Fault(where, f"uses unsupported options: {', '.join(sorted(unknown))}", hint)]
    initial = config.get("init_lora_weights", True)
    if initial not in _SUPPORTED_INITIALISATIONS:
        return [Fault(where, f"was initialised with {initial!r}, which modifies the base model", hint)]
    return []


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (ADAPTER, WEIGHTS):
        digest.update(f"{name}:{file_digest(folder / name)};".encode())
    return digest.hexdigest()
