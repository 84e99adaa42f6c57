"""Runs of a workspace: started, cancelled, resumed, deleted. What they are is read from their folders."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from actkit.config import Config
from actkit.errors import Fault, InputError, LockedError
from actkit.store.layout import CUBE
from actkit.store.runs import CONFIG, LOG, OUTPUT, check_folder, read_status, replace_text, write_status
from actkit.yaml_files import read_yaml

from .confining import inside, run_name
from .settings import Settings

_CANCELLED = ".cancelled"
_SUBMITTED = "submitted"  # by us, before the run itself says anything
_ELSEWHERE = 120  # seconds after which a silent run on another machine counts as ended


class State(StrEnum):
    """What a run does."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        return self in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Run:
    """A run folder, as it is now.

    Parameters
    ----------
    name
        Of its folder.
    state
        What it does.
    status
        Its heartbeat: the fields of :class:`actkit.extraction.progress.Progress`.
    asked
        The options of its config.
    has_cube
        Whether there is anything to look at.
    """

    name: str
    path: Path
    state: State
    status: Mapping[str, Any] = field(repr=False)
    asked: Mapping[str, Any] = field(repr=False)
    has_cube: bool

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        total = self.status.get("total_samples") or 0
        return 1.0 if self.state is State.DONE else self.status.get("samples", 0) / total if total else 0.0


def state_of(status: Mapping[str, Any], *, is_alive: bool, is_cancelled: bool) -> State:
    """Tell what a run does.

    Parameters
    ----------
    status
        Its heartbeat.
    is_alive
        Whether its process is there.
    is_cancelled
        Whether somebody asked it to end.
    """
    told = status.get("state", "")
    if is_alive:
        return State.QUEUED if told in (_SUBMITTED, "queued") else State.RUNNING
    if told == State.DONE:
        return State.DONE
    if is_cancelled:
        return State.CANCELLED
    # one that ended before it held its folder was refused
    return State.FAILED if told in (State.FAILED, _SUBMITTED, "") else State.INTERRUPTED


def is_alive(status: Mapping[str, Any]) -> bool:
    """Tell whether the process that wrote a heartbeat is still there."""
    pid, updated = status.get("pid"), status.get("updated", 0.0)
    if status.get("state") in ("done", "failed", "interrupted") or not isinstance(pid, int):
        return False
    if status.get("host") != os.uname().nodename:
        return bool(time.time() - updated < _ELSEWHERE)
    try:
        process = psutil.Process(pid)
        # another process may have its number by now
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= updated + 1
    except psutil.Error:
        return False


