"""Counts of computed samples by language and by label value."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...store.cube_files import RemoteCube
from ...store.layout import COORD_CHUNK, Array, array_names, array_of, open_group

_BLOCK = 16 * COORD_CHUNK


@dataclass(frozen=True)
class _Column:
    """Values of a column, by sample.

    Parameters
    ----------
    values
        Distinct values, as text.
    codes
        Index of the value of each sample, from 1; 0 for a missing value.
    counts
        Number of samples counted of each code.
    """

    values: list[str]
    codes: np.ndarray
    counts: np.ndarray

    def add(self, samples: np.ndarray) -> None:
        self.counts[:] += np.bincount(self.codes[samples], minlength=len(self.counts))

    def by_value(self) -> dict[str, int]:
        return dict(zip(self.values, self.counts[1:].tolist(), strict=True))


class LabelCounts:
    """Counts of samples by the languages and labels of a cube.

    Parameters
    ----------
    path
        The ``.zarr`` folder of a cube whose languages and labels are written, or its remote files.
    done
        Boolean, dims ``(sample,)``: the samples that are counted initially.

    Notes
    -----
    More than 1,000 languages are not counted, nor labels with more than 20 distinct values or with a value
    longer than 50 characters. Languages take two bytes per sample, a label one.
    """

    def __init__(self, path: Path | RemoteCube, done: np.ndarray) -> None:
        group = open_group(path)
        labels = [name for name in array_names(group) if group[name].attrs.get("label")]
        read = {"language": _read(array_of(group, "language"), np.uint16, most=1000)}
        read |= {name: _read(array_of(group, name), np.uint8, most=20, longest=50) for name in labels}
        self._columns = {name: column for name, column in read.items() if column is not None}
        self.add(np.flatnonzero(done))

    def add(self, samples: np.ndarray) -> None:
        """Count samples, given their indices."""
        for column in self._columns.values():
            column.add(samples)

    @property
    def languages(self) -> dict[str, int]:
        """Number of samples of each language."""
        return self._columns["language"].by_value() if "language" in self._columns else {}

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """Number of samples of each value of each label; missing values are not counted."""
        return {name: column.by_value() for name, column in self._columns.items() if name != "language"}


def _read(array: Array, dtype: type, *, most: int, longest: int | None = None) -> _Column | None:
    """Read a column; return None if it has too many values or a value that is too long."""
    known: dict[str, int] = {}
    # columns with missing values are stored as floats
    kinds: dict[str, Callable[[Any], object]] = {"bool": bool, "int64": int}
    known_type = kinds.get(str(array.attrs.get("label_type")), str)
    codes: np.ndarray = np.empty(array.shape, dtype)
    for start in range(0, len(codes), _BLOCK):
        block = np.asarray(array[start : start + _BLOCK])
        block_codes, values = pd.factorize(block.astype(object) if block.dtype.kind == "T" else block)
        # a missing text is "", and a missing number is NaN, which factorize leaves out
        texts = [str(known_type(value)) for value in values.tolist()]
        new = [known.setdefault(text, len(known) + 1) if text else 0 for text in texts]
        if len(known) > most or (longest is not None and max(map(len, texts), default=0) > longest):
            return None
        codes[start : start + len(block)] = np.array([*new, 0])[block_codes]
    return _Column(list(known), codes, np.zeros(len(known) + 1, dtype=np.int64))
