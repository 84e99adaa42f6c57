"""Rows, checked once: which of them become samples."""

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from .config import Config
from .errors import Fault, InputError
from .fingerprints import Keys, check_of, content_of, key_of
from .labels import LabelType, text_fault
from .sources import Row, Source

MOST_FAULTS = 100_000

Examine = Callable[[list[Row]], list[str]]


@dataclass(frozen=True)
class Scan:
    """What one pass over the rows found: enough to give the samples again, in 16 bytes a sample.

    Parameters
    ----------
    accepted
        int64, dims ``(sample,)``: sample *i* is row ``accepted[i]`` of ``source.rows()``.
    checks
        uint64, dims ``(sample,)``: hash of all of the row that is used.
    label_dtypes
        Label name to NumPy dtype name, or ``str``.
    languages
        Samples of each language, in order of appearance.
    skipped
        Rows left out with ``on_bad_row="skip"``: where each is, and what is wrong with it.
    digest
        SHA-256 of the file; of a stream, of all of the accepted rows that is used.
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
        Read until ``limit``, or ``max_per_category`` of each of ``categories``, is reached; else to
        its end.
    config
        Its ``limit``, ``max_per_category``, ``categories`` and ``on_bad_row`` settings are used.
    examine
        Called with rows that passed all other checks, in order, each once; says what is wrong with
        each, or ``""``. Whatever else decides about a row was decided before, so a row that was
        examined and is not at fault **is** the next sample: what the caller remembers of such rows
        is in the order of the samples. Void where the scan returns faults.
    at_once
        Most rows to examine at once; so many are kept in memory.

    Returns
    -------
    scan : Scan or None
    faults : list of Fault
        Everything wrong with the columns and the rows asked for; of rows, nothing with
        ``on_bad_row="skip"`` unless none is left.
    """
    return _Scanner(source, config, examine, at_once).run()


class _Bad(NamedTuple):
    ordinal: int
    fault: Fault
    twin: int | None = None  # ordinal of the row that it repeats


class _Scanner:
    """The state of one scan."""

    def __init__(self, source: Source, config: Config, examine: Examine, at_once: int) -> None:
        self._source, self._config, self._examine, self._at_once = source, config, examine, at_once
        self._skips = config.on_bad_row == "skip"
        self._pending: list[tuple[int, Row]] = []
        self._pending_keys: set[bytes] = set()
        # with "raise", also the bad rows: those asked for are checked, and no others
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
        except InputError as error:  # the data are damaged from here on
            bad, broken = [bad.fault for bad in self._bad if bad.twin is None], list(error.faults)
        faults = [*self._source.faults, *self._source.unknown(), *([] if self._skips else bad), *broken]
        for name, label in zip(self._source.label_names, self._labels, strict=True):
            if label.fault:
                mend = "convert it to text, or leave it out with `labels`"
                faults.append(Fault(f"column `{name}`", label.fault, mend))
        if len(self._bad) >= MOST_FAULTS and not self._skips:
            faults.append(
                Fault(self._source.name, f"has {MOST_FAULTS:,} faults or more; no more were looked for")
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
            return Fault(self._source.name, "holds no rows that are asked for", "ask for others")
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
        # with "skip", one that waits may yet be found bad and leave its place to this row
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
        faults = _row_faults(row, self._config)
        key, twin = key_of(row), None
        if not self._source.numbered and not _id_fault(row):
            if key in self._pending_keys:
                self._flush()  # it is no twin of a row that turns out bad
            twin = self._keys.find(key)
            if twin is not None:
                what = f"sample_id `{row.sample_id}` in {row.language} is also that of "
                mend = "make (sample_id, language) unique, or set `id_column`"
                faults.append(Fault(row.where, what, mend))
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
            faults = [Fault(row.where, "; ".join(fault.what for fault in faults), faults[0].mend)]
        elif row.fault is None:
            self._learn(row)
        *others, last = faults
        self._bad += [*(_Bad(ordinal, fault) for fault in others), _Bad(ordinal, last, twin)]

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        self._pending_keys.clear()
        if not pending:
            return
        found = self._examine([row for _, row in pending])
        for (ordinal, row), what in zip(pending, found, strict=True):
            if what:
                self._reject(ordinal, row, [Fault(row.where, what, "mend or remove the row")])
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
        """Return what is wrong with rows, in their order, and name those that were not kept."""
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


def _row_faults(row: Row, config: Config) -> list[Fault]:
    checked = (
        (row.text_column, text_fault(row.text), "mend or remove the row"),
        (config.language_column, text_fault(row.language), "mend or remove the row"),
        (config.id_column, _id_fault(row), "name the sample"),
    )
    return [Fault(row.where, f"`{column}` {what}", mend) for column, what, mend in checked if what]


def _id_fault(row: Row) -> str:
    return "" if type(row.sample_id) is int else text_fault(row.sample_id)
