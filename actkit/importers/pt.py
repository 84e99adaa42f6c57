"""The layout ``pt`` of scripts with forward hooks: one tensor per language and layer."""

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
from .folder_contents import (
    PATTERNS,
    FolderContents,
    Shapes,
    choose_layers,
    listed_layers,
    missing_layers,
    read_metadata,
)
from .pt_tensors import LanguageFiles, TensorReader, token_ranges, try_load
from .torch_files import SCALARS

_CHECKPOINTS, _ALL_LAYERS_FILES = PATTERNS["pt"]
_CHECKPOINT = re.compile(r"layer_(\d+)_(.+)\.pt")
_ALL_LAYERS = re.compile(r"activations_(.+)_all_layers\.pt")
_METADATA = "extraction_metadata.json"
_DIMS = ("sample", "token", "hidden")
_LABELS = {"genders": "gender", "image_ids": "image_id"}
_SAVE_AGAIN = "load it with torch, and save only tensors, lists, strings and numbers"
_WRITE_AGAIN = "write it again"
_Files = dict[str, dict[int, Path]]


def read_pt(
    folder: Path, layers: Spec = "all", languages: Sequence[str] | None = None
) -> tuple[FolderContents | None, list[Fault]]:
    """Check a folder of PyTorch files, and determine which positions hold tokens.

    Parameters
    ----------
    folder
        Folder with ``layer_checkpoints/layer_{l}_{language}.pt`` or ``activations_{language}_all_layers.pt``;
        if a language has both, the former are read.
    layers, languages
        Layers and languages to read; all by default.

    Returns
    -------
    contents : FolderContents or None
        The samples; None if there are faults.
    faults : list of Fault
        Every fault of the folder.

    Notes
    -----
    Such files do not record padding. Positions before the first and after the last vector of a sample that is
    nonzero in any layer count as padding.
    """
    files, faults = _files(folder)
    files, selection_faults = _selected(files, layers, languages)
    document, metadata_faults = _metadata(folder)
    inspection = _Inspection(folder, Shapes([*faults, *selection_faults, *metadata_faults]))
    for language, layer_files in files.items():
        inspection.inspect(language, layer_files)
    faults = [*inspection.shapes.faults, *missing_layers(files, listed_layers(document, layers))]
    if faults:
        return None, faults
    parts, start = [], 0
    for part in inspection.languages:
        begins, ends = token_ranges(part)
        parts.append(replace(part, start=start, begins=begins, ends=ends))
        start += part.shape[0]
    labels = {
        name: values
        for name, values in inspection.labels.items()
        if any(value not in (None, "") for value in values)
    }
    ids = labels.get("image_id")
    layer_indices = tuple(parts[0].files)
    contents = FolderContents(
        layers=layer_indices,
        hidden=parts[0].shape[2],
        lengths=np.concatenate([part.lengths for part in parts]),
        languages=[part.name for part in parts for _ in range(part.shape[0])],
        ids=None if ids is None else list(map(str, ids)),
        labels=labels,
        attrs={
            **_attrs(document, layer_indices),
            **inspection.attrs,
            "stored_dtype": " ".join(sorted(inspection.dtypes)),
        },
        reader=TensorReader(parts),
        files=tuple({path for part in parts for path in part.files.values()}),
    )
    return contents, []


def _files(folder: Path) -> tuple[_Files, list[Fault]]:
    """Return the file of each language and layer."""
    files: _Files = {}
    faults = []
    for path in sorted(folder.glob(_CHECKPOINTS)):
        match = _CHECKPOINT.fullmatch(path.name)
        if match is None:
            where, what = str(path.relative_to(folder)), "its name does not give a layer and a language"
            faults.append(Fault(where, what, "call it layer_{l}_{language}.pt, or move it away"))
        elif int(match[1]) in files.setdefault(match[2], {}):
            where, what = str(path.relative_to(folder)), f"is a second file of layer {int(match[1])}"
            faults.append(Fault(where, what, "remove one of the two"))
        else:
            files[match[2]][int(match[1])] = path
    for path in sorted(folder.glob(_ALL_LAYERS_FILES)):
        match = _ALL_LAYERS.fullmatch(path.name)
        if match is None or match[1] in files:
            continue
        document, what = try_load(path)
        tensors = document.get("activations", {})
        is_by_layer = isinstance(tensors, dict) and tensors and all(type(layer) is int for layer in tensors)
        if not what and not is_by_layer:
            what = "`activations` is not a dict of layer to tensor"
        if what:
            faults.append(Fault(path.name, what, _SAVE_AGAIN))
        else:
            files[match[1]] = dict.fromkeys(tensors, path)
    return {name: dict(sorted(files[name].items())) for name in sorted(files)}, faults


