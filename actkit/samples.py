"""Samples that a scan selected, read in portions."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chats import readable
from .config import Config
from .data_scan import Scan
from .errors import ChangedError, Fault, InputError
from .fingerprints import check_of, content_of
from .labels import objects, typed
from .sources import Row, Source


@dataclass(frozen=True)
class Samples:
    """Some samples of a cube, in order; every array has dims ``(sample,)``.

    Parameters
    ----------
    sample_id, language, text
        Object arrays of str; the ``text`` of a chat is the result of :func:`~actkit.chats.readable`.
    prompts
        Input of the model: texts or chats.
    labels
        Name to values: object arrays of str, or int64, float64 or bool arrays.
    images
        Cells of ``image_column``; None if there is no such column.
    """

    sample_id: np.ndarray
    language: np.ndarray
    text: np.ndarray
    prompts: list[Any]
    labels: dict[str, np.ndarray]
    images: list[Any] | None

    def __len__(self) -> int:
        return len(self.text)


def portions(
    source: Source,
    scan: Scan,
    config: Config,
    *,
    start: int = 0,
    stop: int | None = None,
    size: int,
    chosen: Collection[int] | None = None,
) -> Iterator[Samples]:
    """Read the rows again and yield the samples that a scan selected.

    Parameters
    ----------
    source, scan, config
        Source, result and config of the scan.
    start, stop
        Index of the first sample, and of the first sample after the last.
    size
        Number of samples per portion; the last may have fewer.
    chosen
        Portions to yield, numbered from 0 at ``start``; by default, all. Rows of other portions are skipped
        without comparing them with those scanned.

    Raises
    ------
    ChangedError
        If the rows differ from those scanned.
    """
    stop = len(scan) if stop is None else min(stop, len(scan))
    held: list[Row] = []
    at = start
    rows = enumerate(_again(source))
    while at < stop:
        ordinal, row = next(rows, (-1, None))
        if row is None:
            what = f"now ends after {at} of {len(scan)} samples"
            raise _changed(source.name, what)
        if ordinal < scan.accepted[at]:
            continue
        if chosen is None or (at - start) // size in chosen:
            if row.fault is not None or check_of(content_of(row)) != scan.checks[at]:
                raise _changed(row.where, "has changed since the samples were selected")
            held.append(row)
        at += 1
        if held and (len(held) == size or at == stop):
            yield _samples(source, scan, config, held)
            held = []


def _again(source: Source) -> Iterator[Row]:
    try:
        yield from source.rows()
    except InputError as error:
        raise ChangedError(error.faults, "the data can no longer be read") from None


def _changed(where: str, what: str) -> ChangedError:
    fault = Fault(where, what, "do not change the data during a run, and start it again")
    return ChangedError([fault], "the data changed while they were read")


def _samples(source: Source, scan: Scan, config: Config, rows: list[Row]) -> Samples:
    columns = zip(*(row.labels for row in rows), strict=True)
    return Samples(
        sample_id=objects([str(row.sample_id) for row in rows]),
        language=objects([row.language for row in rows]),
        text=objects([readable(row.text) for row in rows]),
        prompts=[row.text for row in rows],
        labels={
            name: typed(list(values), scan.label_dtypes[name])
            for name, values in zip(source.label_names, columns, strict=True)
        },
        images=[row.image for row in rows] if config.image_column is not None else None,
    )
