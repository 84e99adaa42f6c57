"""What Weights & Biases wrote offline, read back."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Told:
    """One run, as Weights & Biases has it."""

    about: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_log(path: Path) -> Told:
    """Read a log with the records of the package."""
    from wandb.proto.wandb_internal_pb2 import Record

    run = Told()
    for data in _stored(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        if record.HasField("run"):
            header = record.run
            run.about = {"project": header.project, "group": header.run_group, "name": header.display_name}
            run.config |= {item.key: json.loads(item.value_json) for item in header.config.update}
        elif record.HasField("history"):
            row = _values(record.history.item)
            run.rows.append({name: value for name, value in row.items() if not name.startswith("_")})
        elif record.HasField("summary"):
            run.summary |= _values(record.summary.update)
        elif record.HasField("exit"):
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def _stored(content: bytes) -> Iterator[bytes]:
    """Yield what a log in the format of LevelDB holds: blocks of 32 kB, which cut records into parts."""
    assert content.startswith(b":W&B")
    place, record = 7, b""
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # no header fits
            place += left
            continue
        _, length, part = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield record
            record = b""
