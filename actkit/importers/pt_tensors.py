"""Tensors of PyTorch files, memory-mapped so that no file is read at once."""

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
    """Return the dict in a file, or an empty dict and the fault of the file."""
    try:
        with open_archive(path) as archive:
            # torch.save does not compress: a file that expands was made to exhaust disk or memory
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                return {}, "unpacks to more bytes than it has"
            damaged = archive.testzip()  # no checksums are compared once members are mapped
            content = TorchArchive(archive).load()
    except pickle.UnpicklingError:
        return {}, "holds objects that are not loaded, as they can run code"
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:  # zipfile, pickletools and torch each raise their own
        if isinstance(error, zipfile.BadZipFile):
            return {}, "is not a torch.save file, or has the old format"
        return {}, f"cannot be read: {brief(error)}"
    if damaged is not None:
        return {}, f"is damaged: {damaged} does not match its checksum"
    if not isinstance(content, dict):
        return {}, f"holds a {type(content).__name__}, not a dict"
    return content, ""


@dataclass(frozen=True)
class LanguageFiles:
    """Files of a language, and the range of tokens of each sample.

    Parameters
    ----------
    name
        The language.
    files
        File of each layer; the same for all layers if one file holds them.
    shape
        Shape of each tensor, dims ``(sample, token, hidden)``.
    start
        Index of its first sample among those of all languages.
    begins, ends
        First position of each sample that holds a token, and the position after the last, dims ``(sample,)``.
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
        with reading(str(path)), open_archive(path) as archive:
            activations = TorchArchive(archive).load()["activations"]
            tensor: torch.Tensor = activations[layer] if isinstance(activations, dict) else activations
            return tensor.detach()

    def blocks(self, start: int, stop: int) -> Iterator[slice]:
        """Divide a range of samples into blocks that are read at once."""
        size = max(1, BLOCK_BYTES // (4 * self.shape[2] * max(self.shape[1], 1)))
        return (slice(first, min(first + size, stop)) for first in range(start, stop, size))

    def is_token(self, rows: slice) -> np.ndarray:
        """Return which positions of samples hold a token, dims ``(sample, token)``."""
        positions = np.arange(self.shape[1])
        return np.asarray((positions >= self.begins[rows, None]) & (positions < self.ends[rows, None]))


class TensorReader:
    """Copies tokens from the files of all languages.

    Parameters
    ----------
    languages
        Languages in the order of their samples.
    """

    def __init__(self, languages: list[LanguageFiles]) -> None:
        self._languages = languages

    def fill(self, samples: range, out: np.ndarray) -> None:
        """Implement :meth:`actkit.importers.folder_contents.Reader.fill`, for samples in any order."""
        offset = 0
        for language in self._languages:
            start = max(samples.start - language.start, 0)
            stop = min(samples.stop - language.start, language.shape[0])
            count = int(language.lengths[start : max(start, stop)].sum())
            for index, layer in enumerate(language.files if count else ()):
                # mapped anew each time, because mapped pages count as memory of the process
                _copy(language, language.tensor(layer), start, stop, out[index, offset : offset + count])
            offset += count

    def close(self) -> None:
        """Do nothing, since no file stays open."""


def _copy(language: LanguageFiles, tensor: torch.Tensor, start: int, stop: int, out: np.ndarray) -> None:
    offset = 0
    for rows in language.blocks(start, stop):
        vectors = tensor[rows][torch.from_numpy(language.is_token(rows))]
        torch.from_numpy(out[offset : offset + len(vectors)]).copy_(vectors)
        offset += len(vectors)


def token_ranges(language: LanguageFiles) -> tuple[np.ndarray, np.ndarray]:
    """Find the range of positions of each sample whose vectors are nonzero in any layer.

    Returns
    -------
    begins, ends : numpy.ndarray
        First of these positions, and the position after the last, dims ``(sample,)``; 0 if there are none.
    """
    is_nonzero = np.zeros(language.shape[:2], dtype=bool)
    for layer in language.files:
        tensor = language.tensor(layer)
        for rows in language.blocks(0, language.shape[0]):
            undecided = ~is_nonzero[rows]  # after the first layer, hardly more than the padding
            if undecided.any():
                vectors = tensor[rows][torch.from_numpy(undecided)]
                is_nonzero[rows][undecided] = (vectors != 0).any(dim=-1).numpy()
    has_tokens = is_nonzero.any(axis=1)
    begins = is_nonzero.argmax(axis=1)
    ends = is_nonzero.shape[1] - is_nonzero[:, ::-1].argmax(axis=1)
    return begins * has_tokens, ends * has_tokens
