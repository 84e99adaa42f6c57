"""The layout ``pt``, of scripts with forward hooks: a tensor for each language and layer."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import Fault
from ..layer_spec import Spec
from ..regular_files import MOST_JSON
from .folder_contents import PATTERNS, Found, Shapes, choose_layers, listed_layers, metadata, missing_layers
from .pt_tensors import LanguageFiles, TensorReader, edges, try_load
from .torch_files import SCALARS

_CHECKPOINTS, _WHOLES = PATTERNS["pt"]
_CHECKPOINT = re.compile(r"layer_(\d+)_(.+)\.pt")
_WHOLE = re.compile(r"activations_(.+)_all_layers\.pt")
_METADATA = "extraction_metadata.json"
_DIMS = ("sample", "token", "hidden")
_LABELS = {"genders": "gender", "image_ids": "image_id"}
_SAVE_AGAIN = "load it as it was saved, and save tensors, lists, texts and numbers alone"
_WRITE_AGAIN = "write it again"
_Files = dict[str, dict[int, Path]]


def read_pt(
    folder: Path, layers: Spec = "all", languages: Sequence[str] | None = None
) -> tuple[Found | None, list[Fault]]:
    """Check a folder of PyTorch files, and find which positions hold tokens.

    Parameters
    ----------
    folder
        With ``layer_checkpoints/layer_{l}_{language}.pt``, or ``activations_{language}_all_layers.pt``; of a
        language that has both, the former are read.
    layers, languages
        Which of them; all by default.

    Returns
    -------
    found : Found or None
    faults : list of Fault
        Everything that is wrong with it.

    Notes
    -----
    Such files do not say which positions are pads. Vectors that are 0 in all layers, after the last other
    one of their sample or before the first, are taken for pads.
    """
    files, faults = _files(folder)
    files, unknown = _narrowed(files, layers, languages)
    document, more = _metadata(folder)
    looked = _Looked(folder, Shapes([*faults, *unknown, *more]))
    for language, own in files.items():
        looked.at(language, own)
    faults = [*looked.shapes.faults, *missing_layers(files, listed_layers(document, layers))]
    if faults:
        return None, faults
    parts, start = [], 0
    for part in looked.languages:
        begins, ends = edges(part)
        parts.append(replace(part, start=start, begins=begins, ends=ends))
        start += part.shape[0]
    labels = {name: values for name, values in looked.labels.items() if any(map(_says, values))}
    ids = labels.get("image_id")
    kept = tuple(parts[0].files)
    found = Found(
        layers=kept,
        hidden=parts[0].shape[2],
        lengths=np.concatenate([part.lengths for part in parts]),
        languages=[part.name for part in parts for _ in range(part.shape[0])],
        ids=None if ids is None else list(map(str, ids)),
        labels=labels,
        said={**_said(document, kept), **looked.said, "stored_dtype": " ".join(sorted(looked.dtypes))},
        reader=TensorReader(parts),
        files=tuple({path for part in parts for path in part.files.values()}),
    )
    return found, []


def _files(folder: Path) -> tuple[_Files, list[Fault]]:
    """Return the file of each language and layer."""
    files: _Files = {}
    faults = []
    for path in sorted(folder.glob(_CHECKPOINTS)):
        named = _CHECKPOINT.fullmatch(path.name)
        if named is None:
            where, what = str(path.relative_to(folder)), "its name tells no layer and language"
            faults.append(Fault(where, what, "call it layer_{l}_{language}.pt, or move it away"))
        elif int(named[1]) in files.setdefault(named[2], {}):
            where, what = str(path.relative_to(folder)), f"is layer {int(named[1])} once more"
            faults.append(Fault(where, what, "keep one of the two"))
        else:
            files[named[2]][int(named[1])] = path
    for path in sorted(folder.glob(_WHOLES)):
        named = _WHOLE.fullmatch(path.name)
        if named is None or named[1] in files:
            continue
        document, what = try_load(path)
        held = document.get("activations", {})
        if not what and not (isinstance(held, dict) and held and all(type(layer) is int for layer in held)):
            what = "`activations` is no dict of layer to tensor"
        if what:
            faults.append(Fault(path.name, what, _SAVE_AGAIN))
        else:
            files[named[1]] = dict.fromkeys(held, path)
    return {name: dict(sorted(files[name].items())) for name in sorted(files)}, faults


def _narrowed(files: _Files, layers: Spec, languages: Sequence[str] | None) -> tuple[_Files, list[Fault]]:
    """Leave out what is not wanted."""
    unknown = [name for name in languages or () if name not in files]
    faults = [
        Fault("languages", f"no file is of {name!r}", f"there are {', '.join(files)}") for name in unknown
    ]
    kept, more = choose_layers({layer for own in files.values() for layer in own}, layers)
    chosen = {
        name: {layer: path for layer, path in own.items() if layer in kept}
        for name, own in files.items()
        if languages is None or name in languages
    }
    return chosen, faults + more


def _metadata(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    document, faults = metadata(folder / _METADATA)
    method = str(document.get("methodology", ""))
    if method.endswith("exported by actkit") and not method.startswith("residual "):
        faults.append(Fault(_METADATA, f"says `{method}`", "import what was exported of `residual`"))
    return document, faults


def _said(document: dict[str, Any], layers: tuple[int, ...]) -> dict[str, str | int]:
    """Return what the metadata say of the run, as attributes."""
    said: dict[str, str | int] = {}
    for name, own in (("model", "model"), ("methodology", "methodology"), ("extraction_date", "extracted")):
        if isinstance(value := document.get(name), str):
            said[own] = value
    count = document.get("num_layers")
    if type(count) is int and count > max(layers):
        said["model_layers"] = count
    return said


class _Looked:
    """Contents of the files examined so far."""

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self.folder, self.shapes = folder, shapes
        self.languages: list[LanguageFiles] = []
        self.labels: dict[str, list[Any]] = {}
        self.said: dict[str, str | int] = {}
        self.dtypes: set[str] = set()

    def at(self, language: str, files: dict[int, Path]) -> None:
        """Check every file of a language."""
        shape, labels = None, None
        for path in dict.fromkeys(files.values()):
            where = str(path.relative_to(self.folder))
            document, what = try_load(path)
            if not what and "activations" not in document:
                what = "holds no `activations`"
            if what:
                self.shapes.faults.append(Fault(where, what, _SAVE_AGAIN))
                continue
            self._says_what_it_is(where, document, [layer for layer, own in files.items() if own == path])
            for layer in (layer for layer, own in files.items() if own == path):
                shape = self._shape(where, language, document["activations"], layer) or shape
            if shape is not None:
                own_labels = self._labels(where, document, shape[0])
                self.shapes.same(language, where, "labels", own_labels, "write them again, from one table")
                labels = labels or own_labels
        if shape is not None and labels is not None:
            self.shapes.same("", language, "labels named", sorted(labels), "write them for each language")
            self.languages.append(LanguageFiles(language, files, shape))
            for name, values in labels.items():
                self.labels.setdefault(name, []).extend(values)

    def _says_what_it_is(self, where: str, document: dict[str, Any], layers: list[int]) -> None:
        layer = document.get("layer")
        what = ""
        if not isinstance(layer, SCALARS):
            what = f"`layer` is a {type(layer).__name__}, not a number"
        elif "layer" in document and [layer] != layers:
            what = f"says that it is layer {layer}"
        if what:
            self.shapes.faults.append(Fault(where, what, "give it the name of its layer"))
        if isinstance(model := document.get("model"), str):
            self.shapes.same("", where, "model", model)
            self.said["model"] = model
        if isinstance(size := document.get("hidden_size"), int):
            self.shapes.same("", where, "hidden size", size)

    def _shape(self, where: str, language: str, held: Any, layer: int) -> tuple[int, int, int] | None:
        """Check the tensor of a layer, and return its shape."""
        tensor, shapes = held.get(layer) if isinstance(held, dict) else held, self.shapes
        if not isinstance(tensor, torch.Tensor):
            what = f"`activations` is a {type(tensor).__name__}, not a dense tensor"
            shapes.faults.append(Fault(where, what, _SAVE_AGAIN))
            return None
        if not _is_held(tensor):
            shapes.faults.append(Fault(where, "`activations` repeats values that it holds once", _SAVE_AGAIN))
            return None
        dtype = str(tensor.dtype).removeprefix("torch.")
        if not shapes.activations(where, tensor.shape, dtype, _DIMS):
            return None
        samples, tokens, hidden = tensor.shape
        shapes.same(language, where, "shape", (samples, tokens, hidden), "write all layers from one run")
        shapes.same("", where, "hidden size", hidden)
        self.dtypes.add(dtype)
        return samples, tokens, hidden

    def _labels(self, where: str, document: dict[str, Any], n_samples: int) -> dict[str, list[Any]]:
        labels = {}
        for name, label in _LABELS.items():
            values = document.get(name)
            if isinstance(values, torch.Tensor) and _is_held(values) and values.shape == (n_samples,):
                values = values.tolist()
            if what := _label_fault(values, n_samples):
                self.shapes.faults.append(Fault(where, f"`{name}` {what}", _WRITE_AGAIN))
            elif values is not None:
                labels[label] = list(values)
        return labels


def _label_fault(values: Any, n_samples: int) -> str:
    """Return what keeps values from being a label; empty where nothing does, or there are none."""
    if values is None:
        return ""
    if not isinstance(values, list | tuple) or len(values) != n_samples:
        count = f"{len(values)} entries" if isinstance(values, list | tuple) else "no list"
        return f"is {count}, where `activations` has {n_samples} samples"
    for value in values:
        if not isinstance(value, SCALARS):
            return f"holds a {type(value).__name__}, which no label can keep"
    # a pickle can name a long text once for each sample
    characters = sum(len(value) for value in values if isinstance(value, str))
    return "holds more text than can be kept" if characters > MOST_JSON else ""


def _is_held(tensor: torch.Tensor) -> bool:
    """Return whether a tensor stores each of its values; an expanded tensor can claim any shape."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _says(value: Any) -> bool:
    return value is not None and value != ""
