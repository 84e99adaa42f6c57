"""Groups of samples: the distinct values of a label, and the value of each sample."""

import re
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pandas as pd

_WHOLE = re.compile(r"0|-?[1-9]\d*")
_ISO = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d.*)?", re.ASCII)
_INT64 = 2.0**63


@dataclass(frozen=True)
class Groups:
    """Samples grouped by the values of a label.

    Parameters
    ----------
    values
        Distinct values in ascending order: booleans, integers, floats, dates, or an object array of str.
    codes
        Index into ``values`` for each sample, -1 where the label is missing; dims ``(sample,)``.
    """

    values: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, cells: np.ndarray, label_type: str = "") -> "Groups":
        """Group samples by their value of a label.

        ``None``, ``NaN``, ``NaT``, ``pandas.NA`` and the empty string mark a missing label. Whole numbers
        are integers even if missing values turned the column into floats.

        Parameters
        ----------
        cells
            Values of any dtype, dims ``(sample,)``.
        label_type
            ``bool`` if the cells are booleans that missing values turned into floats.

        Raises
        ------
        TypeError
            If the values have several types that cannot be compared.
        """
        cells = np.asarray(cells)
        if cells.dtype.kind in "TUS":
            cells = (cells.astype(str) if cells.dtype.kind == "S" else cells).astype(object)
        missing = np.asarray(pd.isna(cells))
        if cells.dtype == object:
            missing = missing | np.array([type(cell) is str and not cell for cell in cells], dtype=bool)
        present = cells[~missing]
        if cells.dtype == object:
            present = _typed(present.tolist())
        if present.dtype.kind == "f":
            present = _without_fraction(present)
        if label_type == "bool" and present.dtype.kind == "i":
            present = present.astype(bool)
        values, positions = np.unique(present, return_inverse=True)
        if values.dtype == object and all(
            isinstance(value, str) and _WHOLE.fullmatch(value) for value in values
        ):
            order = np.argsort([int(value) for value in values], kind="stable")
            values, positions = values[order], np.argsort(order, kind="stable")[positions]
        codes = np.full(len(cells), -1, dtype=np.int64)
        codes[~missing] = positions
        return cls(values, codes)

    @property
    def texts(self) -> list[str]:
        """The values as text."""
        return [label_text(value) for value in self.values]

    @property
    def counts(self) -> np.ndarray:
        """Number of samples of each value."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.values))

    def cell_texts(self) -> np.ndarray:
        """Return the value of each sample as text, "" where it is missing."""
        texts: np.ndarray = np.array([*self.texts, ""], dtype=object)[self.codes]
        return texts

    def series(self, samples: np.ndarray) -> pd.Series:
        """Return the values of some samples in a dtype that keeps integers despite missing values."""
        dtype = {"i": "Int64", "b": "boolean"}.get(self.values.dtype.kind, self.values.dtype)
        codes = self.codes[samples]
        if (codes >= 0).all():
            return pd.Series(self.values[codes])
        missing = pd.NA if isinstance(dtype, str) else None
        return pd.Series([missing if code < 0 else self.values[code] for code in codes], dtype=dtype)

    def find(self, name: Any) -> int | None:
        """Return the index of the value that equals a number or date, or has a text; None unless unique."""
        if isinstance(name, int | float | np.number | np.bool_) and self.values.dtype.kind in "biuf":
            matches = np.flatnonzero(self.values == name)
        elif isinstance(name, date | np.datetime64):
            timestamp = pd.Timestamp(name)
            if (
                self.values.dtype.kind == "M" and timestamp.tzinfo is not None
            ):  # values with a time zone are in UTC
                timestamp = timestamp.tz_convert(None)
            matches = np.flatnonzero([_timestamp(value) == timestamp for value in self.values])
        else:
            matches = np.flatnonzero([text == label_text(name) for text in self.texts])
        # several texts may denote the same timestamp
        return int(matches[0]) if len(matches) == 1 else None


def label_text(value: Any) -> str:
    """Return a label's value as text; dates at midnight have no time of day.

    Examples
    --------
    >>> label_text(np.int64(3)), label_text(np.datetime64("2024-07-26T00:00:00", "ns"))
    ('3', '2024-07-26')
    """
    if isinstance(value, np.datetime64):
        day = value.astype("datetime64[D]")
        return str(day if day == value else value.astype("datetime64[us]")).removesuffix(".000000")
    return str(value)


def _timestamp(value: Any) -> pd.Timestamp | None:
    """Return a date, or the date in an ISO 8601 text, as a timestamp; None for other values."""
    if not isinstance(value, np.datetime64) and not (isinstance(value, str) and _ISO.fullmatch(value)):
        return None
    try:
        return pd.Timestamp(value)
    except ValueError:
        return None


def _typed(present: list[Any]) -> np.ndarray:
    """Return the values of an object array as an array of their common type."""
    if all(isinstance(value, str) for value in present):
        return np.array([str(value) for value in present], dtype=object)
    if all(isinstance(value, bool | np.bool_) for value in present):
        return np.array(present, dtype=bool)
    numbers = (int, float, np.integer, np.floating)
    if all(isinstance(value, numbers) and not isinstance(value, bool) for value in present):
        return np.array(present)
    if all(isinstance(value, date | np.datetime64) for value in present):
        dates = pd.to_datetime(present, utc=any(getattr(value, "tzinfo", None) for value in present))
        return np.asarray(dates.tz_localize(None).to_numpy())
    names = sorted({type(value).__name__ for value in present})
    raise TypeError(f"holds {', '.join(names)}, which cannot be compared with each other")


def _without_fraction(numbers: np.ndarray) -> np.ndarray:
    """Return floats as integers if all of them are whole numbers."""
    whole = np.isfinite(numbers).all() and (numbers % 1 == 0).all() and (np.abs(numbers) < _INT64).all()
    return numbers.astype(np.int64) if whole else numbers
