"""Parts of a run, which processes compute independently: their windows, locks and heartbeats."""

import fcntl
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from ..errors import Fault, InputError
from .folders import Folder
from .run_folder import LOCK, PARTS, locked_error, read_status, write_status
from .writer import storage_errors

MOST_PARTS = 4096
SILENT = 120  # seconds without heartbeat after which a process on another machine counts as ended
_NAME = re.compile(r"([1-9]\d{0,5})-of-([1-9]\d{0,5})")
_SPEC = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*")
_ENDED = ("done", "failed", "interrupted", "not started")
_SUMMED = (
    *("samples", "committed", "tokens", "bytes_written"),
    *("samples_per_second", "tokens_per_second", "host_bytes"),
)


@dataclass(frozen=True, order=True)
class Part:
    """One of several parts of a run, numbered from 1.

    Parameters
    ----------
    count
        Number of parts.
    number
        Number of this part, from 1 to ``count``.
    """

    count: int
    number: int

    @classmethod
    def parse(cls, spec: "str | Sequence[int] | Part") -> "Part":
        """Return the part that a text such as ``3/16``, or a pair such as ``(3, 16)``, names.

        Raises
        ------
        InputError
            If it names no part.
        """
        if isinstance(spec, Part):
            return spec
        match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
        values = tuple(map(int, match.groups())) if match else () if isinstance(spec, str) else tuple(spec)
        is_valid = len(values) == 2 and all(type(value) is int for value in values)
        if not is_valid or not 1 <= values[0] <= values[1] < 10**6:
            hint = "give the number of the part and the number of parts, such as 3/16; parts start at 1"
            raise InputError([Fault("part", f"{spec!r} is not a part", hint)])
        return cls(values[1], values[0])

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def windows(self, n_windows: int) -> range:
        """Return the windows of this part: every ``count``-th, so that all parts take about equally long.

        Examples
        --------
        >>> list(Part.parse("2/4").windows(10))
        [1, 5, 9]
        """
        return range(self.number - 1, n_windows, self.count)

    @property
    def name(self) -> str:
        """Path of the folder with the status and the log of this part, in the run."""
        return f"{PARTS}/{self.number}-of-{self.count}"

    def folder(self, run: Path) -> Path:
        """Return the folder with the status and the log of this part."""
        return run / self.name


@contextmanager
def locked_part(run: Path, part: Part) -> Iterator[Folder]:
    """Hold the folder of a part, which is created if necessary; otherwise like :func:`locked_if_possible`."""
    path = part.folder(run)
    with storage_errors("cannot make the folder of the part"):
        path.mkdir(parents=True, exist_ok=True)
    with locked_if_possible(path) as folder:
        yield folder


@contextmanager
def locked_if_possible(path: Path) -> Iterator[Folder]:
    """Hold a folder, and its lock as far as the file system has locks.

    The lock saves work: a second process ends at once. The cube does not depend on it, because on some file
    systems that several machines share each machine obtains the lock.

    Yields
    ------
    Folder
        The folder, in which files can be written without locks.

    Raises
    ------
    LockedError
        If a process on this machine holds the folder, or one elsewhere that recently sent a heartbeat.
    StorageError
        If the folder cannot be written.
    """
    lock = -1
    with storage_errors("cannot lock"):
        folder = Folder(path)
    try:
        folder.must_lock = False
        with storage_errors("cannot lock"):
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            status, _ = read_status(path)
            # a machine that crashed may leave its locks on a network file system
            if status.get("host") in (None, socket.gethostname()) or _is_fresh(status):
                raise locked_error(path) from None
        except OSError:  # a file system without locks
            pass
        write_status(folder, {"state": "starting"})
        yield folder
    finally:
        if lock >= 0:
            os.close(lock)
        folder.close()


def is_part_file(name: str, file: str) -> bool:
    """Return whether a path below the folder of the parts is that of a file of one of them."""
    folder, _, own = name.partition("/")
    return own == file and _NAME.fullmatch(folder) is not None


