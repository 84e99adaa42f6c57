"""The samples that a scan decided on, portion by portion."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .config import Config
from .errors import ChangedError, Fault, InputError
from .fingerprints import check_of, content_of
from .labels import objects, typed
from .scanning import Scan
from .sources import Row, Source


@dataclass(frozen=True)
class Samples:
    """Some samples of a cube, in its order; every array has dims ``(sample,)``.

    Parameters
    ----------
    sample_id, language, text
        Object arrays of str.
    labels
        Name to values: object arrays of str, or int64, float64 or bool.
    images
        Cells of ``image_column``; None where none is asked for.
    """

    sample_id: np.ndarray
    language: np.ndarray
    text: np.ndarray
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
) -> Iterator[Samples]:
    """Read the rows again and give the samples that a scan decided on.

    Parameters
    ----------
    source, scan, config
        As they were scanned.
    start, stop
        The first sample to give, and the first not to give.
    size
        Samples of each portion; the last may have fewer.

    Raises
    ------
    ChangedError
        If the data do not give the same rows as before.
    """
    stop = len(scan) if stop is None else min(stop, len(scan))
    held: list[Row] = []
    at = start
    rows = enumerate(_again(source))
    while at < stop:
        ordinal, row = next(rows, (-1, None))
        if row is None:
            what = f"ended after {at} of {len(scan)} samples, which it did not before"
            raise _changed(source.name, what)
        if ordinal < scan.accepted[at]:
            continue
        if row.fault is not None or check_of(content_of(row)) != scan.checks[at]:
            raise _changed(row.where, "is not what it was when the samples were chosen")
        held.append(row)
        at += 1
        if len(held) == size or at == stop:
            yield _samples(source, scan, config, held)
            held = []


def _again(source: Source) -> Iterator[Row]:
    try:
        yield from source.rows()
    except InputError as error:
        raise ChangedError(error.faults, "the data can no longer be read") from None


def _changed(where: str, what: str) -> ChangedError:
    fault = Fault(where, what, "leave the data alone while a run reads them, and start it again")
    return ChangedError([fault], "the data changed while they were read")


def _samples(source: Source, scan: Scan, config: Config, rows: list[Row]) -> Samples:
    columns = zip(*(row.labels for row in rows), strict=True)
    return Samples(
        sample_id=objects([str(row.sample_id) for row in rows]),
        language=objects([row.language for row in rows]),
        text=objects([row.text for row in rows]),
        labels={
            name: typed(list(values), scan.label_dtypes[name])
            for name, values in zip(source.label_names, columns, strict=True)
        },
        images=[row.image for row in rows] if config.image_column is not None else None,
    )
