"""Label columns: the one dtype that keeps every value of a column as it was given."""

from typing import Any

import numpy as np


class LabelType:
    """What the values of a column have in common, learned one by one."""

    def __init__(self) -> None:
        self._kinds: set[type] = set()
        self._gaps = False
        self._unstorable = False
        self._past_float = False
        self._past_int = False

    def add(self, value: Any) -> None:
        """Take one more value into account; None is a gap."""
        if value is None:
            self._gaps = True
            return
        self._kinds.add(type(value))
        if type(value) is str:
            self._unstorable |= not storable(value)
        elif type(value) is int:
            self._past_float |= abs(value) > 2**53
            self._past_int |= not -(2**63) <= value < 2**63

    @property
    def dtype(self) -> str:
        """Name of the NumPy dtype, ``str``, or ``""`` where no dtype keeps all values."""
        kinds = self._kinds
        if kinds <= {str}:
            return "" if self._unstorable else "str"
        if kinds == {bool} and not self._gaps:
            return "bool"
        if kinds == {int} and not self._gaps and not self._past_int:
            return "int64"
        # gaps become NaN, which only floats have; integers past 2**53 would not survive that
        return "float64" if kinds <= {int, float} and not self._past_float else ""

    @property
    def fault(self) -> str:
        """What keeps the values from having one dtype; ``""`` where nothing does."""
        if self.dtype:
            return ""
        if self._kinds <= {str}:
            return "holds text that no UTF-8 can store"
        if self._kinds <= {int, float}:
            return "holds whole numbers too large to keep exactly"
        names = ", ".join(sorted(kind.__name__ for kind in self._kinds)) + (" and gaps" if self._gaps else "")
        return f"holds {names}, which no single label can keep"


def typed(values: list[Any], dtype: str) -> np.ndarray:
    """Return an array of values of a known :attr:`LabelType.dtype`; gaps become ``""`` or NaN."""
    if dtype == "str":
        return objects(["" if value is None else value for value in values])
    gap = np.nan if dtype == "float64" else None
    return np.array([gap if value is None else value for value in values], dtype=dtype)


def objects(values: list[Any]) -> np.ndarray:
    """Return an object array, one element a value, even if those are lists."""
    return np.fromiter(values, dtype=object, count=len(values))


def storable(text: str) -> bool:
    """Tell whether UTF-8 can store a text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_fault(value: Any) -> str:
    """Return what is wrong with a value that has to be text; ``""`` where nothing is."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "is empty"
    if not isinstance(value, str):
        return f"holds a {type(value).__name__}, not text"
    return "" if storable(value) else "holds half a surrogate pair, which no UTF-8 can store"
