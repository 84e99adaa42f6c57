"""What a model folder must hold before anything of it is loaded: safetensors, no code, no pickle."""

import hashlib
import json
import re
from dataclasses import dataclass
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

from ..errors import Fault

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# all that a model and its tokenizer are loaded from; no .py, no pickle, no second copy of the weights
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_UNWANTED = ["consolidated*", "original/*", "*/*", "onnx/*"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine, checked.

    Parameters
    ----------
    name
        What was asked for: a Hugging Face id, or a folder.
    folder
        Where its files lie.
    revision
        The commit of an id; the SHA-256 of a folder's config, tokenizer and weights.
    """

    name: str
    folder: Path
    revision: str


def find_checkpoint(name: str, revision: str | None) -> tuple[Checkpoint | None, list[Fault]]:
    """Find a model on disk, or fetch it, and check its files.

    Parameters
    ----------
    name
        A folder, or a Hugging Face id.
    revision
        Branch, tag or commit of an id.

    Returns
    -------
    checkpoint : Checkpoint or None
    faults : list of Fault
        No such model, no weights, pickled weights, code of its own, damaged files.
    """
    folder = Path(name).expanduser()
    if "\0" not in name and folder.is_dir():
        faults = _check_files(folder)
        if revision is not None:
            faults.append(
                Fault("revision", "is given for a folder", "leave it out; folders have no revisions")
            )
        return (None, faults) if faults else (Checkpoint(name, folder, _digest(folder)), [])
    if not _HUB_ID.fullmatch(name):
        return None, [Fault(f"model {name!r}", "is neither a folder nor a Hugging Face id", "check the path")]
    try:
        snapshot = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
    except RevisionNotFoundError:
        return None, [
            Fault("revision", f"{name} has no revision `{revision}`", "name a branch, tag or commit")
        ]
    except RepositoryNotFoundError:
        what = "no such folder here, and no such model on the hub"
        return None, [Fault(f"model {name}", what, "check the name; gated models need `hf auth login`")]
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        what = f"no such folder here, and it cannot be fetched: {str(error).splitlines()[0]}"
        return None, [Fault(f"model {name}", what, "check the name, or download the model to a folder")]
    faults = _check_files(snapshot)
    return (None, faults) if faults else (Checkpoint(name, snapshot, snapshot.name), [])


def _check_files(folder: Path) -> list[Fault]:
    where = f"model {folder}"
    config, faults = _read_json(folder / "config.json")
    tokenizer, tokenizer_faults = _read_json(folder / "tokenizer_config.json", optional=True)
    faults += tokenizer_faults
    for file, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if "auto_map" in content:
            mend = "use a checkpoint that transformers loads by itself; actkit runs no code from a model"
            faults.append(Fault(where, f"{file} names code of its own (auto_map)", mend))
    if (folder / WEIGHTS).is_file():
        return faults + _check_weights([folder / WEIGHTS])
    if (folder / INDEX).is_file():
        index, index_faults = _read_json(folder / INDEX)
        files = sorted(set(index.get("weight_map", {}).values()))
        outside = [name for name in files if Path(name).name != name]
        faults += [
            Fault(where, f"{INDEX} names `{name}`", "shards lie beside their index") for name in outside
        ]
        return (
            faults + index_faults + _check_weights([folder / name for name in files if name not in outside])
        )
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        mend = "a pickle can run code when read: convert the weights to safetensors"
        return [*faults, Fault(where, f"has only pickled weights ({pickles[0]})", mend)]
    return [*faults, Fault(where, f"has no weights ({WEIGHTS})", "download the whole model")]


def _read_json(path: Path, *, optional: bool = False) -> tuple[dict[str, Any], list[Fault]]:
    if not path.is_file():
        missing = Fault(f"model {path.parent}", f"has no {path.name}", "download the whole model")
        return {}, [] if optional else [missing]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return {}, [Fault(str(path), f"cannot be read: {error}", "download it again")]
    return (content, []) if isinstance(content, dict) else ({}, [Fault(str(path), "is no JSON object")])


def _check_weights(files: list[Path]) -> list[Fault]:
    faults = []
    for path in files:
        try:
            with safe_open(path, framework="np"):  # reads the header, and compares it with the length
                pass
        except FileNotFoundError:
            faults.append(Fault(str(path), "is missing", "download the whole model"))
        except (OSError, SafetensorError) as error:
            faults.append(Fault(str(path), f"is no sound safetensors file: {error}", "download it again"))
    return faults


def _digest(folder: Path) -> str:
    """Return the SHA-256 of all that decides what a folder's model computes."""
    digest = hashlib.sha256()
    for pattern in ("*.json", "*.safetensors", "*.model", "*.txt"):
        for path in sorted(folder.glob(pattern)):
            with path.open("rb") as file:
                digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()};".encode())
    return digest.hexdigest()
