"""Data that are no single file: shards in folders and patterns, and datasets of the Hub."""

import glob
import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from .config import Config
from .errors import Fault, InputError
from .shards import JsonlShards, ParquetShards, batch_size
from .tables import FORMATS, Record

_SPLIT = "train"
_KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_DATASET_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_stream(config: Config) -> bool:
    """Tell whether a config's data are shards or a dataset, rather than one file to be read whole."""
    if os.path.isfile(config.data):
        return config.streaming
    if os.path.isdir(config.data) or glob.has_magic(config.data):
        return True
    return Path(config.data).suffix.lower() not in FORMATS and bool(_DATASET_ID.fullmatch(config.data))


class LibraryDataset:
    """A dataset as the `datasets` library reads it.

    Parameters
    ----------
    dataset
        One split, iterable or in Arrow files.
    name
        What to call it.
    """

    digest = None

    def __init__(self, dataset: Any, name: str) -> None:
        self._dataset = dataset if dataset.features else dataset._resolve_features()
        self._name = name

    @property
    def columns(self) -> Collection[str]:
        """Names of the features."""
        return tuple(self._dataset.features)

    def holds_text(self, name: str) -> bool:
        """Tell whether a column is one of strings."""
        return getattr(self._dataset.features[name], "dtype", None) in ("string", "large_string")

    def records(self, names: Iterable[str]) -> Iterator[Record]:
        """Give the cells of some columns, row by row, as they are stored: images stay undecoded."""
        names = list(names)
        schema = self._dataset.features.arrow_schema
        size = batch_size(schema.field(name).type for name in names)
        batches = self._dataset.select_columns(names).with_format("arrow").iter(batch_size=size)
        # `datasets` keeps these as JSON, in which "2" may have become 2
        mixed = [name for name in names if type(self._dataset.features[name]).__name__ == "Json"]
        if mixed:
            what = "holds values of several types, which `datasets` does not keep apart"
            mend = "write them as text, or as one type"
            raise InputError([Fault(f"column `{name}`", what, mend) for name in mixed])
        count = 0
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except Exception as error:  # of many libraries, about files of many formats
                what = f"cannot be read after row {count}: {_first_line(error)}"
                raise InputError([Fault(self._name, what, "check its files")]) from None
            if batch is None:
                return
            for cells in rows:
                count += 1
                yield Record(f"row {count}", cells)


Stream = ParquetShards | JsonlShards | LibraryDataset


def open_stream(config: Config) -> tuple[Stream | None, list[Fault]]:
    """Find the shards or the dataset that a config names.

    Parameters
    ----------
    config
        Its ``data``, ``streaming``, ``split``, ``subset`` and ``labels`` settings are used.

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
            found = map(Path, sorted(glob.glob(config.data, recursive=True)))
            return _open_files(config, [path for path in found if path.is_file()]), []
        return _open_dataset(config), []
    except InputError as error:
        return None, list(error.faults)


def check_file_options(config: Config) -> list[Fault]:
    """Name the options that ask for parts which files do not have."""
    faults = []
    if config.split not in (None, _SPLIT):
        faults.append(Fault("split", f"unknown split `{config.split}`", f"files are all of split {_SPLIT}"))
    if config.subset is not None:
        faults.append(Fault("subset", f"unknown subset `{config.subset}`", "files have no subsets"))
    return faults


def _open_files(config: Config, files: list[Path]) -> Stream:
    faults = check_file_options(config)
    if not files:
        faults.append(Fault(config.data, "matches no file", "check the pattern"))
    elif _kind(files) is None:
        found = ", ".join(sorted({path.suffix or path.name for path in files}))
        mend = f"shards are all of one type: {', '.join(_KINDS)}"
        faults.append(Fault(config.data, f"cannot be read as a stream: {found}", mend))
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
        # what is downloaded is worth keeping; of a folder, only locks would be
        with tempfile.TemporaryDirectory() as folder:
            return _open_split(config, folder if local else None)
    except InputError:
        raise
    except Exception as error:  # of many libraries, about files of many formats
        what = f"cannot be read as a dataset: {_first_line(error)}"
        mend = "check its files" if local else "there is no such file or folder, so the Hub was asked"
        raise InputError([Fault(config.data, what, mend)]) from None


def _is_local(config: Config) -> bool:
    return os.path.isdir(config.data)


def _open_split(config: Config, cache: str | None) -> Stream:
    """Open a folder or a dataset of the Hub by the rules of `datasets` for subsets and splits."""
    import datasets

    subsets = datasets.get_dataset_config_names(config.data)
    subset = config.subset or datasets.get_dataset_default_config_name(config.data)
    if subset not in subsets:
        what = "has to be chosen" if subset is None else f"unknown subset `{subset}`"
        raise InputError([Fault("subset", what, f"the data has {', '.join(subsets)}")])
    builder = datasets.load_dataset_builder(config.data, subset, cache_dir=cache)
    files = builder.config.data_files
    splits = [str(name) for name in files or builder.as_streaming_dataset()]
    split = config.split or _SPLIT
    if split not in splits:
        raise InputError([Fault("split", f"unknown split `{split}`", f"the data has {', '.join(splits)}")])
    paths = [Path(path) for path in files[split]] if cache and files else []
    if _kind(paths):
        return _open_shards(config, paths)
    if any(path.suffix.lower() == ".json" for path in paths):
        what = "holds .json files, in which `datasets` puts texts in quotes where others are numbers"
        raise InputError([Fault(config.data, what, "save them as JSONL")])
    streaming = config.streaming or cache is not None
    # its JSON reader would turn cells of several types into JSON, and make tables of what looks like chats
    plain = {"on_mixed_types": None, "parse_agent_traces": False}
    reader = {name: value for name, value in plain.items() if hasattr(builder.config, name)}
    dataset = datasets.load_dataset(
        config.data, subset, split=split, streaming=streaming, cache_dir=cache, **reader
    )
    return LibraryDataset(dataset, config.data)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
