"""Malformed and hostile `status.json` files, as another program may leave them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from actkit.store.run_folder import STATUS

HOST = os.uname().nodename
SOUND: dict[str, Any] = {"state": "running", "pid": 2**22 + 1, "host": HOST, "updated": 1.7e9}


def _with(**fields: Any) -> bytes:
    return json.dumps({**SOUND, **fields}).encode()


UNREADABLE: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"state": "run',
    "list": b"[1]",
    "null": b"null",
    "NaN": b"NaN",
    "number": b"1e999",
    "text": b'"running"',
    "not UTF-8": b'{"state": "\xff"}',
    "UTF-16": json.dumps(SOUND).encode("utf-16"),
    "lone surrogate": b'{"state": "running", "pid": 1, "host": "\\ud800", "updated": 1}',
    "NUL": b"\0" * 100,
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "nothing in it": b"{}",
    "huge number": b'{"pid": ' + b"9" * 10_000 + b"}",
    "updated yesterday": _with(updated="yesterday"),
    "updated null": _with(updated=None),
    "updated NaN": _with(updated=float("nan")),
    "updated infinite": _with(updated=float("inf")),
    "updated never": _with(updated=-1e300),
    "updated in a year that no calendar has": _with(updated=1e18),
    "updated list": _with(updated=[1]),
    "updated true": _with(updated=True),
    "pid negative": _with(pid=-1),
    "pid zero": _with(pid=0),
    "pid too large": _with(pid=2**70),
    "pid text": _with(pid="1"),
    "pid fraction": _with(pid=1.5),
    "pid true": _with(pid=True),
    "pid null": _with(pid=None),
    "state null": _with(state=None),
    "state list": _with(state=["running"]),
    "state number": _with(state=1),
    "state of a thousand characters": _with(state="x" * 1000),
    "state with markup": _with(state="<script>"),
    "host number": _with(host=7),
    "samples text": _with(samples="many", total_samples=10),
    "samples negative": _with(samples=-5, total_samples=10),
    "total null": _with(samples=1, total_samples=None),
    "total object": _with(samples=1, total_samples={"a": 1}),
    "rate text": _with(samples_per_second="fast"),
    "rate infinite": _with(samples_per_second=float("inf")),
    "eta text": _with(eta_seconds="soon"),
    "eta NaN": _with(eta_seconds=float("nan")),
    "eta beyond all ages": _with(eta_seconds=1e300),
    "device list": _with(device_bytes=[1]),
    "device text": _with(device_bytes={"allocated": "all"}),
    "memory negative": _with(host_bytes=-1),
    "languages list": _with(languages=["english"]),
    "labels deep": _with(labels={"gender": {"female": {"a": 1}}}),
}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    sound = path.parent.parent / "sound.json"
    sound.write_bytes(_with())
    path.symlink_to(sound)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _large(path: Path) -> None:
    path.write_bytes(_with())
    os.truncate(path, 200 * 2**20)


def _padded(path: Path) -> None:
    path.write_bytes(b" " * (200 * 2**20) + _with())


NO_FILES: dict[str, Callable[[Path], None]] = {
    "FIFO": _fifo,
    "link": _link,
    "link to /dev/zero": _zeros,
    "folder": Path.mkdir,
    "200 MB of nothing": _large,
    "200 MB of blanks": _padded,
}

EVERY = [*UNREADABLE, *NO_FILES]


def put(run: Path, name: str) -> None:
    """Put one of these files into a run folder."""
    run.mkdir(exist_ok=True)
    if name in NO_FILES:
        NO_FILES[name](run / STATUS)
    else:
        (run / STATUS).write_bytes(UNREADABLE[name])