class Jobs:
    """The runs of a workspace, and what can be done with them. One for all sessions."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        settings.data.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs, those that were touched last first."""
        found = []
        with suppress(FileNotFoundError), os.scandir(self.settings.workspace) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                    with suppress(OSError):
                        found.append((entry.stat().st_mtime, entry.name))
        names = [name for _, name in sorted(found, reverse=True)[: self.settings.max_runs]]
        return (run for name in names if (run := self._read(name)) is not None)

    def __getitem__(self, name: str) -> Run:
        """Return a run.

        Raises
        ------
        InputError
            Where there is none of that name.
        """
        inside(self.settings.workspace, name, "run", longest=self.settings.max_name)
        run = self._read(name) if Path(name).name == name else None
        if run is None:
            raise InputError([Fault("run", f"there is no run {name!r}", "choose one of the list")])
        return run

    def _read(self, name: str) -> Run | None:
        path = self.settings.workspace / name
        status = read_status(path)
        has_cube = (path / CUBE).is_dir()
        if not status and not has_cube:
            return None
        asked, _ = read_yaml(path / CONFIG)
        if not status:  # a cube that was brought here
            status = {"state": "done"}
        cancelled = (path / _CANCELLED).exists()
        state = state_of(status, is_alive=is_alive(status), is_cancelled=cancelled)
        return Run(name, path, state, status, asked, has_cube)

    def start(self, name: str, config: Config) -> Run:
        """Start a run, in a process of its own.

        Raises
        ------
        InputError
            Where the name is taken or no name, or a limit is exceeded.
        """
        path = self.settings.workspace / run_name(name, longest=self.settings.max_name)
        config = config.model_copy(update={"out": str(path)})
        with self._lock:
            faults = self._beyond(config)
            if path.exists():
                faults.append(
                    Fault("name", f"there is {name} already", "choose another name, or resume that run")
                )
            faults += check_folder(path)
            if faults:
                raise InputError(faults, "cannot start")
            path.mkdir(parents=True)
            replace_text(path / CONFIG, config.to_yaml())
            self._launch(path)
        return self[name]

    def resume(self, name: str) -> Run:
        """Go on with a run that ended before it was done.

        Raises
        ------
        InputError
            Where it is at work, or done; or where too many others are.
        """
        with self._lock:
            run = self[name]
            faults = self._too_many()
            if run.state.is_active or run.state is State.DONE:
                faults.append(Fault(name, f"is {run.state}", "there is nothing to resume"))
            if not (run.path / CONFIG).exists():
                faults.append(Fault(name, f"has no {CONFIG}", "start it again from its table and model"))
            if faults:
                raise InputError(faults, "cannot resume")
            (run.path / _CANCELLED).unlink(missing_ok=True)
            self._launch(run.path)
        return self[name]

    def cancel(self, name: str) -> None:
        """Ask a run to end, and end it where it does not. What is committed stays.

        Raises
        ------
        InputError
            Where it is not at work, or at work on another machine.
        """
        run = self[name]
        if not run.state.is_active:
            raise InputError([Fault(name, f"is {run.state}", "there is nothing to cancel")])
        if run.status.get("host") != os.uname().nodename:
            raise InputError([Fault(name, f"runs on {run.status.get('host')}", "cancel it there")])
        (run.path / _CANCELLED).touch()
        process = psutil.Process(run.status["pid"])
        with suppress(psutil.Error):
            process.terminate()
        threading.Thread(target=_end, args=(process, self.settings.cancel_seconds), daemon=True).start()

    def delete(self, name: str) -> None:
        """Delete a run that is not at work, with all that it wrote.

        Raises
        ------
        LockedError
            Where it is at work.
        """
        with self._lock:
            run = self[name]
            if run.state.is_active:
                raise LockedError(f"{name} is {run.state}; cancel it first")
            gone = run.path.with_name(f".deleted-{time.time_ns()}-{name}")
            run.path.rename(gone)  # at once, whatever it holds
        shutil.rmtree(gone, ignore_errors=True)

    def log(self, run: Run) -> str:
        """Return the end of what a run said: of its log, and of what ended it before there was one."""
        name = LOG if (run.path / LOG).exists() and run.state is not State.FAILED else OUTPUT
        text = _tail(run.path / name, self.settings.log_bytes)
        return text or _tail(run.path / LOG, self.settings.log_bytes)

    def _beyond(self, config: Config) -> list[Fault]:
        faults, settings = self._too_many(), self.settings
        if config.limit is not None and config.limit > settings.max_samples:
            faults.append(Fault("limit", f"is above {settings.max_samples:,}", "start it in a shell"))
        if isinstance(config.batch_size, int) and config.batch_size > settings.max_batch:
            faults.append(Fault("batch_size", f"is above {settings.max_batch:,}", "give less, or auto"))
        return faults

    def _too_many(self) -> list[Fault]:
        active = sum(run.state.is_active for run in self)
        if active < self.settings.max_active:
            return []
        return [Fault("runs", f"{active} are queued or running", "wait for one, or cancel it")]

    def _launch(self, path: Path) -> None:
        command = [sys.executable, "-m", "actkit.cli", "extract", str(path / CONFIG)]
        command += ["--queue", str(self.settings.queue)]
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        with (path / OUTPUT).open("wb") as output:
            child = subprocess.Popen(  # noqa: S603 - nothing of it comes from a browser
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it outlives the server
                env=environment,
            )
        write_status(path, {"state": _SUBMITTED, "pid": child.pid})
        # nobody else reaps it, and until then it looks alive
        threading.Thread(target=child.wait, daemon=True).start()


def _end(process: psutil.Process, patience: float) -> None:
    try:
        process.wait(patience)
    except psutil.TimeoutExpired:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    except psutil.Error:
        pass


def _tail(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - most, 0))
            text = file.read(most).decode("utf-8", "replace")
    except OSError:
        return ""
    return text if size <= most else text.partition("\n")[2]
