"""Checkpoints, validated before anything is loaded: safetensors only, no custom code, no pickles."""

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from ...errors import ChangedError, Fault
from ...fingerprints import file_digest
from ...regular_files import MOST_JSON, check_regular, read_regular
from .adapter_files import ADAPTER, Adapter, find_adapter, find_base, is_adapter
from .gguf_files import GgufFile, find_gguf, read_gguf
from .weight_files import INDEX, WEIGHTS, check_tensors, stored_tensors, weight_files

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# files that a model and its tokenizer are loaded from, except the weights; no .py, no pickle
_SMALL = ["*.json", "*.model", "*.spm", "*.txt", "*.jinja"]
_UNWANTED = ["consolidated*", "original/*", "*/*", "onnx/*"]


Stamps = tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True)
class Checkpoint:
    """A validated model on this machine.

    Parameters
    ----------
    name
        Hugging Face id or folder, as requested.
    folder
        Folder of its files.
    revision
        Commit of an id; SHA-256 of the config, tokenizer and weights of a folder, or of a GGUF file.
    gguf
        GGUF file that holds the model; None if its weights are safetensors.
    adapter
        Adapter to be merged into the model, if any.
    stamps
        Size, modification time and inode of each file before validation; empty for an id, whose files are
        named by their content.
    """

    name: str
    folder: Path
    revision: str
    gguf: GgufFile | None = None
    adapter: Adapter | None = None
    stamps: Stamps = ()

    def check_unchanged(self) -> None:
        """Check that the files that were loaded are those that were validated and hashed.

        Raises
        ------
        ChangedError
            If a file has been modified or replaced since.
        """
        faults = [
            Fault(path, "was changed after it was checked", "run again")
            for path, stamp in self.stamps
            if _stamp(Path(path)) != stamp
        ]
        if faults:
            raise ChangedError(faults, f"{self.name} is no longer the model that was checked")

    @property
    def tensor_names(self) -> set[str]:
        """Names of the tensors stored in the GGUF file or the safetensors files."""
        if self.gguf is not None:
            return set(self.gguf.elements)
        return {tensor.name for tensor in stored_tensors(weight_files(self.folder))}


def find_checkpoint(
    name: str, revision: str | None, *, weights: bool = True, adapter: str | None = None
) -> tuple[Checkpoint | None, list[Fault]]:
    """Find a model on disk or download it, and check its files.

    Parameters
    ----------
    name
        Folder, GGUF file or Hugging Face id; or the folder of an adapter whose base model is on this machine.
    revision
        Branch, tag or commit of an id.
    weights
        Whether the model is about to be loaded. If False, the weights of an id are not downloaded, and
        those of a folder are checked but not hashed.
    adapter
        Folder of an adapter to merge into the model.

    Returns
    -------
    checkpoint : Checkpoint or None
        None if not even the configs can be read.
    faults : list of Fault
        Missing model, missing or pickled weights, custom code, damaged files. The model must not be loaded
        if there are any.
    """
    loaded_adapter: Adapter | None = None
    faults: list[Fault] = []
    stamps = _stamps(name, adapter)
    if adapter is not None:
        loaded_adapter, faults = find_adapter(adapter)
        if is_adapter(name):
            problem = "holds an adapter, but `adapter` names another one"
            return None, [*faults, Fault(f"model {name}", problem, "set `model` to the base model")]
    elif is_adapter(name):
        loaded_adapter, faults = find_adapter(name)
        if loaded_adapter is None:
            return None, faults
        name, revision, faults = find_base(loaded_adapter, revision)
        if faults:
            return None, faults
        stamps += _stamps(name)
    checkpoint, base_faults = _find_base(name, revision, weights=weights)
    if checkpoint is not None:
        checkpoint = replace(checkpoint, adapter=loaded_adapter, stamps=stamps)
    return checkpoint, faults + base_faults


