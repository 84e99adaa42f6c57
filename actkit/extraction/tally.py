"""How many of the computed samples are of each language, and of each value of each label."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..store.layout import COORD_CHUNK, Array, array_names, array_of, open_group

_BLOCK = 16 * COORD_CHUNK


@dataclass(frozen=True)
class _Column:
    """What a column holds, sample by sample.

    Parameters
    ----------
    values
        Its different values, as text.
    codes
        For each sample, the index of its value from 1; 0 where it has none.
    counts
        Samples counted of each code.
    """

    values: list[str]
    codes: np.ndarray
    counts: np.ndarray

    def add(self, samples: np.ndarray) -> None:
        self.counts[:] += np.bincount(self.codes[samples], minlength=len(self.counts))

    def by_value(self) -> dict[str, int]:
        return dict(zip(self.values, self.counts[1:].tolist(), strict=True))


class Tally:
    """Counts samples by what a cube says of them.

    Parameters
    ----------
    path
        The ``.zarr`` folder of a cube, whose languages and labels are written.
    done
        Boolean, dims ``(sample,)``: the samples that are counted from the beginning.

    Notes
    -----
    Nothing is counted of more than 1,000 languages, nor of a label with more than 20 different values or
    one of more than 50 characters. The languages take two bytes a sample, a label one.
    """

    def __init__(self, path: Path, done: np.ndarray) -> None:
        group = open_group(path)
        labels = [name for name in array_names(group) if group[name].attrs.get("label")]
        read = {"language": _read(array_of(group, "language"), np.uint16, most=1000)}
        read |= {name: _read(array_of(group, name), np.uint8, most=20, longest=50) for name in labels}
        self._columns = {name: column for name, column in read.items() if column is not None}
        self.add(np.flatnonzero(done))

    def add(self, samples: np.ndarray) -> None:
        """Count samples, by their indices."""
        for column in self._columns.values():
            column.add(samples)

    @property
    def languages(self) -> dict[str, int]:
        """Samples of each language."""
        return self._columns["language"].by_value() if "language" in self._columns else {}

    @property
    def labels(self) -> dict[str, dict[str, int]]:
        """Samples of each value of each label; those without a value are not counted."""
        return {name: column.by_value() for name, column in self._columns.items() if name != "language"}


def _read(array: Array, dtype: type, *, most: int, longest: int | None = None) -> _Column | None:
    """Read a column, unless it has too many values, or one that is too long."""
    known: dict[str, int] = {}
    codes: np.ndarray = np.empty(array.shape, dtype)
    for start in range(0, len(codes), _BLOCK):
        block = np.asarray(array[start : start + _BLOCK])
        found, values = pd.factorize(block.astype(object) if block.dtype.kind == "T" else block)
        # "" stands where a text is missing, as NaN does where a number is, which factorize leaves out
        texts = [str(value) for value in values.tolist()]
        new = [known.setdefault(text, len(known) + 1) if text else 0 for text in texts]
        if len(known) > most or (longest is not None and max(map(len, texts), default=0) > longest):
            return None
        codes[start : start + len(block)] = np.array([*new, 0])[found]
    return _Column(list(known), codes, np.zeros(len(known) + 1, dtype=np.int64))
