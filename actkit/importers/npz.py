"""NumPy files of a few samples each: the layouts ``npz`` (all tokens) and ``batches`` (last tokens)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Fault
from ..layer_spec import Spec
from .folder_contents import (
    PATTERNS,
    FolderContents,
    choose_layers,
    listed_layers,
    missing_layers,
    read_metadata,
)
from .npz_arrays import NumberedFiles, RowStream, examine, missing_numbers

_METADATA = "metadata.json"
_CHUNK = re.compile(r"layer_(\d+)/chunk_(\d+)\.npz")
_BATCH = re.compile(r"layer_(\d+)_batch_(\d+)\.npz")
_Paths = dict[int, dict[int, Path]]


class StreamReader:
    """Reads the files of all layers in parallel, each layer from its first file to its last.

    Parameters
    ----------
    paths
        Files of each layer, in the order of their samples.
    is_token
        Which positions hold a token, dims ``(sample, token)``, for each file; None if there is no such axis.
    """

    def __init__(self, paths: Sequence[Sequence[Path]], is_token: Sequence[np.ndarray] | None) -> None:
        self._streams = [RowStream(layer_paths) for layer_paths in paths]
        self._is_token = is_token

    def fill(self, samples: range, out: np.ndarray) -> None:
        """Implement :meth:`actkit.importers.folder_contents.Reader.fill`."""
        for stream, layer_out in zip(self._streams, out, strict=True):
            start = 0
            for number, rows, values in stream.take(len(samples)):
                vectors = values if self._is_token is None else values[self._is_token[number][rows]]
                layer_out[start : start + len(vectors)] = vectors
                start += len(vectors)

    def close(self) -> None:
        """Close the files."""
        for stream in self._streams:
            stream.close()


def read_npz(folder: Path, language: str, layers: Spec = "all") -> tuple[FolderContents | None, list[Fault]]:
    """Check a folder of ``layer_{l}/chunk_{k}.npz``.

    Parameters
    ----------
    folder
        The folder.
    language
        Language of all samples; these files name none.
    layers
        Layers to read; all by default.

    Returns
    -------
    contents : FolderContents or None
        The samples; positions excluded by the mask, on either side, are padding. None if there are faults.
    faults : list of Fault
        Every fault of the folder.
    """
    paths, faults = _paths(folder, "npz", _CHUNK, layers)
    faults += [
        Fault(path.name, "shows that these files are whitened", "import unwhitened files")
        for path in sorted(folder.glob("layer_*_whitening.npz"))
    ]
    arrays = {"attention_mask": ("sample", "token"), "token_ids": ("sample", "token")}
    dims = ("sample", "token", "hidden")
    files, more = examine(folder, paths, dims=dims, other_arrays=arrays, optional=["token_ids"])
    faults += more
    masks = (files.other_arrays["attention_mask"] if files else None) or []
    invalid = [number for number, mask in enumerate(masks) if not np.isin(mask, (0, 1)).all()]
    faults += [
        Fault(f"chunk {number}", "`attention_mask` has values other than 0 and 1", "write 1 at tokens")
        for number in invalid
    ]
    if files is None or faults:
        return None, faults
    is_token = [mask.astype(bool) for mask in masks]
    ids = files.other_arrays["token_ids"]
    if ids is not None:
        ids = [file_ids[mask] for file_ids, mask in zip(ids, is_token, strict=True)]
    lengths = np.concatenate([mask.sum(axis=1) for mask in is_token])
    contents = FolderContents(
        layers=tuple(files.paths),
        hidden=files.hidden,
        lengths=lengths,
        languages=[language] * len(lengths),
        ids=None,
        labels={},
        attrs={"stored_dtype": " ".join(files.dtypes)},
        reader=StreamReader(list(files.paths.values()), is_token),
        files=tuple(path for layer in files.paths.values() for path in layer),
        token_ids=None if ids is None else np.concatenate(ids).astype(np.int32),
    )
    return contents, []


def read_batches(
    folder: Path, language: str, layers: Spec = "all"
) -> tuple[FolderContents | None, list[Fault]]:
    """Check a folder of ``layer_{l}_batch_{k}.npz`` and ``metadata.json``, which may be missing.

    Parameters
    ----------
    folder
        The folder.
    language
        Language of all samples; these files name none.
    layers
        Layers to read; all by default.

    Returns
    -------
    contents : FolderContents or None
        The samples; None if there are faults.
    faults : list of Fault
        Every fault of the folder.
    """
    paths, faults = _paths(folder, "batches", _BATCH, layers)
    document, more = read_metadata(folder / _METADATA)
    faults += more
    other_arrays = {"task_id": ("sample",), "sample_idx": ("sample",)}
    files, more = examine(folder, paths, dims=("sample", "hidden"), other_arrays=other_arrays)
    faults += more
    if files is not None:
        faults += _contradictions(document, files, layers)
    if files is None or faults:
        return None, faults
    ids, numbers = (np.concatenate(files.other_arrays[name] or []).tolist() for name in other_arrays)
    attrs: dict[str, str | int] = {"stored_dtype": " ".join(files.dtypes)}
    if "model_name" in document:
        attrs["model"] = str(document["model_name"])
    contents = FolderContents(
        layers=tuple(files.paths),
        hidden=files.hidden,
        lengths=np.ones(len(ids), dtype=np.int64),
        languages=[language] * len(ids),
        ids=list(map(str, ids)),
        labels={"task_id": ids, "sample_idx": numbers},
        attrs=attrs,
        reader=StreamReader(list(files.paths.values()), None),
        files=tuple(path for layer in files.paths.values() for path in layer),
        only_last=True,
    )
    return contents, []


def _paths(folder: Path, format: str, pattern: re.Pattern[str], layers: Spec) -> tuple[_Paths, list[Fault]]:
    """Return the files of each layer by number."""
    paths: _Paths = {}
    faults = []
    for path in sorted(folder.glob(PATTERNS[format][0])):
        where = path.relative_to(folder).as_posix()
        match = pattern.fullmatch(where)
        if match is None:
            faults.append(
                Fault(where, "its name does not give a layer and a number", "rename it, or move it away")
            )
        elif int(match[2]) in paths.setdefault(int(match[1]), {}):
            faults.append(
                Fault(where, f"is a second file with number {int(match[2])}", "remove one of the two")
            )
        else:
            paths[int(match[1])][int(match[2])] = path
    chosen, layer_faults = choose_layers(paths, layers)
    paths = {layer: paths[layer] for layer in sorted(paths) if layer in chosen}
    return paths, [*faults, *layer_faults, *missing_numbers(paths)]


def _contradictions(document: dict[str, Any], files: NumberedFiles, layers: Spec) -> list[Fault]:
    """Return a fault for each contradiction between the metadata and the files."""
    faults = missing_layers({"the folder": files.paths}, listed_layers(document, layers))
    counts = {
        "hidden_dim": files.hidden,
        "total_samples": sum(map(len, files.other_arrays["task_id"] or [])),
    }
    return faults + [
        Fault(
            _METADATA,
            f"states {name} {document[name]}, but the files have {count}",
            "repair it, or move it away",
        )
        for name, count in counts.items()
        if document.get(name, count) != count
    ]
