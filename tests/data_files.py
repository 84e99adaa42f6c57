"""Helpers that write data files, and read them as a whole, as a stream, or after a scan."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from actkit.config import Config
from actkit.config_faults import check
from actkit.data_scan import scan
from actkit.samples import Samples, portions
from actkit.sources import Row, Source, open_source

Json = dict[str, Any]
Read = Callable[..., tuple[Samples | None, list[str]]]


TEXTS = [
    "one",
    "الطَّبِيبُ يَقْرَأُ",
    "two\nlines\r\n",
    "2020-01-01",
    "a\u2028b\x85c",
    "NaN",
    "👩🏽‍⚕️",
    " x ",
    "\ufeffz",
    "1",
]


def rows(start: int, stop: int) -> list[Json]:
    return [
        {
            "sample_id": f"s{i}",
            "text": TEXTS[i % len(TEXTS)],
            "n": i,
            "x": None if i % 3 else i / 7,
            "flag": i % 2 == 0,
        }
        for i in range(start, stop)
    ]


def write(path: Path, content: list[Json]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path, row_group_size=4)
    else:
        path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in content), newline="")


def config_of(data: Path | str, **options: Any) -> Config:
    config, faults = check({"model": "m", "data": str(data), "out": "o", **options})
    assert faults == []
    assert config is not None
    return config


def sound(rows: list[Row]) -> list[str]:
    return [""] * len(rows)


def read(data: Path | str, **options: Any) -> tuple[Samples | None, list[str]]:
    """Read all samples as one block; paths in messages are shortened."""
    config = config_of(data, **options)
    source, faults = open_source(config)
    scanned = None
    if source is not None:
        scanned, faults = scan(source, config, sound)
    if source is None or scanned is None:
        folder = data if Path(data).is_dir() else Path(data).parent
        return None, [str(fault).replace(f"{folder}/", "") for fault in faults]
    (samples,) = portions(source, scanned, config, size=len(scanned))
    return samples, []


def read_file(path: Path, **options: Any) -> tuple[Samples | None, list[str]]:
    """Read all samples of a file as one block."""
    config, faults = check({"model": "m", "data": path, "out": "o", **options})
    assert config is not None
    assert faults == []
    source, faults = open_source(config)
    if source is None:
        return None, [str(fault) for fault in faults]
    assert faults == []
    scanned, more = scan(source, config, sound)
    if scanned is None:
        return None, [str(fault) for fault in more]
    (samples,) = portions(source, scanned, config, size=len(scanned))
    assert len(samples) == len(scanned)
    return samples, []


class Examiner:
    """Examiner that rejects rows whose text says so, and records the others as a caller does."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.sound: list[str] = []

    def __call__(self, rows: list[Row]) -> list[str]:
        self.sizes.append(len(rows))
        self.sound += [row.text for row in rows if "broken" not in row.text]
        return ["cannot be read" if "broken" in row.text else "" for row in rows]


def opened(path: Path, rows: list[Json], **options: Any) -> tuple[Source, Config]:
    path.write_text("\n".join(map(json.dumps, rows)))
    config, faults = check({"model": "m", "data": path, "out": "o", **options})
    assert config is not None
    assert faults == []
    source, faults = open_source(config)
    assert faults == []
    assert source is not None
    return source, config


def texts(*values: Any, **more: Any) -> list[Json]:
    return [{"text": value, **more} for value in values]
