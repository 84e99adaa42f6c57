"""Label columns: the single dtype that preserves every value of a column."""

from datetime import date, datetime
from typing import Any

import numpy as np


class LabelType:
    """Common dtype of the values of a column, found incrementally."""

    def __init__(self) -> None:
        self._types: set[type] = set()
        self._gaps = False
        self._has_times = False
        self._unstorable = False
        self._past_float = False
        self._past_int = False

    def add(self, value: Any) -> None:
        """Take another value into account; :func:`is_gap` defines missing values."""
        if is_gap(value):
            self._gaps = True
            return
        self._types.add(date if isinstance(value, date) else type(value))
        self._has_times |= isinstance(value, datetime) and not _is_midnight(value)
        if type(value) is str:
            self._unstorable |= not storable(value)
        elif type(value) is int:
            self._past_float |= abs(value) > 2**53
            self._past_int |= not -(2**63) <= value < 2**63

    @property
    def dtype(self) -> str:
        """Name of the NumPy dtype, ``str``, or ``""`` if no dtype preserves all values.

        ``bool?`` and ``int64?`` are booleans and integers with gaps, stored as float64; ``day`` stands for
        dates without a time of day, stored as text.
        """
        types = self._types
        if types <= {str}:
            return "" if self._unstorable else "str"
        if types == {date}:
            return "str" if self._has_times else "day"
        if types == {bool}:
            return "bool?" if self._gaps else "bool"
        if types == {int} and not self._gaps and not self._past_int:
            return "int64"
        # integers beyond 2**53 are not exact as floats
        if self._past_float or not types <= {int, float}:
            return ""
        return "int64?" if types == {int} else "float64"

    @property
    def fault(self) -> str:
        """Reason why the values have no common dtype; ``""`` if they have one."""
        if self.dtype:
            return ""
        if self._types <= {str}:
            return "holds text that UTF-8 cannot store"
        if self._types <= {int, float}:
            return "holds whole numbers too large to store exactly"
        names = ", ".join(sorted(kind.__name__ for kind in self._types))
        return f"holds {names}, which a single label cannot store"


def is_gap(value: Any) -> bool:
    """Return whether a cell stands for a missing value: None, NaN, NaT or the empty string."""
    # only NaN and NaT are unequal to themselves
    return value is None or value == "" or (not isinstance(value, list | dict) and value != value)


def typed(values: list[Any], dtype: str) -> np.ndarray:
    """Return an array of values whose :attr:`LabelType.dtype` is known.

    Gaps become ``""`` or NaN; dates become ISO 8601 text, which sorts chronologically.
    """
    if dtype == "day":
        return objects(["" if is_gap(value) else value.isoformat()[:10] for value in values])
    if dtype == "str":
        return objects(["" if is_gap(value) else _text_of(value) for value in values])
    if dtype in ("bool", "int64"):
        return np.array(values, dtype=dtype)
    return np.array([np.nan if is_gap(value) else float(value) for value in values], dtype=np.float64)


def _is_midnight(moment: datetime) -> bool:
    """Return whether a datetime can stand for its date: it has no time of day and no time zone."""
    return moment == datetime(moment.year, moment.month, moment.day)


def plain(value: Any) -> Any:
    """Return a cell as other table formats would hold it.

    Whole numbers that became floats because of a gap in their column become int, and midnights become dates.

    Examples
    --------
    >>> plain(3.0), plain(0.5), plain(datetime(2024, 7, 26)).isoformat()
    (3, 0.5, '2024-07-26')
    """
    # a larger float may stand for several whole numbers
    if isinstance(value, float) and abs(value) < 2**53 and value.is_integer():
        return int(value)
    return value.date() if isinstance(value, datetime) and _is_midnight(value) else value


def _text_of(value: Any) -> str:
    return str(value.isoformat()) if isinstance(value, date) else value


def objects(values: list[Any]) -> np.ndarray:
    """Return an object array with one element per value, even if the values are lists."""
    return np.fromiter(values, dtype=object, count=len(values))


def storable(text: str) -> bool:
    """Return whether UTF-8 can store a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_fault(value: Any) -> str:
    """Return the fault of a value that must be text; ``""`` if there is none."""
    if is_gap(value) or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if not isinstance(value, str):
        return f"holds a {type(value).__name__}, not text"
    return "" if storable(value) else "holds half a surrogate pair, which UTF-8 cannot store"
