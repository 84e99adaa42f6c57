"""Find the process of a run; claims of the run folder are verified because folders are untrusted."""

import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from actkit.store.parts import Part, combined_status, is_ended
from actkit.store.run_folder import CONFIG, LOCK

_ELSEWHERE = 120  # seconds without heartbeat after which a run on another machine counts as ended


def command(run: Path, queue: Path, cluster: str = "") -> list[str]:
    """Return the command that extracts into a folder, whatever path its config contains.

    Parameters
    ----------
    run, queue
        Run folder, and the folder in which runs queue for the devices of this machine.
    cluster
        Cluster that computes the run; one on other machines does not queue.
    """
    options = [str(run / CONFIG), "--out", str(run)]
    if cluster:
        options += ["--cluster", cluster]
    if not cluster or cluster.startswith("local:"):
        options += ["--queue", str(queue)]
    return [sys.executable, "-m", "actkit.cli", "extract", *options]


def is_alive(run: Path, status: Mapping[str, Any], asked: Sequence[str], child: int | None = None) -> bool:
    """Return whether the process of a run is alive.

    Parameters
    ----------
    run
        Run folder.
    status
        Heartbeat. Its process id is not trusted: that process must be the child that this server started for
        the run, hold the lock of the folder, or have been started with the expected command.
    asked
        Result of :func:`command`.
    child
        Process id of that child, if it has not been reaped. Just after its start, it has no arguments yet.
    """
    if status.get("state") in ("done", "failed", "interrupted") or "pid" not in status:
        return False
    if status["host"] == os.uname().nodename:
        with suppress(psutil.AccessDenied):  # process of another user
            process = find(status)
            return process is not None and (
                process.pid == child or is_started_as(process, asked) or holds_lock(process, run)
            )
    # clocks may differ; a heartbeat from the far future does not count
    return bool(abs(time.time() - status["updated"]) < _ELSEWHERE)


def combined(
    run: Path, parts: Mapping[Part, Mapping[str, Any]], asked: Sequence[str]
) -> tuple[dict[str, Any], bool]:
    """Return the heartbeats of the parts of a run as one, and whether the process of any part is alive."""
    alive = {part: is_alive(part.folder(run), status, asked) for part, status in parts.items()}
    reported = {part: str(status["state"]) for part, status in parts.items()}
    states = {
        part: state if alive[part] or is_ended(state) else "interrupted" for part, state in reported.items()
    }
    return combined_status(parts, states), any(alive.values())


def end(process: psutil.Process, patience: float) -> None:
    """Wait for a process, and kill its group after some seconds."""
    try:
        process.wait(patience)
    except psutil.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    except psutil.Error:
        pass


def find(status: Mapping[str, Any]) -> psutil.Process | None:
    """Return the process on this machine that a heartbeat names; None if it has ended."""
    try:
        process = psutil.Process(status["pid"])
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.AccessDenied:
        raise
    except psutil.Error:
        return None


def is_started_as(process: psutil.Process, asked: Sequence[str]) -> bool:
    """Return whether a process of this user was started with these arguments, by any Python interpreter.

    Raises
    ------
    psutil.AccessDenied
        If the process belongs to another user and hides its arguments.
    """
    try:
        is_own_user: bool = process.uids().real == os.getuid()
        return is_own_user and process.cmdline()[1:] == list(asked)[1:]
    except psutil.AccessDenied:
        raise
    except psutil.Error:
        return False


def holds_lock(process: psutil.Process, run: Path) -> bool:
    """Return whether a process holds the lock of a run folder, without touching the lock.

    The process that holds the lock keeps the lock file open for the duration of the run.

    Raises
    ------
    psutil.AccessDenied
        If the process belongs to another user.
    """
    try:
        lock = (run / LOCK).lstat()
        paths = [file.path for file in process.open_files()]
    except psutil.AccessDenied:
        raise
    except (OSError, psutil.Error):
        return False
    for path in paths:
        with suppress(OSError):
            if os.path.samestat(os.stat(path, follow_symlinks=False), lock):
                return True
    return False
