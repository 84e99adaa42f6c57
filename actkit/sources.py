"""What a config's data hold: rows of any source, by what each column means; not checked yet."""

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from .config import Config
from .errors import Fault
from .schema import VARIABLES, VISION
from .streams import check_file_options, is_stream, open_stream
from .tables import Record, read_table

NO_LANGUAGE = "unspecified"
_SHOWN_NAMES = 20


class Row(NamedTuple):
    """One candidate for a sample, its values as the data hold them.

    Parameters
    ----------
    where
        The row as its user counts it: ``row 12 (line 13)``, or ``part-1.parquet, row 12``.
    text_column
        The column that ``text`` comes from.
    image
        Cell of ``image_column``; None where none is asked for.
    category
        Cell of ``category_column``, where rows are chosen by it.
    labels
        Cells of the source's ``label_names``.
    fault
        What kept the row from being read; the values are then empty.
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


class Data(Protocol):
    """A file or dataset: columns, and rows to be read as often as asked."""

    @property
    def columns(self) -> Collection[str]:
        """Names of the columns, in the order of the data."""

    @property
    def digest(self) -> str | None:
        """SHA-256 of the file; None for what is read as a stream."""

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Give the cells of some columns, row by row."""

    def holds_text(self, name: str) -> bool:
        """Tell whether the cells of a column are text."""


@dataclass
class Source:
    """What a config's data hold, and which of it is asked for.

    Parameters
    ----------
    name
        Of the file, pattern or dataset.
    digest
        SHA-256 of the file; None for a stream.
    label_names
        Columns to keep as labels.
    numbered
        Whether samples are named by the numbers of their rows, which makes them unique.
    faults
        What is wrong with the columns, though rows can be read; a scan returns them with its own.
    """

    name: str
    digest: str | None
    label_names: tuple[str, ...]
    numbered: bool
    faults: tuple[Fault, ...]
    _data: Data
    _config: Config
    _unknown: list[Fault] = field(default_factory=list)

    def rows(self) -> Iterator[Row]:
        """Give the candidate rows in order: those of the languages and categories asked for.

        Raises
        ------
        InputError
            If the data turn out to be damaged.
        """
        config = self._config
        languages = _Choice("languages", "language", config.languages)
        categories = _Choice("categories", "category", config.categories)
        for number, record in enumerate(self._data.records(self._columns())):
            if record.fault is not None:
                yield Row(record.where, None, None, "", None, None, None, (), record.fault)
                continue
            for row in self._of_record(number, record):
                # both are asked: each has to know what there is
                if languages.takes(row.language) & categories.takes(row.category):
                    yield row
        self._unknown = [*languages.unknown(), *categories.unknown()]

    def unknown(self) -> list[Fault]:
        """Name the languages and categories asked for that no row has.

        Of a stream, known once :meth:`rows` was read to its end: rows yet unread may have them.
        """
        if self.digest is not None:  # a file is at hand, whole
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
        sample_id = number if self.numbered else cells[config.id_column]
        image = cells.get(config.image_column) if config.image_column else None
        category = cells.get(config.category_column)
        labels = tuple(cells[name] for name in self.label_names)
        if config.text_columns is not None:
            texts = list(config.text_columns.items())
        elif config.language_column in cells:
            texts = [(cells[config.language_column], config.text_column)]
        else:
            (language,) = config.languages or (NO_LANGUAGE,)  # of several, the column is needed
            texts = [(language, config.text_column)]
        for language, column in texts:
            yield Row(record.where, sample_id, language, column, cells[column], image, category, labels)


class _Choice:
    """The names to keep, of languages or categories; None keeps all."""

    def __init__(self, option: str, noun: str, names: tuple[str, ...] | None) -> None:
        self._option, self._noun, self._names = option, noun, names
        self._present: dict[str, None] = {}
        self._found: set[str] = set()

    def takes(self, value: Any) -> bool:
        if self._names is None:
            return True
        if value is None:
            return False
        name = str(value)
        if len(self._present) <= _SHOWN_NAMES:  # a stream may have millions
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
    """Find the data that a config names, and the columns in it.

    Parameters
    ----------
    config
        Its ``data``, ``streaming``, ``split``, ``subset``, column, language, category and label
        settings are used.

    Returns
    -------
    source : Source or None
    faults : list of Fault
        Everything that keeps rows from being read; what else is wrong with the columns is kept in the
        source, so that its rows can still be checked.
    """
    data: Data | None
    if is_stream(config):
        data, faults = open_stream(config)
    else:
        data, faults = read_table(Path(config.data))
        faults += check_file_options(config)
    if data is None:
        return None, faults
    faults += _check_columns(data, config)
    deciding = _text_columns(config)
    deciding += [config.language_column] if _chooses_language(config) else []
    deciding += [config.category_column] if _by_category(config) else []
    deciding += [config.image_column] if config.image_column else []
    if not set(deciding) <= set(data.columns):
        return None, faults
    names = tuple(name for name in _label_names(data, config) if name in data.columns)
    # an id of the Hub is known by all of its name, a file by its last part
    name = Path(config.data).name if os.path.exists(config.data) else config.data
    numbered = config.id_column not in data.columns
    return Source(name, data.digest, names, numbered, tuple(faults), data, config), []


def _text_columns(config: Config) -> list[str]:
    return list((config.text_columns or {"": config.text_column}).values())


def _chooses_language(config: Config) -> bool:
    """Tell whether rows are taken or left by their language."""
    return config.text_columns is None and len(config.languages or ()) > 1


def _by_category(config: Config) -> bool:
    """Tell whether rows are taken or left by their category."""
    return config.categories is not None or config.max_per_category is not None


def _label_names(data: Data, config: Config) -> list[str]:
    if config.labels is not None:
        return list(config.labels)
    used = {*_text_columns(config), config.id_column}
    if config.text_columns is None:
        used.add(config.language_column)
    image = config.image_column
    # the path of an image says something of the sample; its bytes are what the model gets
    if image in data.columns and image is not None and not data.holds_text(image):
        used.add(image)
    return [name for name in data.columns if name not in used]


def _check_columns(data: Data, config: Config) -> list[Fault]:
    present = f"it has {', '.join(data.columns)}"
    wanted = {"text_columns" if config.text_columns else "text_column": _text_columns(config)}
    if config.labels is not None:
        wanted["labels"] = list(config.labels)
    if config.image_column is not None:
        wanted["image_column"] = [config.image_column]
    # an id, language or category column that nobody named or needs may be absent
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
        if name in VARIABLES or name in ("hidden", VISION):
            what = f"column `{name}` has the name of a variable of the cube"
            faults.append(Fault(config.data, what, "rename it, or choose the columns with `labels`"))
        elif not _is_node_name(name):
            what = f"column {name!r} cannot be the name of an array"
            faults.append(Fault(config.data, what, "rename it, or choose the columns with `labels`"))
    return faults


def _is_node_name(name: str) -> bool:
    """Tell whether zarr can store an array of this name, and nowhere but in its group."""
    if not name.strip() or set(name) & set("/\\\0"):
        return False
    try:
        long = len(name.encode()) > 200
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    # `.partial` is what the store calls a file that it has not finished
    reserved = (
        not name.strip(".") or name == "zarr.json" or name.startswith("__") or name.endswith(".partial")
    )
    return not (long or reserved)
