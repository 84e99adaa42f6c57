"""Data sources of a config: rows of any file or dataset, by the meaning of their columns, not yet checked."""

import os
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .config import Config
from .errors import Fault
from .labels import is_gap, plain
from .nested_fields import Data, NestedFields
from .schema import VARIABLES, VISION, K
from .streams import check_file_options, is_stream, open_stream
from .tables import Record, read_table

NO_LANGUAGE = "unspecified"
_SHOWN_NAMES = 20
# names under which pandas writes the index of a table
_INDEX = re.compile(r"Unnamed: 0(\.\d+)*|__index_level_\d+__")


class Row(NamedTuple):
    """A candidate for a sample, with values as in the data.

    Parameters
    ----------
    where
        Location of the row as a user counts it: ``row 12 (line 13)``, or ``part-1.parquet, row 12``.
    text_column
        Column that ``text`` comes from.
    image
        Cell of ``image_column``; None if there is no such column.
    category
        Cell of ``category_column``, if rows are selected by category.
    labels
        Cells of the source's ``label_names``.
    fault
        Reason why the row cannot be read; the values are then empty.
    """

    where: str
    sample_id: Any
    language: Any
    text_column: str
    text: Any
    image: Any
    category: Any
    labels: tuple[Any, ...]
    fault: Fault | None = None


@dataclass
class Source:
    """The data of a config, and the part of them that it requests.

    Parameters
    ----------
    name
        Name of the file, pattern or dataset.
    digest
        SHA-256 of the file; None for a stream.
    label_names
        Columns to keep as labels.
    numbered
        Whether sample ids are row numbers, which are unique.
    has_chats
        Whether the texts are chats: lists of turns.
    faults
        Faults of columns that do not keep rows from being read; a scan returns them with its own.
    """

    name: str
    digest: str | None
    label_names: tuple[str, ...]
    numbered: bool
    has_chats: bool
    faults: tuple[Fault, ...]
    _data: Data
    _config: Config
    _unknown: list[Fault] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """Yield the rows of the requested languages and categories, in order.

        Raises
        ------
        InputError
            If the data are damaged.
        """
        config = self._config
        languages = _Choice("languages", "language", config.languages)
        categories = _Choice("categories", "category", config.categories)
        for number, record in enumerate(self._data.records(self._columns())):
            if record.fault is not None:
                yield Row(record.where, None, None, "", None, None, None, (), record.fault)
                continue
            for row in self._of_record(number, record):
                # no short circuit: both have to see every row
                if languages.takes(row.language) & categories.takes(row.category):
                    yield row
        self._unknown = [*languages.unknown(), *categories.unknown()]

    def unknown(self) -> list[Fault]:
        """Return a fault for each requested language or category that no row has.

        This is complete only after :meth:`rows` was read to its end, since later rows may have them.
        """
        if self.digest is not None:  # unlike a stream, a file can be read to its end
            deque(self.rows(), maxlen=0)
        return list(self._unknown)

    def _columns(self) -> list[str]:
        config = self._config
        optional = [config.id_column]
        optional += [config.language_column] if config.text_columns is None else []
        optional += [config.category_column] if _by_category(config) else []
        optional += [config.image_column] if config.image_column else []
        wanted = [*_text_columns(config), *optional, *self.label_names]
        return [name for name in dict.fromkeys(wanted) if name in self._data.columns]

    def _of_record(self, number: int, record: Record) -> Iterator[Row]:
        config, cells = self._config, record.cells
        sample_id = number if self.numbered else plain(cells[config.id_column])
        image = cells.get(config.image_column) if config.image_column else None
        category = plain(cells.get(config.category_column))
        labels = tuple(cells[name] for name in self.label_names)
        if config.text_columns is not None:
            texts = list(config.text_columns.items())
        elif config.language_column in cells:
            texts = [(cells[config.language_column], config.text_column)]
        else:
            (language,) = config.languages or (NO_LANGUAGE,)  # several languages require the column
            texts = [(language, config.text_column)]
        for language, column in texts:
            yield Row(record.where, sample_id, language, column, cells[column], image, category, labels)


class _Choice:
    """Filter of languages or categories by name; None keeps all."""

    def __init__(self, option: str, noun: str, names: tuple[str, ...] | None) -> None:
        self._option, self._noun, self._names = option, noun, names
        self._present: dict[str, None] = {}
        self._found: set[str] = set()

    def takes(self, value: Any) -> bool:
        if self._names is None:
            return True
        if is_gap(value):
            return False
        name = str(value)
        if len(self._present) <= _SHOWN_NAMES:  # a stream may contain millions of names
            self._present.setdefault(name)
        if name in self._names:
            self._found.add(name)
        return name in self._found

    def unknown(self) -> list[Fault]:
        shown = ", ".join(list(self._present)[:_SHOWN_NAMES])
        shown += ", …" if len(self._present) > _SHOWN_NAMES else ""
        return [
            Fault(self._option, f"unknown {self._noun} `{name}`", f"the data has {shown or 'none'}")
            for name in self._names or ()
            if name not in self._found
        ]


