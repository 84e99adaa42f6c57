"""Tensors of PyTorch files, mapped into memory: no file is read whole."""

import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..regular_files import open_archive
from .folder_contents import BLOCK_BYTES, brief, reading
from .torch_files import TorchArchive


def try_load(path: Path) -> tuple[dict[str, Any], str]:
    """Return what a file holds; or nothing, and what is wrong with it."""
    try:
        with open_archive(path) as archive:
            # torch.save packs nothing: what unpacks to more than there is was made to fill a disk or memory
            if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
                return {}, "unpacks to more than it holds"
            damaged = archive.testzip()  # what is mapped later is compared with no checksum
            content = TorchArchive(archive).load()
    except pickle.UnpicklingError:
        return {}, "holds objects that are not loaded, as they can run code"
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # zipfile, pickletools and torch each raise their own
        old = isinstance(error, zipfile.BadZipFile)
        return {}, "is no file of torch.save, or an old one" if old else f"cannot be read: {brief(error)}"
    if damaged is not None:
        return {}, f"is damaged: {damaged} is not what its checksum says"
    return (
        (content, "") if isinstance(content, dict) else ({}, f"holds a {type(content).__name__}, not a dict")
    )


def _load(path: Path) -> Any:
    with open_archive(path) as archive:
        return TorchArchive(archive).load()


@dataclass(frozen=True)
class LanguageFiles:
    """The files of a language, and which positions of its samples hold a token.

    Parameters
    ----------
    name
        The language.
    files
        Of each layer; the same for all where one file holds them.
    shape
        Of each tensor, dims ``(sample, token, hidden)``.
    start
        The first of its samples, among all.
    begins, ends
        The first position of each sample that holds a token, and the one after the last, dims ``(sample,)``.
    """

    name: str
    files: dict[int, Path]
    shape: tuple[int, int, int]
    start: int = 0
    begins: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    ends: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sample, dims ``(sample,)``."""
        return np.asarray(self.ends - self.begins)

    def tensor(self, layer: int) -> torch.Tensor:
        """Map the tensor of a layer."""
        path = self.files[layer]
        with reading(str(path)):
            held = _load(path)["activations"]
            tensor: torch.Tensor = (held[layer] if isinstance(held, dict) else held).detach()
            return tensor

    def blocks(self, start: int, stop: int) -> Iterator[slice]:
        """Cut samples into those that are read at once."""
        size = max(1, BLOCK_BYTES // (4 * self.shape[2] * max(self.shape[1], 1)))
        return (slice(at, min(at + size, stop)) for at in range(start, stop, size))

    def held(self, rows: slice) -> np.ndarray:
        """Return which positions of samples hold a token, dims ``(sample, token)``."""
        positions = np.arange(self.shape[1])
        return np.asarray((positions >= self.begins[rows, None]) & (positions < self.ends[rows, None]))


class TensorReader:
    """Copies tokens out of files.

    Parameters
    ----------
    languages
        In the order of their samples.
    """

    def __init__(self, languages: list[LanguageFiles]) -> None:
        self._languages = languages

    def fill(self, samples: range, out: np.ndarray) -> None:
        """Do as :class:`~actkit.importers.folder_contents.Reader` says, with any samples."""
        at = 0
        for language in self._languages:
            start = max(samples.start - language.start, 0)
            stop = min(samples.stop - language.start, language.shape[0])
            count = int(language.lengths[start : max(start, stop)].sum())
            for place, layer in enumerate(language.files if count else ()):
                # each is mapped anew: what stays mapped counts as memory of the process
                _copy(language, language.tensor(layer), start, stop, out[place, at : at + count])
            at += count

    def close(self) -> None:
        """Do nothing: no file stays open."""


def _copy(language: LanguageFiles, tensor: torch.Tensor, start: int, stop: int, out: np.ndarray) -> None:
    at = 0
    for rows in language.blocks(start, stop):
        vectors = tensor[rows][torch.from_numpy(language.held(rows))]
        torch.from_numpy(out[at : at + len(vectors)]).copy_(vectors)
        at += len(vectors)


def edges(language: LanguageFiles) -> tuple[np.ndarray, np.ndarray]:
    """Find the positions of each sample that hold a token: its vector is not 0 in some layer.

    Returns
    -------
    begins, ends : numpy.ndarray
        The first of them, and the one after the last, dims ``(sample,)``; 0 where there is none.
    """
    held = np.zeros(language.shape[:2], dtype=bool)
    for layer in language.files:
        tensor = language.tensor(layer)
        for rows in language.blocks(0, language.shape[0]):
            undecided = ~held[rows]  # after the first layer, hardly more than the pads
            if undecided.any():
                vectors = tensor[rows][torch.from_numpy(undecided)]
                held[rows][undecided] = (vectors != 0).any(dim=-1).numpy()
    some = held.any(axis=1)
    return held.argmax(axis=1) * some, (held.shape[1] - held[:, ::-1].argmax(axis=1)) * some
