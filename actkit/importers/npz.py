"""NumPy files of some samples each: the layout ``npz``, of all tokens, and ``batches``, of the last ones."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Fault
from ..layer_spec import Spec
from .folder_contents import PATTERNS, Found, choose_layers, listed_layers, metadata, missing_layers
from .npz_arrays import NumberedFiles, RowStream, examine, missing_numbers

_METADATA = "metadata.json"
_CHUNK = re.compile(r"layer_(\d+)/chunk_(\d+)\.npz")
_BATCH = re.compile(r"layer_(\d+)_batch_(\d+)\.npz")
_Paths = dict[int, dict[int, Path]]


class StreamReader:
    """Reads all layers side by side, each from its first file to its last.

    Parameters
    ----------
    paths
        The files of each layer, in the order of their samples.
    held
        Which positions hold a token, dims ``(sample, token)``, of each file; None where there are no tokens.
    """

    def __init__(self, paths: Sequence[Sequence[Path]], held: Sequence[np.ndarray] | None) -> None:
        self._streams = [RowStream(own) for own in paths]
        self._held = held

    def fill(self, samples: range, out: np.ndarray) -> None:
        """Do as :class:`~actkit.importers.folder_contents.Reader` says."""
        for stream, into in zip(self._streams, out, strict=True):
            at = 0
            for number, rows, values in stream.take(len(samples)):
                vectors = values if self._held is None else values[self._held[number][rows]]
                into[at : at + len(vectors)] = vectors
                at += len(vectors)

    def close(self) -> None:
        """Close its files."""
        for stream in self._streams:
            stream.close()


def read_npz(folder: Path, language: str, layers: Spec = "all") -> tuple[Found | None, list[Fault]]:
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
    found : Found or None
        The samples; positions excluded by the mask, on either side, are padding.
    faults : list of Fault
        Every fault of the folder.
    """
    paths, faults = _paths(folder, "npz", _CHUNK, layers)
    faults += [
        Fault(path.name, "says that what lies here is whitened", "import what the model computed")
        for path in sorted(folder.glob("layer_*_whitening.npz"))
    ]
    own = {"attention_mask": ("sample", "token"), "token_ids": ("sample", "token")}
    dims = ("sample", "token", "hidden")
    files, more = examine(folder, paths, dims=dims, beside=own, optional=["token_ids"])
    faults += more
    masks = (files.beside["attention_mask"] if files else None) or []
    odd = [number for number, mask in enumerate(masks) if not np.isin(mask, (0, 1)).all()]
    faults += [
        Fault(f"chunk {number}", "`attention_mask` has other values than 0 and 1", "write 1 at tokens")
        for number in odd
    ]
    if files is None or faults:
        return None, faults
    held = [mask.astype(bool) for mask in masks]
    ids = files.beside["token_ids"]
    lengths = np.concatenate([mask.sum(axis=1) for mask in held])
    found = Found(
        layers=tuple(files.paths),
        hidden=files.hidden,
        lengths=lengths,
        languages=[language] * len(lengths),
        ids=None,
        labels={},
        said=_said(files),
        reader=StreamReader(list(files.paths.values()), held),
        files=tuple(path for layer in files.paths.values() for path in layer),
        token_ids=None if ids is None else np.concatenate(list(map(_where, ids, held))).astype(np.int32),
    )
    return found, []


def read_batches(folder: Path, language: str, layers: Spec = "all") -> tuple[Found | None, list[Fault]]:
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
    found : Found or None
    faults : list of Fault
        Every fault of the folder.
    """
    paths, faults = _paths(folder, "batches", _BATCH, layers)
    document, more = metadata(folder / _METADATA)
    faults += more
    beside = {"task_id": ("sample",), "sample_idx": ("sample",)}
    files, more = examine(folder, paths, dims=("sample", "hidden"), beside=beside)
    faults += more
    if files is not None:
        faults += _contradictions(document, files, layers)
    if files is None or faults:
        return None, faults
    ids, places = (np.concatenate(files.beside[name] or []).tolist() for name in beside)
    found = Found(
        layers=tuple(files.paths),
        hidden=files.hidden,
        lengths=np.ones(len(ids), dtype=np.int64),
        languages=[language] * len(ids),
        ids=list(map(str, ids)),
        labels={"task_id": ids, "sample_idx": places},
        said={**({"model": str(document["model_name"])} if "model_name" in document else {}), **_said(files)},
        reader=StreamReader(list(files.paths.values()), None),
        files=tuple(path for layer in files.paths.values() for path in layer),
        only_last=True,
    )
    return found, []


def _paths(folder: Path, format: str, named: re.Pattern[str], layers: Spec) -> tuple[_Paths, list[Fault]]:
    """Return the files of each layer by their numbers."""
    paths: _Paths = {}
    faults = []
    for path in sorted(folder.glob(PATTERNS[format][0])):
        where = path.relative_to(folder).as_posix()
        match = named.fullmatch(where)
        if match is None:
            faults.append(Fault(where, "its name tells no layer and number", "rename it, or move it away"))
        elif int(match[2]) in paths.setdefault(int(match[1]), {}):
            faults.append(Fault(where, f"is number {int(match[2])} once more", "keep one of the two"))
        else:
            paths[int(match[1])][int(match[2])] = path
    kept, unknown = choose_layers(paths, layers)
    paths = {layer: paths[layer] for layer in sorted(paths) if layer in kept}
    return paths, [*faults, *unknown, *missing_numbers(paths)]


def _said(files: NumberedFiles) -> dict[str, str | int]:
    return {"stored_dtype": " ".join(files.dtypes)}


def _where(values: np.ndarray, held: np.ndarray) -> np.ndarray:
    return np.asarray(values[held])


def _contradictions(document: dict[str, Any], files: NumberedFiles, layers: Spec) -> list[Fault]:
    """Compare what the metadata say with the files."""
    faults = missing_layers({"the folder": files.paths}, listed_layers(document, layers))
    counts = {
        "hidden_dim": files.hidden,
        "total_samples": sum(map(len, files.beside["task_id"] or [])),
    }
    return faults + [
        Fault(
            _METADATA, f"says {name} {document[name]}, the files have {count}", "repair it, or move it away"
        )
        for name, count in counts.items()
        if document.get(name, count) != count
    ]