def _find_base(name: str, revision: str | None, *, weights: bool) -> tuple[Checkpoint | None, list[Fault]]:
    if os.path.exists(name):  # returns False, rather than raising, for impossible names
        file, faults = find_gguf(name)
        if file is not None or faults:
            return _find_gguf(name, file, revision, faults, weights=weights)
    if os.path.isdir(name):
        config, faults = _check_configs(Path(name))
        readable = not faults
        faults += _check_weights(Path(name), config)
        if revision is not None:
            hint = "leave it out; folders have no revisions"
            faults.append(Fault("revision", "cannot be used with a folder", hint))
        digest = _digest(Path(name)) if weights and not faults else ""
        return (Checkpoint(name, Path(name), digest) if readable else None), faults
    snapshot, faults = _fetch(name, revision, [*_SMALL, "*.safetensors"] if weights else _SMALL)
    if snapshot is None:
        return None, faults
    config, faults = _check_configs(snapshot)
    if faults:
        return None, faults
    return Checkpoint(name, snapshot, snapshot.name), _check_weights(snapshot, config) if weights else []


def _find_gguf(
    name: str, path: Path | None, revision: str | None, faults: list[Fault], *, weights: bool
) -> tuple[Checkpoint | None, list[Fault]]:
    file = None
    if path is not None:
        file, faults = read_gguf(path)
    if revision is not None:
        hint = "leave it out; files have no revisions"
        faults.append(Fault("revision", "cannot be used with a GGUF file", hint))
    if file is None:
        return None, faults
    digest = file_digest(file.path) if weights and not faults else ""
    return Checkpoint(name, file.path.parent, digest, file), faults


def _fetch(name: str, revision: str | None, files: list[str]) -> tuple[Path | None, list[Fault]]:
    if not _HUB_ID.fullmatch(name):
        return None, [Fault(f"model {name!r}", "is neither a folder nor a Hugging Face id", "check the path")]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=files, ignore_patterns=_UNWANTED
        )
    except RevisionNotFoundError:
        hint = "give a branch, tag or commit"
        return None, [Fault("revision", f"{name} has no revision `{revision}`", hint)]
    except RepositoryNotFoundError:
        problem = "is neither a folder here nor a model on the Hub"
        return None, [Fault(f"model {name}", problem, "check the name; gated models need `hf auth login`")]
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        problem = f"is not a folder here and cannot be downloaded: {reason}"
        return None, [Fault(f"model {name}", problem, "check the name, or download the model to a folder")]
    return Path(folder), []