def _selected(files: _Files, layers: Spec, languages: Sequence[str] | None) -> tuple[_Files, list[Fault]]:
    """Return the files of the selected layers and languages, and the faults of the selection."""
    unknown = [name for name in languages or () if name not in files]
    faults = [
        Fault("languages", f"no file has the language {name!r}", f"the files have {', '.join(files)}")
        for name in unknown
    ]
    available = {layer for layer_files in files.values() for layer in layer_files}
    chosen, layer_faults = choose_layers(available, layers)
    selected = {
        name: {layer: path for layer, path in layer_files.items() if layer in chosen}
        for name, layer_files in files.items()
        if languages is None or name in languages
    }
    return selected, faults + layer_faults


def _metadata(folder: Path) -> tuple[dict[str, Any], list[Fault]]:
    document, faults = read_metadata(folder / _METADATA)
    method = str(document.get("methodology", ""))
    if method.endswith("exported by actkit") and not method.startswith("residual "):
        faults.append(Fault(_METADATA, f"says `{method}`", "import an export of `residual`"))
    return document, faults


def _attrs(document: dict[str, Any], layers: tuple[int, ...]) -> dict[str, str | int]:
    """Return attributes of the cube from the metadata."""
    attrs: dict[str, str | int] = {}
    for field, name in (("model", "model"), ("methodology", "methodology"), ("extraction_date", "extracted")):
        if isinstance(value := document.get(field), str):
            attrs[name] = value
    count = document.get("num_layers")
    if type(count) is int and count > max(layers):
        attrs["model_layers"] = count
    return attrs


class _Inspection:
    """Contents and faults of the files inspected so far."""

    def __init__(self, folder: Path, shapes: Shapes) -> None:
        self.folder, self.shapes = folder, shapes
        self.languages: list[LanguageFiles] = []
        self.labels: dict[str, list[Any]] = {}
        self.attrs: dict[str, str | int] = {}
        self.dtypes: set[str] = set()

    def inspect(self, language: str, files: dict[int, Path]) -> None:
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
            layers = [layer for layer, layer_path in files.items() if layer_path == path]
            self._check_fields(where, document, layers)
            for layer in layers:
                shape = self._shape(where, language, document["activations"], layer) or shape
            if shape is not None:
                file_labels = self._labels(where, document, shape[0])
                self.shapes.same(
                    language, where, "labels", file_labels, "write the files again from one table"
                )
                labels = labels or file_labels
        if shape is not None and labels is not None:
            self.shapes.same("", language, "labels named", sorted(labels), "write them for each language")
            self.languages.append(LanguageFiles(language, files, shape))
            for name, values in labels.items():
                self.labels.setdefault(name, []).extend(values)

    def _check_fields(self, where: str, document: dict[str, Any], layers: list[int]) -> None:
        """Check the layer, model and hidden size that a file states."""
        layer = document.get("layer")
        what = ""
        if not isinstance(layer, SCALARS):
            what = f"`layer` is a {type(layer).__name__}, not a number"
        elif "layer" in document and [layer] != layers:
            what = f"states that it is layer {layer}"
        if what:
            self.shapes.faults.append(Fault(where, what, "rename it after its layer"))
        if isinstance(model := document.get("model"), str):
            self.shapes.same("", where, "model", model)
            self.attrs["model"] = model
        if isinstance(size := document.get("hidden_size"), int):
            self.shapes.same("", where, "hidden size", size)

    def _shape(self, where: str, language: str, activations: Any, layer: int) -> tuple[int, int, int] | None:
        """Check the tensor of a layer, and return its shape."""
        shapes = self.shapes
        tensor = activations.get(layer) if isinstance(activations, dict) else activations
        if not isinstance(tensor, torch.Tensor):
            what = f"`activations` is a {type(tensor).__name__}, not a dense tensor"
            shapes.faults.append(Fault(where, what, _SAVE_AGAIN))
            return None
        if not _is_stored(tensor):
            shapes.faults.append(Fault(where, "`activations` has more values than its storage", _SAVE_AGAIN))
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
            if isinstance(values, torch.Tensor) and _is_stored(values) and values.shape == (n_samples,):
                values = values.tolist()
            if what := _label_fault(values, n_samples):
                self.shapes.faults.append(Fault(where, f"`{name}` {what}", _WRITE_AGAIN))
            elif values is not None:
                labels[label] = list(values)
        return labels


def _label_fault(values: Any, n_samples: int) -> str:
    """Return why values cannot be a label, or an empty string; None is no fault."""
    if values is None:
        return ""
    if not isinstance(values, list | tuple) or len(values) != n_samples:
        count = f"{len(values)} entries" if isinstance(values, list | tuple) else "not a list"
        return f"is {count}, where `activations` has {n_samples} samples"
    for value in values:
        if not isinstance(value, SCALARS):
            return f"holds a {type(value).__name__}, which cannot be the value of a label"
    # a small pickle can refer to the same long text for each sample
    characters = sum(len(value) for value in values if isinstance(value, str))
    return "holds more text than a cube can store" if characters > MOST_JSON else ""


def _is_stored(tensor: torch.Tensor) -> bool:
    """Return whether a tensor stores all its values; an expanded tensor can claim any shape."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
