"""Contents of a folder of files, after all checks."""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import Fault, InputError
from ..layer_spec import Spec, describe, parse, resolve
from ..regular_files import MOST_JSON, open_archive, read_regular

# glob patterns of the files of each layout
PATTERNS = {
    "pt": ("layer_checkpoints/*.pt", "activations_*_all_layers.pt"),
    "npz": ("layer_*/chunk_*.npz",),
    "batches": ("layer_*_batch_*.npz",),
}
BLOCK_BYTES = 64 * 10**6  # read at once
# float32 cannot represent more precise values, and integers are not activations
_DTYPES = ("float16", "bfloat16", "float32")
_SHOWN = 100


class Reader(Protocol):
    """Reads the activations of samples, from the first to the last."""

    def fill(self, samples: range, out: np.ndarray) -> None:
        """Copy the tokens of the next samples, consecutively and without padding.

        Parameters
        ----------
        samples
            Indices of the samples that follow those of the previous call.
        out
            Float32 array, dims ``(layer, position, hidden)``, with one position per token.
        """

    def close(self) -> None:
        """Close the files."""


@dataclass(frozen=True)
class FolderContents:
    """Activations in a folder of files, with their metadata.

    Parameters
    ----------
    layers
        Block indices, sorted.
    hidden
        The width of the model.
    lengths
        Number of tokens of each sample, dims ``(sample,)``.
    languages
        Language of each sample.
    ids
        Id of each sample in the files; None if they hold no ids.
    labels
        Name to one value per sample.
    attrs
        Attributes of the cube.
    reader
        Reader of the activations.
    files
        Files that the reader reads.
    token_ids
        Vocabulary index of each token of all samples, dims ``(position,)``; None if unknown.
    only_last
        Whether the files hold only the last content token of each sample.
    """

    layers: tuple[int, ...]
    hidden: int
    lengths: np.ndarray
    languages: list[str]
    ids: list[str] | None
    labels: dict[str, list[Any]]
    attrs: dict[str, str | int]
    reader: Reader
    files: tuple[Path, ...]
    token_ids: np.ndarray | None = None
    only_last: bool = False


@dataclass
class Shapes:
    """Checks that each file agrees with the first of its kind, and collects faults.

    Parameters
    ----------
    faults
        Faults collected so far.
    """

    faults: list[Fault] = field(default_factory=list)
    _first: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)

    def same(self, kind: str, where: str, noun: str, value: Any, hint: str = "") -> None:
        """Record a fault if a value differs from that of the first file of its kind."""
        other, expected = self._first.setdefault((kind, noun), (where, value))
        if value != expected:
            what = f"has {noun} {value}, but {other} has {expected}"
            if isinstance(value, bytes) or len(what) > _SHOWN + len(other):
                what = f"differs in {noun} from {other}"
            self.faults.append(Fault(where, what, hint or "import only files that belong together"))

    def activations(self, where: str, shape: Sequence[int], dtype: str, dims: Sequence[str]) -> bool:
        """Return whether activations have valid dimensions and dtype; record a fault if not."""
        n_before = len(self.faults)
        if len(shape) != len(dims):
            what = f"`activations` has shape {tuple(shape)}, not ({', '.join(dims)})"
            self.faults.append(Fault(where, what, "import files with these dimensions"))
        elif 0 in shape:
            self.faults.append(Fault(where, f"`activations` has shape {tuple(shape)}", "remove the file"))
        if dtype not in _DTYPES:
            what = f"`activations` holds {dtype}, which float32 cannot represent exactly"
            self.faults.append(Fault(where, what, "convert it to float32"))
        return len(self.faults) == n_before


def choose_layers(available: Iterable[int], spec: Spec) -> tuple[tuple[int, ...], list[Fault]]:
    """Return the available layers that a specification selects, and its faults."""
    all_layers = tuple(sorted(set(available)))
    if _selects_all(spec) or not all_layers:
        return all_layers, []
    terms, faults = parse(spec)
    resolved, more = resolve(terms, {"residual": all_layers[-1] + 1})
    layers = resolved.get("residual", ())
    if missing := sorted(set(layers) - set(all_layers)):
        what = f"the files have no layers {describe(missing)}"
        more.append(Fault("layers", what, f"they have {describe(all_layers)}"))
    return layers, faults + more


def listed_layers(document: Mapping[str, Any], spec: Spec) -> list[int]:
    """Return the layers that the metadata list, if a specification selects all of them."""
    listed = document.get("layers_extracted")
    if not _selects_all(spec) or not isinstance(listed, list):
        return []
    return [layer for layer in listed if isinstance(layer, int)]


def _selects_all(spec: Spec) -> bool:
    return str(spec).strip() == "all"


def missing_layers(parts: Mapping[str, Collection[int]], listed: Iterable[int] = ()) -> list[Fault]:
    """Return a fault for each part of a folder that lacks layers which are listed or in another part."""
    all_layers = set(listed).union(*parts.values())
    return [
        Fault(part, f"lacks layers {describe(sorted(missing))}", "write them, or remove them everywhere")
        for part, layers in parts.items()
        if (missing := all_layers - set(layers))
    ]


def read_metadata(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read the metadata file of a folder; return an empty dict if there is none."""
    try:
        document = json.loads(read_regular(path, MOST_JSON))
    except FileNotFoundError:
        return {}, []
    except (OSError, ValueError, RecursionError) as error:
        return {}, [Fault(path.name, f"cannot be read: {brief(error)}", "repair it, or move it away")]
    if not isinstance(document, dict):
        return {}, [Fault(path.name, f"holds a {type(document).__name__}, not an object", "move it away")]
    return document, []


def digest(folder: Path, paths: Iterable[Path]) -> str:
    """Return a digest of the names, sizes and checksums of all members of archives, without reading them."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with reading(str(path)), open_archive(path) as archive:
            for member in archive.infolist():
                where = path.relative_to(folder).as_posix()
                total.update(f"{where} {member.filename} {member.file_size} {member.CRC:08x}\n".encode())
    return total.hexdigest()


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn any error while a file is read into an :class:`InputError` with a hint."""
    try:
        yield
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # each library has its own
        fault = Fault(where, f"cannot be read: {brief(error)}", "write it again")
        raise InputError([fault], "a file is damaged, or was changed; nothing was imported") from error


def brief(error: BaseException) -> str:
    """Return the first line of an error message, shortened."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