def _check_configs(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Return the content of ``config.json``, and the faults of the configs of the model and tokenizer."""
    if (folder / ADAPTER).is_file():  # transformers would apply it, or download another base model
        hint = "set `adapter`, not `model`, to this folder"
        return {}, [Fault(f"model {folder}", f"holds an adapter ({ADAPTER})", hint)]
    faults, contents = _check_files(folder), []
    if faults:
        return {}, faults
    for file, optional in (("config.json", False), ("tokenizer_config.json", True)):
        content, file_faults = _read_json(folder / file, optional=optional)
        faults += file_faults
        contents.append(content)
        if "auto_map" in content:
            problem = f"{file} refers to custom code (auto_map)"
            hint = "use a checkpoint that transformers supports itself; actkit never runs code from a model"
            faults.append(Fault(f"model {folder}", problem, hint))
    if (weights := contents[0].get("transformers_weights")) is not None:
        problem = f"config.json names weights other than {WEIGHTS} (transformers_weights: {weights!r})"
        hint = "remove that entry and give the file the usual name"
        faults.append(Fault(f"model {folder}", problem, hint))
    parts = [contents[0], *(part for part in contents[0].values() if isinstance(part, dict))]
    entries = [part.get("quantization_config") for part in parts]
    if any(entry is not None and not isinstance(entry, dict) for entry in entries):
        problem = "config.json has a quantization_config that is not an object"
        faults.append(Fault(f"model {folder}", problem, "download it again"))
    attention = [part.get(key) for part in parts for key in ("attn_implementation", "_attn_implementation")]
    if kernels := [name for name in attention if isinstance(name, str) and "/" in name]:
        problem = f"config.json requests attention kernels from the Hugging Face Hub ({kernels[0]})"
        hint = "remove that entry; actkit never runs code from the Hub"
        faults.append(Fault(f"model {folder}", problem, hint))
    return contents[0], faults


def _check_files(folder: Path) -> list[Fault]:
    """Find files that reading might never finish, such as pipes: transformers opens files by name."""
    try:
        check_regular(small_files(folder), MOST_JSON)
        check_regular(folder.glob("*.safetensors"))
    except OSError as error:
        return [Fault(f"model {folder}", f"cannot be read: {error}", "download the model again")]
    return []


def small_files(folder: Path) -> list[Path]:
    """Return the files that a model and its tokenizer are loaded from, except the weights."""
    return sorted({path for pattern in _SMALL for path in folder.glob(pattern)})


def _check_weights(folder: Path, config: dict[str, Any]) -> list[Fault]:
    where = f"model {folder}"
    if (folder / ADAPTER).is_file():
        return []  # already reported
    if (folder / WEIGHTS).is_file():
        return _check_safetensors([folder / WEIGHTS]) or check_tensors(folder, config)
    if (folder / INDEX).is_file():
        return _check_shards(folder) or check_tensors(folder, config)
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        hint = "a pickle can run code when it is read: convert the weights to safetensors"
        return [Fault(where, f"has only pickled weights ({pickles[0]})", hint)]
    hint = "download the whole model, or one that has safetensors"
    return [Fault(where, f"has no weights ({WEIGHTS})", hint)]


def _check_shards(folder: Path) -> list[Fault]:
    index, faults = _read_json(folder / INDEX)
    shards = index.get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if not names and not faults:
        faults.append(Fault(str(folder / INDEX), "lists no shards", "download it again"))
    invalid = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    hint = "shards must be safetensors files in the same folder as their index"
    faults += [Fault(str(folder / INDEX), f"lists `{name}`", hint) for name in invalid]
    return faults + _check_safetensors([folder / name for name in names if name not in invalid])


def _read_json(path: Path, *, optional: bool = False) -> tuple[dict[str, Any], list[Fault]]:
    if not path.is_file():
        missing = Fault(f"model {path.parent}", f"has no {path.name}", "download the whole model")
        return {}, [] if optional else [missing]
    try:
        content = json.loads(read_regular(path, MOST_JSON))
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Fault(str(path), f"cannot be read: {error}", "download it again")]
    return (content, []) if isinstance(content, dict) else ({}, [Fault(str(path), "is not a JSON object")])


def _check_safetensors(files: list[Path]) -> list[Fault]:
    faults = []
    for path in files:
        try:
            check_regular([path])
            with safe_open(path, framework="np"):  # reads the header and compares it with the file size
                pass
        except FileNotFoundError:
            faults.append(Fault(str(path), "is missing", "download the whole model"))
        except (OSError, SafetensorError) as error:
            faults.append(Fault(str(path), f"is not a valid safetensors file: {error}", "download it again"))
    return faults


def _stamps(*names: str | None) -> Stamps:
    """Return the stamps of the files of models, by which later modifications are detected."""
    paths = [Path(name) for name in names if name is not None and os.path.exists(name)]
    patterns = [*_SMALL, "*.safetensors"]
    files = [file for path in paths for pattern in patterns for file in path.glob(pattern)]
    files += [path for path in paths if path.is_file()]
    files += [file for path in paths for file in path.glob("*.gguf")]
    return tuple((str(file), _stamp(file)) for file in files)


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _digest(folder: Path) -> str:
    """Return the SHA-256 of all files that affect the output of a folder's model."""
    digest = hashlib.sha256()
    for pattern in ("*.json", "*.safetensors", "*.model", "*.spm", "*.txt"):
        for path in sorted(folder.glob(pattern)):
            digest.update(f"{path.name}:{file_digest(path)};".encode())
    return digest.hexdigest()
