"""The run folder around a cube: its lock, its frozen config, its heartbeat."""

import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock

from ..errors import Fault, LockedError
from ..schema import MOMENTS
from .layout import CUBE
from .writing import CREATING, storage_errors

CONFIG = "config.yaml"
STATUS = "status.json"
LOG = "log.txt"
LOCK = ".lock"
OUTPUT = "output.txt"  # what a run says that nobody watches
SKIPPED = "skipped.jsonl"
_REPLACED = (STATUS, CONFIG, SKIPPED, MOMENTS)
_OURS = {CUBE, CREATING, LOG, LOCK, OUTPUT, *_REPLACED, *(name + ".partial" for name in _REPLACED)}


def check_folder(run: Path) -> list[Fault]:
    """Find what keeps a folder from becoming, or being continued as, a run folder.

    Parameters
    ----------
    run
        The folder; it need not exist.

    Returns
    -------
    list of Fault
        It is a file, holds things that are not ours, or cannot be written.
    """
    where = f"out {run}"
    if "\0" in str(run):
        return [Fault("out", "holds a NUL character", "mend the path")]
    try:
        mode = None
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = run.stat().st_mode  # once: another process may make the folder meanwhile
        if mode is not None and stat.S_ISDIR(mode):
            names = {entry.name for entry in run.iterdir()}
            # what somebody put beside a cube, such as a report, is theirs
            foreign = sorted(names - _OURS) if CUBE not in names else []
            if foreign:
                shown = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
                return [Fault(where, f"holds other files: {shown}", "choose an empty or new folder")]
        elif mode is not None:
            return [Fault(where, "is a file", "choose a folder")]
        nearest = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    except OSError as error:
        return [Fault(where, f"cannot be used: {error.strerror}", "choose another folder")]
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return [Fault(where, f"{nearest} cannot be written", "choose another folder, or change its rights")]
    return []


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold a run folder, alone.

    The lock is the kernel's: it ends with its process, however that ends.

    Raises
    ------
    LockedError
        Where another process holds it; the message names pid and host.
    """
    lock = filelock.FileLock(run / LOCK)
    with storage_errors("cannot lock the run folder"):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            status = read_status(run)
            holder = f"process {status.get('pid', '?')} on {status.get('host', '?')}"
            raise LockedError(f"{run}: is being written by {holder}; wait for it, or end it") from error
    try:
        write_status(run, {"state": "starting"})
        yield
    finally:
        lock.release()


def write_status(run: Path, status: Mapping[str, Any]) -> None:
    """Replace the heartbeat; pid, host and time are added."""
    entry = {"pid": os.getpid(), "host": socket.gethostname(), "updated": time.time(), **status}
    replace_text(run / STATUS, json.dumps(entry, indent=1))


def read_status(run: Path) -> dict[str, Any]:
    """Return the last heartbeat; empty where there is none."""
    try:
        status = json.loads((run / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, never half.

    Raises
    ------
    StorageError
        Where the disk refuses.
    """
    partial = path.with_name(path.name + ".partial")
    with storage_errors("cannot write"):
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
