"""Data beyond a single file: shards in folders or patterns, and Hugging Face datasets."""

import glob
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from .config import Config
from .data_shards import JsonlShards, ParquetShards, arrow_kind, batch_size
from .errors import Fault, InputError
from .regular_files import check_regular
from .tables import FORMATS, Kind, Record

_SPLIT = "train"
_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_stream(config: Config) -> bool:
    """Return whether a config's data are shards or a dataset, rather than one file to read as a whole."""
    if os.path.isfile(config.data):
        return config.streaming
    if os.path.isdir(config.data) or glob.has_magic(config.data):
        return True
    return Path(config.data).suffix.lower() not in FORMATS and bool(_DATASET_ID.fullmatch(config.data))


class LibraryDataset:
    """Dataset read with the `datasets` library.

    Parameters
    ----------
    dataset
        One split, iterable or in Arrow files.
    name
        Name for messages.
    """

    digest = None

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset if dataset.features else dataset._resolve_features()
        self._name = name

    @property
    def columns(self) -> Collection[str]:
        """Names of the features."""
        return tuple(self._dataset.features)

    def kind(self, name: str) -> Kind:
        """Return the kind of the cells of a column."""
        return arrow_kind(self._dataset.features.arrow_schema.field(name).type)

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Yield the cells of some columns, row by row, as stored; images stay encoded."""
        names = list(names)
        schema = self._dataset.features.arrow_schema
        size = batch_size(schema.field(name).type for name in names)
        batches = self._dataset.select_columns(names).with_format("arrow").iter(batch_size=size)
        # `datasets` stores these as JSON, in which "2" may have become 2
        mixed = [name for name in names if type(self._dataset.features[name]).__name__ == "Json"]
        if mixed:
            what = "holds values of several types, which `datasets` does not distinguish"
            hint = "write them as text or as one type"
            raise InputError([Fault(f"column `{name}`", what, hint) for name in mixed])
        count = 0
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except Exception as error:  # from many libraries, for files of many formats
                what = f"cannot be read after row {count}: {_first_line(error)}"
                raise InputError([Fault(self._name, what, "check its files")]) from None
            if batch is None:
                return
            for cells in rows:
                count += 1
                yield Record(f"row {count}", cells)


Stream = ParquetShards | JsonlShards | LibraryDataset


def open_stream(config: Config) -> tuple[Stream | None, list[Fault]]:
    """Open the shards or the dataset that a config names.

    Parameters
    ----------
    config
        Config, of which ``data``, ``streaming``, ``split``, ``subset`` and ``labels`` are used.

    Returns
    -------
    stream : ParquetShards, JsonlShards, LibraryDataset or None
    faults : list of Fault
    """
    try:
        if os.path.isdir(config.data):
            return _open_dataset(config), []
        if os.path.isfile(config.data):
            return _open_files(config, [Path(config.data)]), []
        if glob.has_magic(config.data):
            matches = map(Path, sorted(glob.glob(config.data, recursive=True)))
            return _open_files(config, [path for path in matches if path.is_file()]), []
        return _open_dataset(config), []
    except InputError as error:
        return None, list(error.faults)


def check_file_options(config: Config) -> list[Fault]:
    """Return a fault for each option that requests a split or subset of a file."""
    faults = []
    if config.split not in (None, _SPLIT):
        faults.append(
            Fault("split", f"unknown split `{config.split}`", f"files have only the split {_SPLIT}")
        )
    if config.subset is not None:
        faults.append(Fault("subset", f"unknown subset `{config.subset}`", "files have no subsets"))
    return faults


def _open_files(config: Config, files: list[Path]) -> Stream:
    faults = check_file_options(config)
    if not files:
        faults.append(Fault(config.data, "matches no file", "check the pattern"))
    elif _kind(files) is None:
        types = ", ".join(sorted({path.suffix or path.name for path in files}))
        hint = f"give shards of one type: {', '.join(_KINDS)}"
        faults.append(Fault(config.data, f"cannot be read as a stream: {types}", hint))
    if faults:
        raise InputError(faults)
    return _open_shards(config, files)


def _kind(files: Iterable[Path]) -> str | None:
    kinds = {_KINDS.get(path.suffix.lower()) for path in files}
    return kinds.pop() if len(kinds) == 1 else None


def _open_shards(config: Config, files: list[Path]) -> Stream:
    root = os.path.commonpath([path.parent for path in files])
    names = [""] if len(files) == 1 else [f"{path.relative_to(root).as_posix()}, " for path in files]
    if _kind(files) == "parquet":
        return ParquetShards(files, names)
    return JsonlShards(files, names, complete=config.labels is None)


def _open_dataset(config: Config) -> Stream:
    local = _is_local(config)
    try:
        # downloads are worth keeping in the cache; for a folder it would hold only locks
        with tempfile.TemporaryDirectory() as folder:
            return _open_split(config, folder if local else None)
    except InputError:
        raise
    except Exception as error:  # from many libraries, for files of many formats
        what = f"cannot be read as a dataset: {_first_line(error)}"
        hint = "check its files" if local else "no such file or folder exists, so the Hub was queried"
        raise InputError([Fault(config.data, what, hint)]) from None


def _is_local(config: Config) -> bool:
    return os.path.isdir(config.data)


def _open_split(config: Config, cache: str | None) -> Stream:
    """Open a folder or a Hub dataset, with the rules of `datasets` for subsets and splits."""
    import datasets

    subsets = datasets.get_dataset_config_names(config.data)
    subset = config.subset or datasets.get_dataset_default_config_name(config.data)
    if subset not in subsets:
        what = "must be chosen" if subset is None else f"unknown subset `{subset}`"
        raise InputError([Fault("subset", what, f"the data has {', '.join(subsets)}")])
    builder = datasets.load_dataset_builder(config.data, subset, cache_dir=cache)
    files = builder.config.data_files
    splits = [str(name) for name in files or builder.as_streaming_dataset()]
    split = config.split or _SPLIT
    if split not in splits:
        raise InputError([Fault("split", f"unknown split `{split}`", f"the data has {', '.join(splits)}")])
    paths = [Path(path) for path in files[split]] if cache and files else []
    check_regular(paths)
    if _kind(paths):
        return _open_shards(config, paths)
    if any(path.suffix.lower() == ".json" for path in paths):
        what = "holds .json files, in which `datasets` quotes texts of columns that also hold numbers"
        raise InputError([Fault(config.data, what, "give one file, or save them as JSONL")])
    streaming = config.streaming or cache is not None
    # the JSON reader of `datasets` would turn cells of several types into JSON, and parse chats as tables
    plain = {"on_mixed_types": None, "parse_agent_traces": False}
    reader = {name: value for name, value in plain.items() if hasattr(builder.config, name)}
    dataset = datasets.load_dataset(
        config.data, subset, split=split, streaming=streaming, cache_dir=cache, **reader
    )
    return LibraryDataset(dataset, config.data)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
