"""First pass over the rows, which checks them and decides which become samples."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .chats import chat_fault, has_system
from .config import Config
from .errors import Fault, InputError
from .fingerprints import Keys, check_of, content_of, key_of
from .labels import LabelType, text_fault
from .sources import Row, Source

MOST_FAULTS = 100_000

Examine = Callable[[list[Row]], list[str]]


@dataclass(frozen=True)
class Scan:
    """Result of one pass over the rows: enough to read the same samples again, in 16 bytes per sample.

    Parameters
    ----------
    accepted
        int64, dims ``(sample,)``: sample *i* is row ``accepted[i]`` of ``source.rows()``.
    checks
        uint64, dims ``(sample,)``: hash of the used parts of the row.
    label_dtypes
        Label name to dtype, in the notation of :attr:`actkit.labels.LabelType.dtype`.
    languages
        Number of samples of each language, in order of appearance.
    skipped
        Rows skipped with ``on_bad_row="skip"``: the location and the fault of each.
    digest
        SHA-256 of the file; for a stream, of the used parts of the accepted rows.
    """

    accepted: np.ndarray
    checks: np.ndarray
    label_dtypes: dict[str, str]
    languages: dict[str, int]
    skipped: tuple[tuple[str, str], ...]
    digest: str

    def __len__(self) -> int:
        return len(self.accepted)


def scan(
    source: Source, config: Config, examine: Examine, *, at_once: int = 1024
) -> tuple[Scan | None, list[Fault]]:
    """Read the rows once and decide which become samples.

    Parameters
    ----------
    source
        Source, read until ``limit``, or ``max_per_category`` of each of ``categories``, is reached, or to its
        end.
    config
        Config, of which ``limit``, ``max_per_category``, ``categories`` and ``on_bad_row`` are used.
    examine
        Function called with rows that passed all other checks, in order, each once; it returns the fault of
        each, or ``""``. This is the last check, so a row without a fault **is** the next sample: whatever the
        caller records about such rows is in the order of the samples. Discard it if the scan returns faults.
    at_once
        Maximum number of rows to examine, and to hold in memory, at once.

    Returns
    -------
    scan : Scan or None
    faults : list of Fault
        All faults of the columns and the requested rows; with ``on_bad_row="skip"``, faults of rows are
        returned only if no row is left.
    """
    return _Scanner(source, config, examine, at_once).run()


class _Bad(NamedTuple):
    ordinal: int
    fault: Fault
    twin: int | None = None  # ordinal of the row with the same key


class _Scanner:
    """The state of one scan."""

    def __init__(self, source: Source, config: Config, examine: Examine, at_once: int) -> None:
        self._source, self._config, self._examine, self._at_once = source, config, examine, at_once
        self._skips = config.on_bad_row == "skip"
        self._pending: list[tuple[int, Row]] = []
        self._pending_keys: set[bytes] = set()
        # with "raise", bad rows count too, so that only the requested rows are checked
        self._taken = 0
        self._by_category: Counter[str] = Counter()
        self._keys = Keys()
        self._accepted, self._checks = array("q"), array("Q")
        self._labels = [LabelType() for _ in source.label_names]
        self._languages: Counter[str] = Counter()
        self._sha = hashlib.sha256()
        self._bad: list[_Bad] = []

    def run(self) -> tuple[Scan | None, list[Fault]]:
        bad: list[Fault] = []
        broken: list[Fault] = []
        count = 0
        try:
            for ordinal, row in enumerate(self._source.rows()):
                count += 1
                if self._has_room(row):
                    self._consider(ordinal, row)
                if self._is_full() or len(self._pending) >= self._at_once:
                    self._flush()
                if self._is_full() or (len(self._bad) >= MOST_FAULTS and not self._skips):
                    break
            self._flush()
            bad = self._bad_rows()
        except InputError as error:  # the data are damaged from this row on
            bad, broken = [bad.fault for bad in self._bad if bad.twin is None], list(error.faults)
        faults = [*self._source.faults, *self._source.unknown(), *([] if self._skips else bad), *broken]
        for name, label in zip(self._source.label_names, self._labels, strict=True):
            if label.fault:
                hint = "convert it to text, or leave it out with `labels`"
                faults.append(Fault(f"column `{name}`", label.fault, hint))
        if len(self._bad) >= MOST_FAULTS and not self._skips:
            faults.append(
                Fault(self._source.name, f"has at least {MOST_FAULTS:,} faults; the check stopped there")
            )
        if not self._accepted and not faults:
            faults.append(self._nothing(count, bad))
        return (None, faults) if faults else (self._result(bad), [])

    def _result(self, bad: list[Fault]) -> Scan:
        labels = zip(self._source.label_names, self._labels, strict=True)
        return Scan(
            accepted=np.array(self._accepted, dtype=np.int64),
            checks=np.array(self._checks, dtype=np.uint64),
            label_dtypes={name: label.dtype for name, label in labels},
            languages=dict(self._languages),
            skipped=tuple((fault.where, fault.what) for fault in bad),
            digest=self._source.digest or self._sha.hexdigest(),
        )

    def _nothing(self, count: int, bad: list[Fault]) -> Fault:
        if not count:
            return Fault(self._source.name, "holds no rows that match the options", "change the options")
        return Fault(self._source.name, f"none of its {count} rows can be used", f"the first: {bad[0]}")

    def _is_full(self) -> bool:
        limit, most, named = self._config.limit, self._config.max_per_category, self._config.categories
        if limit is not None and self._taken >= limit:
            return True
        return bool(most and named) and all(self._by_category[name] >= (most or 0) for name in named or ())

    def _has_room(self, row: Row) -> bool:
        most, category = self._config.max_per_category, str(row.category)
        if most is None or row.fault is not None or self._by_category[category] < most:
            return True
        # with "skip", a pending row may turn out bad and leave its place to this one
        if self._skips and any(str(waiting.category) == category for _, waiting in self._pending):
            self._flush()
        return self._by_category[category] < most

    def _count(self, row: Row, by: int) -> None:
        self._taken += by
        self._by_category[str(row.category)] += by

    def _consider(self, ordinal: int, row: Row) -> None:
        self._count(row, 1)
        if row.fault is not None:
            self._reject(ordinal, row, [row.fault])
            return
        faults = _row_faults(row, self._config, self._source.has_chats)
        key, twin = key_of(row), None
        if not self._source.numbered and not _id_fault(row):
            if key in self._pending_keys:
                self._flush()  # a row that turns out bad does not count as a duplicate
            twin = self._keys.find(key)
            if twin is not None:
                what = f"sample_id `{row.sample_id}` in {row.language} is also that of "
                hint = "make (sample_id, language) unique, or set `id_column`"
                faults.append(Fault(row.where, what, hint))
            elif self._skips:
                self._pending_keys |= set() if faults else {key}
            else:
                self._keys.add(key, ordinal)
        if faults:
            self._reject(ordinal, row, faults, twin)
        else:
            self._pending.append((ordinal, row))

    def _reject(self, ordinal: int, row: Row, faults: list[Fault], twin: int | None = None) -> None:
        if self._skips:
            self._count(row, -1)
            faults = [Fault(row.where, "; ".join(fault.what for fault in faults), faults[0].hint)]
        elif row.fault is None:
            self._learn(row)
        *others, last = faults
        self._bad += [*(_Bad(ordinal, fault) for fault in others), _Bad(ordinal, last, twin)]

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._pending_keys.clear()
        if not pending:
            return
        faults = self._examine([row for _, row in pending])
        for (ordinal, row), what in zip(pending, faults, strict=True):
            if what:
                self._reject(ordinal, row, [Fault(row.where, what, "correct or remove the row")])
            else:
                self._accept(ordinal, row)

    def _accept(self, ordinal: int, row: Row) -> None:
        content = content_of(row)
        self._accepted.append(ordinal)
        self._checks.append(check_of(content))
        self._sha.update(content)
        self._languages[row.language] += 1
        self._learn(row)
        if self._skips and not self._source.numbered:
            self._keys.add(key_of(row), ordinal)

    def _learn(self, row: Row) -> None:
        for label, value in zip(self._labels, row.labels, strict=True):
            label.add(value)

    def _bad_rows(self) -> list[Fault]:
        """Return the faults of rows in order, with the location of the first of each pair of duplicates."""
        wanted = {bad.twin for bad in self._bad} - {None}
        names: dict[int | None, str] = {}
        for ordinal, row in enumerate(self._source.rows() if wanted else ()):
            if ordinal in wanted:
                names[ordinal] = row.where
            if len(names) == len(wanted):
                break
        return [
            fault if twin is None else replace(fault, what=fault.what + names.get(twin, "another row"))
            for _, fault, twin in sorted(self._bad, key=lambda bad: bad.ordinal)
        ]


def _row_faults(row: Row, config: Config, has_chats: bool) -> list[Fault]:
    what = chat_fault(row.text) if has_chats else text_fault(row.text)
    if has_chats and not what and config.system is not None and has_system(row.text):
        what = "has a system turn, and `system` is set: leave out one of them"
    checked = (
        (row.text_column, what, "correct or remove the row"),
        (config.language_column, text_fault(row.language), "correct or remove the row"),
        (config.id_column, _id_fault(row), "name the sample"),
    )
    return [Fault(row.where, f"`{column}` {what}", hint) for column, what, hint in checked if what]


def _id_fault(row: Row) -> str:
    return "" if type(row.sample_id) is int else text_fault(row.sample_id)