def open_source(config: Config) -> tuple[Source | None, list[Fault]]:
    """Open the data of a config and find the columns.

    Parameters
    ----------
    config
        Config, of which ``data``, ``streaming``, ``split``, ``subset`` and the options of columns, languages,
        categories and labels are used.

    Returns
    -------
    source : Source or None
    faults : list of Fault
        Faults that keep rows from being read; other faults of columns are stored in the source, so that its
        rows can still be checked.
    """
    plain: Data | None
    if is_stream(config):
        plain, faults = open_stream(config)
    else:
        plain, faults = read_table(Path(config.data))
        faults += check_file_options(config)
    if plain is None:
        return None, faults
    data = NestedFields(plain, _named(config))
    faults += _check_columns(data, config)
    deciding = _text_columns(config)
    deciding += [config.language_column] if _chooses_language(config) else []
    deciding += [config.category_column] if _by_category(config) else []
    deciding += [config.image_column] if config.image_column else []
    if not set(deciding) <= set(data.columns):
        return None, faults
    names = tuple(name for name in _label_names(data, config) if name in data.columns)
    # a Hub id is shown in full, a file without its folder
    name = Path(config.data).name if os.path.exists(config.data) else config.data
    numbered = config.id_column not in data.columns
    chats = [data.kind(column) == "list" for column in _text_columns(config)]
    if any(chats) and not all(chats):
        what = "some hold chats and others text"
        faults.append(Fault("text_columns", what, "give columns of one kind"))
    return Source(name, data.digest, names, numbered, any(chats), tuple(faults), data, config), []


def _named(config: Config) -> list[str]:
    """Return the columns that options name."""
    named = [*_text_columns(config), config.language_column, config.id_column, config.category_column]
    return [*named, *filter(None, [config.image_column]), *(config.labels or ())]


def _text_columns(config: Config) -> list[str]:
    return list((config.text_columns or {"": config.text_column}).values())


def _chooses_language(config: Config) -> bool:
    """Return whether rows are selected by language."""
    return config.text_columns is None and len(config.languages or ()) > 1


def _by_category(config: Config) -> bool:
    """Return whether rows are selected by category."""
    return config.categories is not None or config.max_per_category is not None


def _label_names(data: Data, config: Config) -> list[str]:
    if config.labels is not None:
        return list(config.labels)
    used = {*_text_columns(config), config.id_column}
    if config.text_columns is None:
        used.add(config.language_column)
    image = config.image_column
    # the path of an image can describe the sample, but its bytes are only input of the model
    if image in data.columns and image is not None and data.kind(image) != "text":
        used.add(image)
    return [name for name in default_labels(data) if name not in used]


def default_labels(data: Data) -> list[str]:
    """Return the columns that become labels by default: all but pandas indices and nested columns."""
    first = next(iter(data.columns), None)
    return [
        name
        for name in data.columns
        if not (_INDEX.fullmatch(name) or name == first == "" or data.kind(name) in ("list", "object"))
    ]


def _check_columns(data: NestedFields, config: Config) -> list[Fault]:
    present = f"it has {', '.join(name or '(one without a name)' for name in data.columns)}"
    for name, fields in data.fields.items():
        present += f"; `{name}` has {', '.join(f'{name}.{field}' for field in fields[:_SHOWN_NAMES])}"
    wanted = {"text_columns" if config.text_columns else "text_column": _text_columns(config)}
    if config.labels is not None:
        wanted["labels"] = list(config.labels)
    if config.image_column is not None:
        wanted["image_column"] = [config.image_column]
    # id, language and category columns may be absent unless they were named or are needed
    wanted |= {
        option: [getattr(config, option)]
        for option, needed in (
            ("id_column", False),
            ("language_column", _chooses_language(config)),
            ("category_column", _by_category(config)),
        )
        if needed or option in config.model_fields_set
    }
    faults = [
        Fault(config.data, f"has no column `{name}`", f"{present}; set `{option}`")
        for option, names in wanted.items()
        for name in names
        if name not in data.columns
    ]
    for name in _label_names(data, config):
        if name in VARIABLES or name in ("hidden", VISION) or (name == K and config.sparse):
            what = f"column `{name}` has the name of a variable of the cube"
            faults.append(Fault(config.data, what, "rename it, or choose the columns with `labels`"))
        elif not _is_node_name(name):
            what = f"column {name!r} cannot be the name of an array"
            faults.append(Fault(config.data, what, "rename it, or choose the columns with `labels`"))
    return faults


def _is_node_name(name: str) -> bool:
    """Return whether zarr can store an array under this name, directly in its group."""
    if not name.strip() or set(name) & set("/\\\0"):
        return False
    try:
        long = len(name.encode()) > 200
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    # `.partial` is the store's suffix for unfinished files
    reserved = (
        not name.strip(".") or name == "zarr.json" or name.startswith("__") or name.endswith(".partial")
    )
    return not (long or reserved)
