"""Metadata of each sample: from the files, and from a table of texts and labels."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Config, check
from ..data_scan import Scan, scan
from ..errors import Fault
from ..labels import LabelType, objects, typed
from ..samples import Samples, portions
from ..schema import GIVEN_IDS, ORDER_IDS, ROW_IDS
from ..sources import NO_LANGUAGE, Source, open_source
from ..stats.groups import Groups
from .folder_contents import Found

_SHOWN = 3
_Key = tuple[str, str]


@dataclass(frozen=True)
class Known:
    """Metadata that the cube stores about its samples.

    Parameters
    ----------
    columns
        ``sample_id``, ``language``, ``text`` and the labels, dims ``(sample,)``.
    label_dtypes
        The labels: name to dtype.
    said
        Attributes of the cube.
    """

    columns: dict[str, np.ndarray]
    label_dtypes: dict[str, str]
    said: dict[str, str | int]


def from_files(found: Found) -> tuple[Known, list[Fault]]:
    """Return what the files say of samples; those that share a name are numbered, within their language."""
    labels, dtypes, faults = {}, {}, []
    for name, values in found.labels.items():
        kind = LabelType()
        for value in values:
            kind.add(value)
        if kind.fault:
            faults.append(Fault(f"`{name}`", kind.fault, "write them again as text"))
        else:
            labels[name], dtypes[name] = typed(values, kind.dtype), kind.dtype
    numbers: Counter[str] = Counter()
    ids, named_by = found.ids, GIVEN_IDS
    if ids is None or len(set(zip(found.languages, ids, strict=True))) < len(ids):
        ids, named_by = [], ORDER_IDS
        for language in found.languages:
            ids.append(str(numbers[language]))
            numbers[language] += 1
    else:  # it is the name of the sample
        labels.pop("task_id", None)
    columns = {
        "sample_id": objects(ids),
        "language": objects(found.languages),
        "text": objects([""] * len(ids)),
        **labels,
    }
    return Known(columns, {name: dtypes[name] for name in labels}, {"ids": named_by}), faults


def join(found: Found, known: Known, options: Mapping[str, Any]) -> tuple[Known, list[Fault]]:
    """Add the texts and labels of a table to what the files say.

    Parameters
    ----------
    found, known
        What the files hold, and what they say of samples.
    options
        ``data`` and the names of its columns, as for an extraction.

    Returns
    -------
    known : Known
        A sample's row is the one of its name and language; where the files give no names, the one at its
        place.
    faults : list of Fault
        Everything that is wrong with the table, or that keeps rows and samples from being matched.
    """
    config, faults = check({"model": "-", "out": "-", **options})
    if config is None or faults:
        return known, faults
    source, scanned, faults = _scan(config)
    if source is None or scanned is None:
        return known, faults
    (table,) = portions(source, scanned, config, size=len(scanned))
    rows, faults = _matched(found, table, config)
    if faults:
        return known, faults
    columns = {"text": table.text, **table.labels}
    named_by = known.said["ids"]
    if found.ids is None:
        columns["sample_id"] = table.sample_id
        named_by = ROW_IDS if source.numbered else GIVEN_IDS
    if set(table.language.tolist()) != {NO_LANGUAGE}:
        columns["language"] = table.language
    joined = {name: values[rows] for name, values in columns.items()}
    twice = {*known.label_dtypes, *(["language"] if NO_LANGUAGE not in found.languages else [])}
    for name in sorted(twice & joined.keys()):
        ours, theirs = (
            Groups.of(columns[name], dtypes.get(name, "").removesuffix("?")).cell_texts()
            for columns, dtypes in ((known.columns, known.label_dtypes), (joined, scanned.label_dtypes))
        )
        if (different := np.flatnonzero(ours != theirs)).size:
            first = different[0]
            what = (
                f"is `{theirs[first]}` where the files say `{ours[first]}`; {different.size:,} samples differ"
            )
            faults.append(Fault(f"column `{name}`", what, "check that the data belong to the files"))
    own = {name: values for name, values in known.columns.items() if name not in joined}
    label_dtypes = {**known.label_dtypes, **scanned.label_dtypes}
    said: dict[str, str | int] = {
        "data": source.name,
        "data_sha256": scanned.digest,
        "ids": named_by,
    }
    return Known({**own, **joined}, label_dtypes, said), faults


def _scan(config: Config) -> tuple[Source | None, Scan | None, list[Fault]]:
    """Check every row of a table, as an extraction does."""
    source, faults = open_source(config)
    if source is None:
        return None, None, faults
    return source, *scan(source, config, lambda rows: [""] * len(rows))


def _matched(found: Found, table: Samples, config: Config) -> tuple[np.ndarray, list[Fault]]:
    """Return the row of each sample."""
    n_samples = len(found.lengths)
    nothing = np.arange(n_samples)
    if found.ids is None:
        if len(table) == n_samples:
            return nothing, []
        what = f"has {len(table):,} rows, the files hold {n_samples:,} samples and do not name them"
        return nothing, [Fault(config.data, what, "give the rows of these samples, in their order")]
    spoken = set(found.languages)
    named = NO_LANGUAGE not in spoken and set(table.language.tolist()) != {NO_LANGUAGE}
    if not named and len(spoken) > 1:
        what = f"names no language, the files hold {', '.join(sorted(spoken))}"
        return nothing, [Fault(config.data, what, "set `language_column` or `text_columns`")]
    languages = table.language.tolist() if named else [""] * len(table)
    wanted = list(zip(found.ids, found.languages if named else [""] * n_samples, strict=True))
    keys = list(zip(table.sample_id.tolist(), languages, strict=True))
    places = {key: row for row, key in enumerate(keys)}
    lacking = [key for key in dict.fromkeys(wanted) if key not in places]
    faults = [
        *_told(config.data, "has several rows of", _several(keys) & set(wanted), "set `language`"),
        *_told(config.data, "has no row of", lacking, "set `id_column`, or add the rows"),
        *_told("the files", "hold several samples called", _several(wanted), "leave the data out"),
    ]
    return np.array([places.get(key, 0) for key in wanted], dtype=np.int64), faults


def _several(keys: list[_Key]) -> set[_Key]:
    return {key for key, count in Counter(keys).items() if count > 1}


def _told(where: str, what: str, keys: Collection[_Key], hint: str) -> list[Fault]:
    """Put keys that share a fault into one."""
    if not keys:
        return []
    shown = ", ".join(f"`{' '.join(filter(None, key))}`" for key in sorted(keys)[:_SHOWN])
    more = f" and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    return [Fault(where, f"{what} {shown}{more}", hint)]