def read_parts(
    run: Path, read: Callable[[Path], tuple[dict[str, Any], list[Fault]]] = read_status
) -> dict[Part, dict[str, Any]]:
    """Return the heartbeats of the parts that were started, of the division that was used last.

    Parameters
    ----------
    run
        The run folder; at most ``MOST_PARTS`` parts in it are read.
    read
        Returns the heartbeat in a folder, as :func:`read_status` does.
    """
    statuses: dict[Part, dict[str, Any]] = {}
    with suppress(OSError), os.scandir(run / PARTS) as entries:
        for entry in islice(entries, MOST_PARTS):
            match = _NAME.fullmatch(entry.name)
            if match and int(match[1]) <= int(match[2]) and entry.is_dir(follow_symlinks=False):
                status, _ = read(Path(entry.path))
                if status:
                    statuses[Part(int(match[2]), int(match[1]))] = status
    if not statuses:
        return {}
    count = max(statuses, key=lambda part: float(statuses[part]["updated"])).count
    return {part: statuses[part] for part in sorted(statuses) if part.count == count}


def part_state(status: Mapping[str, Any]) -> str:
    """Return the state of a part; ``interrupted`` if its process seems to have been killed."""
    state = str(status["state"])
    if state in _ENDED:
        return state
    if status["host"] == socket.gethostname():
        return state if psutil.pid_exists(status["pid"]) else "interrupted"
    return state if _is_fresh(status) else "interrupted"


def is_ended(state: str) -> bool:
    """Return whether no process computes a part in a state."""
    return state in _ENDED


def _is_fresh(status: Mapping[str, Any]) -> bool:
    return "updated" in status and abs(time.time() - status["updated"]) < SILENT


def combined_status(parts: Mapping[Part, Mapping[str, Any]], states: Mapping[Part, str]) -> dict[str, Any]:
    """Return the heartbeats of parts as that of one run.

    Parameters
    ----------
    parts
        From :func:`read_parts`; not empty.
    states
        State of each part, which is ``running`` or so only while its process lives.
    """
    active = [part for part in parts if states[part] not in _ENDED]
    statuses = [parts[part] for part in parts]
    newest = max((parts[part] for part in active or parts), key=lambda status: float(status["updated"]))
    combined = {name: newest[name] for name in ("pid", "host", "updated")}
    counted = {name: sum(status.get(name, 0) for status in statuses) for name in _SUMMED}
    for name in ("samples_per_second", "tokens_per_second", "host_bytes"):
        counted[name] = sum(parts[part].get(name, 0) for part in active)
    total = max(status.get("run_samples", 0) for status in statuses)
    left, rate = total - counted["samples"], counted["samples_per_second"]
    labels: dict[str, Counter[str]] = {}
    for status in statuses:
        for name, counts in status.get("labels", {}).items():
            labels.setdefault(name, Counter()).update(counts)
    return {
        **combined,
        **counted,
        "state": _state([states[part] for part in parts], is_complete=0 < total <= counted["committed"]),
        "total_samples": total,
        "seconds": max(status.get("seconds", 0.0) for status in statuses),
        "eta_seconds": left / rate if rate else None,
        "batch_tokens": max(status.get("batch_tokens", 0) for status in statuses),
        "languages": dict(sum((Counter(status.get("languages", {})) for status in statuses), Counter())),
        "labels": {name: dict(counts) for name, counts in labels.items()},
    }


def _state(states: Sequence[str], *, is_complete: bool) -> str:
    for state in ("running", "loading", "starting", "queued"):
        if state in states:
            return state
    if is_complete:
        return "done"
    return "failed" if "failed" in states else "interrupted"


def is_sealed(run: Path, parts: Mapping[Part, Mapping[str, Any]]) -> bool:
    """Return whether the run was completed after the last heartbeat of its parts."""
    whole, _ = read_status(run)
    newest = max(float(status["updated"]) for status in parts.values())
    return whole.get("state") == "done" and float(whole["updated"]) >= newest


def describe_parts(run: Path) -> str:
    """Return the states of the parts of a run as text; empty for a run without parts.

    Examples
    --------
    ``4: 1/4 done, 2/4 running on n17 (37%), 3/4 interrupted, 4/4 not started``
    """
    parts = read_parts(run)
    if not parts:
        return ""
    count = next(iter(parts)).count
    if is_sealed(run, parts):
        return f"{count}, all done"
    told = {}
    for part, status in parts.items():
        state, total = part_state(status), status.get("total_samples", 0)
        share = f" ({status.get('samples', 0) / total:.0%})" if total and state != "done" else ""
        told[part.number] = state + (f" on {status['host']}" if state not in _ENDED else "") + share
    if count <= 16:
        return f"{count}: " + ", ".join(
            f"{number}/{count} {told.get(number, 'not started')}" for number in range(1, count + 1)
        )
    states = Counter(part_state(status) for status in parts.values())
    states["not started"] = count - len(parts)
    return f"{count}: " + ", ".join(f"{number} {state}" for state, number in states.most_common() if number)
