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

# files that a folder of each layout has
PATTERNS = {
    "pt": ("layer_checkpoints/*.pt", "activations_*_all_layers.pt"),
    "npz": ("layer_*/chunk_*.npz",),
    "batches": ("layer_*_batch_*.npz",),
}
BLOCK_BYTES = 64 * 10**6  # that are read at once
# more precise values would not be kept, and whole numbers are no activations
_DTYPES = ("float16", "bfloat16", "float32")
_SHOWN = 100


class Reader(Protocol):
    """Gives what the files hold of samples, from the first to the last."""

    def fill(self, samples: range, out: np.ndarray) -> None:
        """Put the tokens of the next samples one after the other, without pads.

        Parameters
        ----------
        samples
            Those that follow the ones asked for before.
        out
            Float32, dims ``(layer, position, hidden)``; as many positions as they have tokens.
        """

    def close(self) -> None:
        """Close its files."""


@dataclass(frozen=True)
class Found:
    """Activations in files, and what these say of them.

    Parameters
    ----------
    layers
        Block indices, sorted.
    hidden
        The width of the model.
    lengths
        Number of tokens of each sample, dims ``(sample,)``.
    languages
        That of each sample.
    ids
        The name that the files give each sample; None where they give none.
    labels
        Name to one value a sample.
    said
        Attributes of the cube.
    reader
        Reads them.
    files
        Those that it reads.
    token_ids
        Vocabulary index of each token, sample after sample, dims ``(position,)``; None where unknown.
    only_last
        Whether the files hold the last content token of each sample, and no other.
    """

    layers: tuple[int, ...]
    hidden: int
    lengths: np.ndarray
    languages: list[str]
    ids: list[str] | None
    labels: dict[str, list[Any]]
    said: dict[str, str | int]
    reader: Reader
    files: tuple[Path, ...]
    token_ids: np.ndarray | None = None
    only_last: bool = False


@dataclass
class Shapes:
    """Compares each file with the first of its kind, and keeps every fault.

    Parameters
    ----------
    faults
        What was found so far.
    """

    faults: list[Fault] = field(default_factory=list)
    _first: dict[tuple[str, str], tuple[str, Any]] = field(default_factory=dict)

    def same(self, kind: str, where: str, noun: str, value: Any, hint: str = "") -> None:
        """Note a fault where a value is not that of the first file of its kind."""
        other, wanted = self._first.setdefault((kind, noun), (where, value))
        if value != wanted:
            what = f"has {noun} {value}, {other} has {wanted}"
            if isinstance(value, bytes) or len(what) > _SHOWN + len(other):
                what = f"has other {noun} than {other}"
            self.faults.append(Fault(where, what, hint or "import what belongs together"))

    def activations(self, where: str, shape: Sequence[int], dtype: str, dims: Sequence[str]) -> bool:
        """Return whether activations have valid dimensions and dtype; record a fault if not."""
        before = len(self.faults)
        if len(shape) != len(dims):
            what = f"`activations` has shape {tuple(shape)}, not ({', '.join(dims)})"
            self.faults.append(Fault(where, what, "import what has these dimensions"))
        elif 0 in shape:
            self.faults.append(Fault(where, f"`activations` has shape {tuple(shape)}", "remove the file"))
        if dtype not in _DTYPES:
            what = f"`activations` holds {dtype}, which float32 does not keep exactly"
            self.faults.append(Fault(where, what, "convert it to float32"))
        return len(self.faults) == before


def choose_layers(held: Iterable[int], wanted: Spec) -> tuple[tuple[int, ...], list[Fault]]:
    """Return which of the layers that files have are wanted, and what is wrong with the wish."""
    every = tuple(sorted(set(held)))
    if _wants_all(wanted) or not every:
        return every, []
    parts, faults = parse(wanted)
    chosen, more = resolve(parts, {"residual": every[-1] + 1})
    kept = chosen.get("residual", ())
    if lacking := sorted(set(kept) - set(every)):
        what = f"the files have no layers {describe(lacking)}"
        more.append(Fault("layers", what, f"they have {describe(every)}"))
    return kept, faults + more


def listed_layers(document: Mapping[str, Any], wanted: Spec) -> list[int]:
    """Return the layers that metadata say there are, where all of them are wanted."""
    listed = document.get("layers_extracted")
    if not _wants_all(wanted) or not isinstance(listed, list):
        return []
    return [layer for layer in listed if isinstance(layer, int)]


def _wants_all(wanted: Spec) -> bool:
    return str(wanted).strip() == "all"


def missing_layers(held: Mapping[str, Collection[int]], wanted: Iterable[int] = ()) -> list[Fault]:
    """Name the layers that are wanted, or that one part of a folder has, and that another part lacks."""
    every = set(wanted).union(*held.values())
    return [
        Fault(part, f"lacks layers {describe(sorted(lacking))}", "write them, or remove them everywhere")
        for part, own in held.items()
        if (lacking := every - set(own))
    ]


def metadata(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read the file of a folder that says what the others are; empty where there is none."""
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
    """Return a digest of the names, sizes and checksums of what archives hold, without reading it."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with reading(str(path)), open_archive(path) as archive:
            for part in archive.infolist():
                where = path.relative_to(folder).as_posix()
                total.update(f"{where} {part.filename} {part.file_size} {part.CRC:08x}\n".encode())
    return total.hexdigest()


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what happens to a file while it is read into an error that says what to do."""
    try:
        yield
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # each library has its own
        fault = Fault(where, f"cannot be read: {brief(error)}", "write it again")
        raise InputError([fault], "a file is damaged, or was changed; nothing was imported") from error


def brief(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
