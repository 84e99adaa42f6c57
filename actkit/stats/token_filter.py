"""Conditions on tokens, which statistics take as ``tokens``."""

import numbers
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import Fault, InputError
from ..schema import TokenKind

FROM_END = "from_end"  # index of a content token from the end of the content: -1 for the last one
KINDS = {kind.name.lower(): kind for kind in TokenKind if kind not in (TokenKind.PAD, TokenKind.MEAN)}
_COLUMNS = {"strings": "token_text", "pattern": "token_text", "ids": "token_id", "kinds": "token_kind"}


class TokenCondition(ABC):
    """A :class:`TokenFilter`, or a combination of several with ``~``, ``&`` and ``|``."""

    def __invert__(self) -> "TokenCondition":
        return _Inverse(self)

    def __and__(self, other: "TokenCondition") -> "TokenCondition":
        return _Combination("&", self, other) if isinstance(other, TokenCondition) else NotImplemented

    def __or__(self, other: "TokenCondition") -> "TokenCondition":
        return _Combination("|", self, other) if isinstance(other, TokenCondition) else NotImplemented

    @property
    @abstractmethod
    def columns(self) -> frozenset[str]:
        """Names of the coordinates that it needs, or ``FROM_END``."""

    @abstractmethod
    def matches(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return which tokens satisfy the condition, from their coordinates; dims ``(sample, token)``."""

    @abstractmethod
    def kinds_named(self, *, inverted: bool = False) -> frozenset[TokenKind]:
        """Return the kinds that it asks for, as opposed to those that it excludes."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TokenFilter(TokenCondition):
    r"""A condition on tokens: a token satisfies it if it satisfies every criterion given.

    Filters combine with ``~`` (not), ``&`` (and) and ``|`` (or). They select among content tokens; tokens of
    other kinds are included only if ``kinds`` asks for them.

    Parameters
    ----------
    strings
        Texts of tokens. A string matches tokens whose text equals it exactly, or once surrounding white space
        is removed: ``"the"`` matches `` the``.
    pattern
        A regular expression, searched for in the text of the token, including its white space.
    ids
        Vocabulary indices.
    positions
        Indices in the prompt, from 0; negative ones count from the end of the content, where -1 is the last
        content token.
    kinds
        Kinds of token: ``special``, ``template``, ``text``, ``image`` or ``generated``.
    labels
        Required values of coordinates with the dims ``(sample, token)``, such as parts of speech that were
        assigned to the cube: ``{"pos": ["NOUN", "PROPN"]}``.

    Raises
    ------
    InputError
        If no criterion is given, or one is malformed.

    Examples
    --------
    >>> punctuation = TokenFilter(pattern=r"^\W+$")
    >>> ~punctuation & ~TokenFilter(strings=["said", "says"])
    ~TokenFilter(pattern='^\\W+$') & ~TokenFilter(strings=('said', 'says'))
    """

    strings: str | Iterable[str] = ()
    pattern: str | None = None
    ids: int | Iterable[int] = ()
    positions: int | Iterable[int] = ()
    kinds: str | Iterable[str] = ()
    labels: Mapping[str, Any] | tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def __post_init__(self) -> None:
        try:
            labels = dict(self.labels)  # pairs too, which `dataclasses.replace` passes
        except (TypeError, ValueError):
            fault = Fault("labels", f"{self.labels!r} is not a mapping", 'give one, such as {"pos": "NOUN"}')
            raise InputError([fault], "cannot filter tokens") from None
        values: dict[str, tuple[Any, ...]] = {
            name: _values(getattr(self, name)) for name in ("strings", "ids", "positions", "kinds")
        }
        values["labels"] = tuple((str(name), _values(wanted)) for name, wanted in labels.items())
        faults = _faults(values, self.pattern)
        if faults:
            raise InputError(faults, "cannot filter tokens")
        for name in ("ids", "positions"):
            values[name] = tuple(int(number) for number in values[name])
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        criteria = {name: getattr(self, name) for name in self.__dataclass_fields__}
        criteria["labels"] = dict(criteria["labels"])
        shown = [f"{name}={value!r}" for name, value in criteria.items() if value or value == ""]
        return f"TokenFilter({', '.join(shown)})"

    @property
    def columns(self) -> frozenset[str]:
        """Names of the coordinates that it needs, or ``FROM_END``."""
        names = {
            column for criterion, column in _COLUMNS.items() if getattr(self, criterion) not in ((), None)
        }
        names |= {FROM_END if place < 0 else "position" for place in _values(self.positions)}
        return frozenset(names | {name for name, _ in _values(self.labels)})

    def matches(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return which tokens satisfy the condition, from their coordinates; dims ``(sample, token)``."""
        tests = [_is_any(columns[name], wanted) for name, wanted in _values(self.labels)]
        if self.strings or self.pattern is not None:
            tests.append(self._matches_text(columns["token_text"]))
        if self.ids:
            tests.append(np.isin(columns["token_id"], _values(self.ids)))
        if self.kinds:
            tests.append(np.isin(columns["token_kind"], [KINDS[kind] for kind in _values(self.kinds)]))
        if self.positions:
            tests.append(
                np.logical_or.reduce(
                    [
                        columns[FROM_END if place < 0 else "position"] == place
                        for place in _values(self.positions)
                    ]
                )
            )
        return np.asarray(np.logical_and.reduce(tests))

    def kinds_named(self, *, inverted: bool = False) -> frozenset[TokenKind]:
        """Return the kinds that it asks for, as opposed to those that it excludes."""
        return frozenset() if inverted else frozenset(KINDS[kind] for kind in _values(self.kinds))

    def _matches_text(self, texts: np.ndarray) -> np.ndarray:
        distinct, codes = np.unique(texts.astype(object).astype(str), return_inverse=True)
        is_match = np.ones(len(distinct), dtype=bool)
        if self.strings:
            stripped = [text.strip() for text in distinct.tolist()]
            strings = _values(self.strings)
            is_match &= np.isin(distinct, strings) | np.isin(stripped, strings)
        if self.pattern is not None:
            expression = re.compile(self.pattern)
            is_match &= [expression.search(text) is not None for text in distinct.tolist()]
        return np.asarray(is_match[codes.reshape(texts.shape)])


@dataclass(frozen=True, repr=False)
class _Inverse(TokenCondition):
    """The tokens that do not satisfy a condition."""

    condition: TokenCondition

    def __repr__(self) -> str:
        return f"~{_enclosed(self.condition)}"

    @property
    def columns(self) -> frozenset[str]:
        return self.condition.columns

    def matches(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        return ~self.condition.matches(columns)

    def kinds_named(self, *, inverted: bool = False) -> frozenset[TokenKind]:
        return self.condition.kinds_named(inverted=not inverted)


@dataclass(frozen=True, repr=False)
class _Combination(TokenCondition):
    """The tokens that satisfy both of two conditions, or either."""

    operator: Literal["&", "|"]
    first: TokenCondition
    second: TokenCondition

    def __repr__(self) -> str:
        return f"{_enclosed(self.first)} {self.operator} {_enclosed(self.second)}"

    @property
    def columns(self) -> frozenset[str]:
        return self.first.columns | self.second.columns

    def matches(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        first, second = self.first.matches(columns), self.second.matches(columns)
        return np.asarray(first & second if self.operator == "&" else first | second)

    def kinds_named(self, *, inverted: bool = False) -> frozenset[TokenKind]:
        return self.first.kinds_named(inverted=inverted) | self.second.kinds_named(inverted=inverted)


def _enclosed(condition: TokenCondition) -> str:
    return f"({condition!r})" if isinstance(condition, _Combination) else repr(condition)


def _values(given: Any) -> tuple[Any, ...]:
    is_single = isinstance(given, str) or not isinstance(given, Iterable)
    return (given,) if is_single else tuple(given)


def _is_any(values: np.ndarray, wanted: tuple[Any, ...]) -> np.ndarray:
    # an element-wise comparison, because values may have types that cannot be sorted together
    return np.asarray(np.logical_or.reduce([np.asarray(values == value) for value in wanted]))


def _faults(values: Mapping[str, tuple[Any, ...]], pattern: Any) -> list[Fault]:
    faults = [
        Fault(name, f"{value!r} is not {what}", f"give {what}, or several")
        for name, types, what in (
            ("strings", str, "a string"),
            ("ids", numbers.Integral, "an integer"),
            ("positions", numbers.Integral, "an integer"),
        )
        for value in values[name]
        if not isinstance(value, types) or isinstance(value, bool)
    ]
    faults += [
        Fault("kinds", f"{kind!r} is unknown", f"one of {', '.join(KINDS)}")
        for kind in values["kinds"]
        if kind not in KINDS
    ]
    faults += [
        Fault("labels", f"`{name}` has no values", "give one, or several")
        for name, wanted in values["labels"]
        if not wanted
    ]
    if pattern is not None:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            faults.append(Fault("pattern", f"{pattern!r} is not a regular expression: {error}"))
    elif not any(values.values()):
        criteria = "strings, pattern, ids, positions, kinds, labels"
        faults.append(Fault("TokenFilter", "has no criterion", f"give at least one of {criteria}"))
    return faults
