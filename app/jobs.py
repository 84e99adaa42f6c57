"""Start, cancel, resume and delete the runs of a workspace; their state is read from their folders."""

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from actkit.config import Config
from actkit.errors import Fault, InputError, LockedError
from actkit.features.manifest import MANIFEST
from actkit.features.training_settings import SETTINGS_FILE
from actkit.regular_files import open_descriptor, read_tail
from actkit.store.folders import Folder
from actkit.store.layout import CUBE
from actkit.store.parts import Part, is_sealed, read_parts
from actkit.store.run_folder import (
    CLUSTER,
    CONFIG,
    LOG,
    OUTPUT,
    PARTS,
    STATUS,
    check_folder,
    read_status,
    replace_text,
    unused,
    write_status,
)
from actkit.store.writer import storage_errors
from actkit.yaml_files import read_yaml

from . import processes, trainings
from .allowed_paths import inside, run_name
from .run_state import SUBMITTED, Run, State, state_of
from .settings import Settings

_CANCELLED = ".cancelled"
_CLUSTER_BYTES = 1000


class Jobs:
    """Runs of a workspace and the operations on them, shared by all sessions."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._children: dict[Path, subprocess.Popen[bytes]] = {}
        self._known: dict[Path, tuple[object, tuple[dict[str, Any], list[Fault]]]] = {}
        with suppress(OSError):  # a read-only workspace can still show its runs
            settings.data.mkdir(parents=True, exist_ok=True)

    @property
    def fault(self) -> str:
        """Reason why the app cannot write to the workspace, or an empty string."""
        if os.access(self.settings.workspace, os.W_OK | os.X_OK):
            return ""
        limits = "runs are shown, but none can be started or deleted"
        return f"{self.settings.workspace} cannot be written: {limits}"

    def __iter__(self) -> Iterator[Run]:
        """Yield the runs, most recently modified first."""
        folders = []
        with suppress(FileNotFoundError), os.scandir(self.settings.workspace) as entries:
            for entry in entries:
                for name in (entry.name, *self._trainings_in(entry.name)):
                    with suppress(OSError):
                        folders.append(((self.settings.workspace / name).stat().st_mtime, name))
        names = [name for _, name in sorted(folders, reverse=True)[: self.settings.max_runs]]
        return (run for name in names if (run := self._read(name)) is not None)

    def __getitem__(self, name: str) -> Run:
        """Return a run by name.

        Raises
        ------
        InputError
            If there is no run of that name.
        """
        inside(self.settings.workspace, name, "run", longest=self.settings.max_name)
        run = self._read(name)
        if run is None:
            raise InputError([Fault("run", f"there is no run {name!r}", "choose from the list")])
        return run

    def _may_be_run(self, name: str) -> bool:
        """Return whether a name is that of a folder that may hold a run: no link or folder of the app.

        Autoencoders are often trained within the folder of their run, so that a name may have two parts.
        """
        first, *inner = parts = name.split("/")
        path = self.settings.workspace / first
        is_own = path == self.settings.data or any(part.startswith(".") for part in parts)
        if is_own or len(parts) > 2 or not all(parts) or not _is_folder(path):
            return False
        return not inner or (_is_folder(path / inner[0]) and trainings.is_training(path / inner[0]))

    def _trainings_in(self, name: str) -> list[str]:
        """Return the names of trainings within the folder of a run."""
        if not self._may_be_run(name):
            return []
        path = self.settings.workspace / name
        listed, _ = self._once(path, lambda: trainings.subfolders(path))
        return [f"{name}/{inner}" for inner in listed["names"] if trainings.is_training(path / inner)]

    def _read(self, name: str) -> Run | None:
        if not self._may_be_run(name):
            return None
        path = self.settings.workspace / name
        if trainings.is_training(path):
            return self._read_training(name, path)
        has_cube = (path / CUBE).is_dir()
        status, faults = self._once(path / STATUS, lambda: read_status(path))
        if not status and not faults and not has_cube and not (path / PARTS).is_dir():
            return None
        asked, config_faults = self._once(path / CONFIG, lambda: read_yaml(path / CONFIG, follow=False))
        if not status and not faults:  # a cube that was copied here
            status = {"state": "done"}
        cancelled = (path / _CANCELLED).exists()
        alive = processes.is_alive(path, status, self._command(path), self._child(path))
        parts = self._parts(path)
        if parts and not alive and not is_sealed(path, parts):
            status, alive = processes.combined(path, parts, self._command(path))
            faults = []
        state = state_of(status, is_alive=alive, is_cancelled=cancelled) if status else State.UNREADABLE
        shown_faults = config_faults if os.path.lexists(path / CONFIG) else []
        newest = max(parts, key=lambda part: float(parts[part]["updated"]), default=None)
        return Run(
            name, path, state, status, asked, has_cube, (*faults, *shown_faults), newest, self._cluster(path)
        )

    def _read_training(self, name: str, path: Path) -> Run:
        asked, setting_faults = self._once(path / SETTINGS_FILE, lambda: trainings.read_settings(path))
        status, faults = self._once(path / STATUS, lambda: read_status(path))
        alive = processes.is_alive(path, status, self._command(path))
        if not alive and status.get("state") != State.DONE:
            ended, more = self._once(path / MANIFEST, lambda: trainings.read_completeness(path))
            setting_faults = [*setting_faults, *more]
            if ended["complete"]:  # killed before it said so, or copied without its status
                status, faults = trainings.completed(status), []
        known = status or ({} if faults else {"state": "interrupted"})
        state = state_of(known, is_alive=alive, is_cancelled=False) if known else State.UNREADABLE
        return Run(name, path, state, known, asked, False, (*faults, *setting_faults), is_training=True)

    def _parts(self, path: Path) -> dict[Part, dict[str, Any]]:
        return read_parts(path, lambda folder: self._once(folder / STATUS, lambda: read_status(folder)))

    def _once(
        self, path: Path, read: Callable[[], tuple[dict[str, Any], list[Fault]]]
    ) -> tuple[dict[str, Any], list[Fault]]:
        """Read a file again only if it changed, because every session polls once a second."""
        try:
            now = path.lstat()
        except OSError:
            return read()
        seen = now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        known = self._known.get(path)
        # two changes within one clock tick are indistinguishable
        if known is None or known[0] != seen or abs(time.time_ns() - now.st_ctime_ns) < 2e9:
            if len(self._known) > 8 * self.settings.max_runs:
                self._known.clear()
            known = self._known[path] = seen, read()
        return known[1]

    def start(self, name: str, config: Config, cluster: str = "") -> Run:
        """Start a run in a separate process.

        Parameters
        ----------
        name, config
            Name of its folder, and its options.
        cluster
            Cluster that computes the run, one of the settings; by default, this machine.

        Raises
        ------
        InputError
            If the name is invalid or taken, the cluster is none of the settings, or a limit is exceeded.
        """
        path = self.settings.workspace / run_name(name, longest=self.settings.max_name)
        config = config.model_copy(update={"out": str(path)})
        with self._lock:
            faults = self._beyond(config)
            if os.path.lexists(path) or path == self.settings.data:
                faults.append(
                    Fault("name", f"{name} already exists", "choose another name, or resume that run")
                )
            if cluster and cluster not in self.settings.clusters:
                faults.append(Fault("cluster", f"{cluster!r} is not offered here", "choose from the list"))
            faults += check_folder(path)
            if faults:
                raise InputError(faults, "cannot start")
            with storage_errors("cannot create the run folder", "nothing was started"):
                path.mkdir(parents=True)
            try:
                replace_text(path / CONFIG, config.to_yaml())
                if cluster:
                    replace_text(path / CLUSTER, cluster)
                self._launch(path)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)  # so that the name can be reused
                raise
        return self[name]

    def resume(self, name: str) -> Run:
        """Resume a run that ended before it was complete.

        Raises
        ------
        InputError
            If the run is active or done, or if too many runs are active.
        """
        with self._lock:
            run = self[name]
            faults = self._too_many()
            if run.state.is_active or run.state is State.DONE:
                faults.append(Fault(name, f"is {run.state}", "there is nothing to resume"))
            if run.is_training:
                faults.append(Fault(name, "trains autoencoders", "repeat its command in a shell or notebook"))
            elif not os.path.lexists(run.path / CONFIG):
                faults.append(Fault(name, f"has no {CONFIG}", "start a new run with its data and model"))
            faults += [fault for fault in run.faults if fault.where.startswith(str(run.path / CONFIG))]
            if faults:
                raise InputError(faults, "cannot resume")
            self._launch(run.path)
        return self[name]

    def cancel(self, name: str) -> None:
        """Ask a run to stop, and kill it after a grace period; committed samples are kept.

        Raises
        ------
        InputError
            If the run is not active, or if its process was not started by an app on this machine. Whatever
            its status says, only a child of this app, or a process that holds the lock of the run, is killed.
        """
        run = self[name]
        if not run.state.is_active:
            raise InputError([Fault(name, f"is {run.state}", "there is nothing to cancel")])
        process = self._process(run)
        if process is None:
            where = f"process {run.status['pid']} on {run.status['host']}"
            raise InputError([Fault(name, f"was not started by the app; it is {where}", "stop it there")])
        with storage_errors("cannot record the cancellation"):
            os.close(open_descriptor(run.path / _CANCELLED, os.O_WRONLY | os.O_CREAT))
        with suppress(psutil.Error):
            process.terminate()
        threading.Thread(
            target=processes.end, args=(process, self.settings.cancel_seconds), daemon=True
        ).start()

    def _process(self, run: Run) -> psutil.Process | None:
        """Return the process of a run if the app may kill it."""
        if run.status["host"] != os.uname().nodename:
            return None
        with suppress(psutil.Error):
            process = processes.find(run.status)
            if process is None or process.pid == self._child(run.path):
                return process
            if processes.is_started_as(process, self._command(run.path)) and processes.holds_lock(
                process, run.path
            ):
                return process
        return None

    def _child(self, path: Path) -> int | None:
        """Return the id of the process that this server started for a run, until it is reaped."""
        child = self._children.get(path)
        return child.pid if child is not None and child.poll() is None else None

    def delete(self, name: str) -> None:
        """Delete an inactive run with everything that it wrote, and with the trainings in its folder.

        Raises
        ------
        LockedError
            If the run, or a training in its folder, is active, or a process holds its lock, whatever its
            status says.
        StorageError
            If the workspace is not writable.
        """
        gone = f".deleted-{uuid4().hex}"
        with storage_errors(f"cannot delete {name}", "nothing was removed"), ExitStack() as opened:
            with self._lock, ExitStack() as locks:
                run = self[name]
                for each in (run, *(self[inner] for inner in self._trainings_in(name))):
                    if each.state.is_active:
                        how = "wait for it, or stop its process" if each.is_training else "cancel it first"
                        raise LockedError(f"{each.name} is {each.state}; {how}")
                    locks.enter_context(unused(each.path))
                folder = opened.enter_context(closing(Folder(run.path.parent)))
                folder.rename(run.path.name, gone)  # atomic, whatever the folder contains
            folder.remove_tree(gone)

    def log(self, run: Run) -> str:
        """Return the end of the log of a run, or of its output if it failed or has no log."""
        folder = run.path
        if run.newest_part is not None and not os.path.lexists(folder / LOG):
            folder = run.newest_part.folder(folder)
        log, output = (_tail(folder / name, self.settings.log_bytes) for name in (LOG, OUTPUT))
        return output or log if run.state is State.FAILED or not log else log

    def _beyond(self, config: Config) -> list[Fault]:
        faults, settings = self._too_many(), self.settings
        if config.limit is not None and config.limit > settings.max_samples:
            faults.append(Fault("limit", f"is above {settings.max_samples:,}", "start the run from a shell"))
        if isinstance(config.batch_size, int) and config.batch_size > settings.max_batch:
            faults.append(Fault("batch_size", f"is above {settings.max_batch:,}", "reduce it, or use auto"))
        return faults

    def _too_many(self) -> list[Fault]:
        active = sum(run.state.is_active for run in self)
        if active < self.settings.max_active:
            return []
        return [Fault("runs", f"{active} are queued or running", "wait for one to finish, or cancel one")]

    def _command(self, path: Path) -> list[str]:
        cluster = self._cluster(path)
        return processes.command(path, self.settings.queue, *([cluster] if cluster else []))

    def _cluster(self, path: Path) -> str:
        """Return the cluster that computes a run, if the settings still offer it."""
        recorded = _tail(path / CLUSTER, _CLUSTER_BYTES) if self.settings.clusters else ""
        return recorded if recorded in self.settings.clusters else ""

    def _launch(self, path: Path) -> None:
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        with storage_errors("cannot start"):
            (path / _CANCELLED).unlink(missing_ok=True)
            (path / OUTPUT).unlink(missing_ok=True)  # not truncated, because it may be a link
            output = os.open(path / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with os.fdopen(output, "wb") as output_file:
            child = subprocess.Popen(  # noqa: S603 - no argument comes from a browser
                self._command(path),
                stdin=subprocess.DEVNULL,
                stdout=output_file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # outlives the server
                env=environment,
            )
        try:
            write_status(path, {"state": SUBMITTED, "pid": child.pid})
        except BaseException:  # the process would be orphaned
            child.kill()
            child.wait()
            raise
        self._children[path] = child
        # until it is reaped, an ended process looks alive
        threading.Thread(target=child.wait, daemon=True).start()


def _is_folder(path: Path) -> bool:
    """Return whether a path is that of a folder, and not of a link."""
    # unlike Path, os.path also takes names that are too long for the disk
    return not os.path.islink(path) and os.path.isdir(path)


def _tail(path: Path, most: int) -> str:
    try:
        content, is_whole = read_tail(path, most)
    except OSError:
        return ""
    text = content.decode("utf-8", "replace")
    return text if is_whole else text.partition("\n")[2]
