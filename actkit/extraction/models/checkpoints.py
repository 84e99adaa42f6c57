"""What a model folder must hold before anything of it is loaded: safetensors, no code, no pickle."""

import hashlib
import json
import os
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

from ...errors import Fault

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# all that a model and its tokenizer are loaded from, but for the weights; no .py, no pickle
_SMALL = ["*.json", "*.model", "*.txt", "*.jinja"]
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


def find_checkpoint(
    name: str, revision: str | None, *, weights: bool = True
) -> tuple[Checkpoint | None, list[Fault]]:
    """Find a model on disk, or fetch it, and check its files.

    Parameters
    ----------
    name
        A folder, or a Hugging Face id.
    revision
        Branch, tag or commit of an id.
    weights
        Whether the model is about to be loaded. Without, the weights of an id are not fetched, and
        those of a folder are checked but not hashed.

    Returns
    -------
    checkpoint : Checkpoint or None
        None where not even the configs can be read.
    faults : list of Fault
        No such model, no weights, pickled weights, code of its own, damaged files. The model must not
        be loaded where there are any.
    """
    if os.path.isdir(name):  # no error for names that no folder can have
        faults = _check_configs(Path(name))
        readable = not faults
        faults += _check_weights(Path(name))
        if revision is not None:
            mend = "leave it out; folders have no revisions"
            faults.append(Fault("revision", "is given for a folder", mend))
        digest = _digest(Path(name)) if weights and not faults else ""
        return (Checkpoint(name, Path(name), digest) if readable else None), faults
    snapshot, faults = _fetch(name, revision, [*_SMALL, "*.safetensors"] if weights else _SMALL)
    if snapshot is None or (faults := _check_configs(snapshot)):
        return None, faults
    return Checkpoint(name, snapshot, snapshot.name), _check_weights(snapshot) if weights else []


def _fetch(name: str, revision: str | None, files: list[str]) -> tuple[Path | None, list[Fault]]:
    if not _HUB_ID.fullmatch(name):
        return None, [Fault(f"model {name!r}", "is neither a folder nor a Hugging Face id", "check the path")]
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=files, ignore_patterns=_UNWANTED
        )
    except RevisionNotFoundError:
        mend = "name a branch, tag or commit"
        return None, [Fault("revision", f"{name} has no revision `{revision}`", mend)]
    except RepositoryNotFoundError:
        what = "no such folder here, and no such model on the hub"
        return None, [Fault(f"model {name}", what, "check the name; gated models need `hf auth login`")]
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        what = f"no such folder here, and it cannot be fetched: {reason}"
        return None, [Fault(f"model {name}", what, "check the name, or download the model to a folder")]
    return Path(folder), []


def _check_configs(folder: Path) -> list[Fault]:
    faults = []
    for file, optional in (("config.json", False), ("tokenizer_config.json", True)):
        content, more = _read_json(folder / file, optional=optional)
        faults += more
        if "auto_map" in content:
            what = f"{file} names code of its own (auto_map)"
            mend = "use a checkpoint that transformers loads by itself; actkit runs no code from a model"
            faults.append(Fault(f"model {folder}", what, mend))
    return faults


def _check_weights(folder: Path) -> list[Fault]:
    where = f"model {folder}"
    if (folder / ADAPTER).is_file():  # transformers would put it over the weights, or fetch other ones
        return [Fault(where, f"holds an adapter ({ADAPTER})", "merge it into the model and save that")]
    if (folder / WEIGHTS).is_file():
        return _check_safetensors([folder / WEIGHTS])
    if (folder / INDEX).is_file():
        return _check_shards(folder)
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles:
        mend = "a pickle can run code when read: convert the weights to safetensors"
        return [Fault(where, f"has only pickled weights ({pickles[0]})", mend)]
    mend = "download the whole model, or one that comes as safetensors"
    return [Fault(where, f"has no weights ({WEIGHTS})", mend)]


def _check_shards(folder: Path) -> list[Fault]:
    index, faults = _read_json(folder / INDEX)
    shards = index.get("weight_map")
    names = sorted({str(name) for name in shards.values()}) if isinstance(shards, dict) else []
    if not names and not faults:
        faults.append(Fault(str(folder / INDEX), "names no shards", "download it again"))
    strange = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    mend = "shards are safetensors files beside their index"
    faults += [Fault(str(folder / INDEX), f"names `{name}`", mend) for name in strange]
    return faults + _check_safetensors([folder / name for name in names if name not in strange])


def _read_json(path: Path, *, optional: bool = False) -> tuple[dict[str, Any], list[Fault]]:
    if not path.is_file():
        missing = Fault(f"model {path.parent}", f"has no {path.name}", "download the whole model")
        return {}, [] if optional else [missing]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Fault(str(path), f"cannot be read: {error}", "download it again")]
    return (content, []) if isinstance(content, dict) else ({}, [Fault(str(path), "is no JSON object")])


def _check_safetensors(files: list[Path]) -> list[Fault]:
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
