"""Metadata of each sample: from the files, and from a table of texts and labels."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import Config
from ..config_faults import check
from ..data_scan import Scan, scan
from ..errors import Fault
from ..labels import LabelType, objects, typed
from ..samples import Samples, portions
from ..schema import GIVEN_IDS, ORDER_IDS, ROW_IDS
from ..sources import NO_LANGUAGE, Source, open_source
from ..stats.groups import Groups
from .folder_contents import FolderContents

_SHOWN = 3
_Key = tuple[str, str]


@dataclass(frozen=True)
class SampleMetadata:
    """Metadata that the cube stores about its samples.

    Parameters
    ----------
    columns
        ``sample_id``, ``language``, ``text`` and the labels, dims ``(sample,)``.
    label_dtypes
        Name of each label to its dtype.
    attrs
        Attributes of the cube.
    """

    columns: dict[str, np.ndarray]
    label_dtypes: dict[str, str]
    attrs: dict[str, str | int]


def from_files(contents: FolderContents) -> tuple[SampleMetadata, list[Fault]]:
    """Return the metadata in the files; if ids are missing or not unique, number samples by language."""
    labels, dtypes, faults = {}, {}, []
    for name, values in contents.labels.items():
        kind = LabelType()
        for value in values:
            kind.add(value)
        if kind.fault:
            faults.append(Fault(f"`{name}`", kind.fault, "write them again as text"))
        else:
            labels[name], dtypes[name] = typed(values, kind.dtype), kind.dtype
    numbers: Counter[str] = Counter()
    ids, named_by = contents.ids, GIVEN_IDS
    if ids is None or len(set(zip(contents.languages, ids, strict=True))) < len(ids):
        ids, named_by = [], ORDER_IDS
        for language in contents.languages:
            ids.append(str(numbers[language]))
            numbers[language] += 1
    else:  # `task_id` is the id of the sample
        labels.pop("task_id", None)
    columns = {
        "sample_id": objects(ids),
        "language": objects(contents.languages),
        "text": objects([""] * len(ids)),
        **labels,
    }
    return SampleMetadata(columns, {name: dtypes[name] for name in labels}, {"ids": named_by}), faults


def join(
    contents: FolderContents, metadata: SampleMetadata, options: Mapping[str, Any]
) -> tuple[SampleMetadata, list[Fault]]:
    """Add the texts and labels of a table to the metadata from the files.

    Rows are matched to samples by id and language, or by position if the files hold no ids.

    Parameters
    ----------
    contents, metadata
        Contents of the files, and the metadata in them.
    options
        ``data`` and the names of its columns, as for an extraction.

    Returns
    -------
    metadata : SampleMetadata
        The metadata, with the columns of the table.
    faults : list of Fault
        Faults of the table, rows that cannot be matched, and columns that contradict the files.
    """
    config, faults = check({"model": "-", "out": "-", **options})
    if config is None or faults:
        return metadata, faults
    source, scanned, faults = _scan(config)
    if source is None or scanned is None:
        return metadata, faults
    (table,) = portions(source, scanned, config, size=len(scanned))
    rows, faults = _matching_rows(contents, table, config)
    if faults:
        return metadata, faults
    columns = {"text": table.text, **table.labels}
    named_by = metadata.attrs["ids"]
    if contents.ids is None:
        columns["sample_id"] = table.sample_id
        named_by = ROW_IDS if source.numbered else GIVEN_IDS
    if set(table.language.tolist()) != {NO_LANGUAGE}:
        columns["language"] = table.language
    joined = {name: values[rows] for name, values in columns.items()}
    twice = {*metadata.label_dtypes, *(["language"] if NO_LANGUAGE not in contents.languages else [])}
    for name in sorted(twice & joined.keys()):
        ours, theirs = (
            Groups.of(columns[name], dtypes.get(name, "").removesuffix("?")).cell_texts()
            for columns, dtypes in ((metadata.columns, metadata.label_dtypes), (joined, scanned.label_dtypes))
        )
        if (different := np.flatnonzero(ours != theirs)).size:
            first = different[0]
            what = (
                f"is `{theirs[first]}` where the files say `{ours[first]}`; {different.size:,} samples differ"
            )
            faults.append(Fault(f"column `{name}`", what, "check that the data belong to the files"))
    from_files_only = {name: values for name, values in metadata.columns.items() if name not in joined}
    label_dtypes = {**metadata.label_dtypes, **scanned.label_dtypes}
    attrs: dict[str, str | int] = {
        "data": source.name,
        "data_sha256": scanned.digest,
        "ids": named_by,
    }
    return SampleMetadata({**from_files_only, **joined}, label_dtypes, attrs), faults


def _scan(config: Config) -> tuple[Source | None, Scan | None, list[Fault]]:
    """Check every row of a table, as an extraction does."""
    source, faults = open_source(config)
    if source is None:
        return None, None, faults
    return source, *scan(source, config, lambda rows: [""] * len(rows))


def _matching_rows(
    contents: FolderContents, table: Samples, config: Config
) -> tuple[np.ndarray, list[Fault]]:
    """Return the row of the table for each sample, and faults if rows and samples do not match."""
    n_samples = len(contents.lengths)
    in_order = np.arange(n_samples)
    if contents.ids is None:
        if len(table) == n_samples:
            return in_order, []
        what = f"has {len(table):,} rows, but the files hold {n_samples:,} samples without ids"
        return in_order, [Fault(config.data, what, "give one row per sample, in the order of the samples")]
    file_languages = set(contents.languages)
    has_languages = NO_LANGUAGE not in file_languages and set(table.language.tolist()) != {NO_LANGUAGE}
    if not has_languages and len(file_languages) > 1:
        what = f"names no languages, but the files hold {', '.join(sorted(file_languages))}"
        return in_order, [Fault(config.data, what, "set `language_column` or `text_columns`")]
    languages = table.language.tolist() if has_languages else [""] * len(table)
    sample_keys = list(
        zip(contents.ids, contents.languages if has_languages else [""] * n_samples, strict=True)
    )
    row_keys = list(zip(table.sample_id.tolist(), languages, strict=True))
    row_of = {key: row for row, key in enumerate(row_keys)}
    missing = [key for key in dict.fromkeys(sample_keys) if key not in row_of]
    repeated = _repeated(row_keys) & set(sample_keys)
    faults = [
        *_key_fault(config.data, "has several rows for", repeated, "set `language`"),
        *_key_fault(config.data, "has no row for", missing, "set `id_column`, or add the rows"),
        *_key_fault("the files", "hold several samples called", _repeated(sample_keys), "leave `data` out"),
    ]
    return np.array([row_of.get(key, 0) for key in sample_keys], dtype=np.int64), faults


def _repeated(keys: list[_Key]) -> set[_Key]:
    return {key for key, count in Counter(keys).items() if count > 1}


def _key_fault(where: str, what: str, keys: Collection[_Key], hint: str) -> list[Fault]:
    """Return one fault that lists the first few of some keys, or none if there are no keys."""
    if not keys:
        return []
    shown = ", ".join(f"`{' '.join(filter(None, key))}`" for key in sorted(keys)[:_SHOWN])
    more = f" and {len(keys) - _SHOWN:,} more" if len(keys) > _SHOWN else ""
    return [Fault(where, f"{what} {shown}{more}", hint)]
