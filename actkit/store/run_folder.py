"""The run folder that contains a cube: its lock, its frozen config, its heartbeat."""

import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import filelock
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..errors import Fault, LockedError
from ..regular_files import MB, IrregularError, open_descriptor, read_regular
from ..schema import MOMENTS
from .folders import Folder
from .layout import CUBE
from .partial_files import finished_name
from .writer import CREATING, storage_errors

CONFIG = "config.yaml"
STATUS = "status.json"
LOG = "log.txt"
LOCK = ".lock"
PARTS = "parts"  # folder with the status and the log of each part
SCAN = f"{PARTS}/scan.bin"  # rows that the parts of an unsealed run take
OUTPUT = "output.txt"  # standard output and error of a run in the background
SKIPPED = "skipped.jsonl"
CLUSTER = ".cluster"  # written by the app: the cluster that computes the run
STATUS_BYTES = MB  # enough for a thousand languages, and labels of twenty values
_REPLACED = (STATUS, CONFIG, SKIPPED, MOMENTS)  # each written anew under a temporary name
_RUN_FILES = {CUBE, CREATING, LOG, LOCK, OUTPUT, PARTS, CLUSTER, *_REPLACED}

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class Status(BaseModel):
    """The validated heartbeat of a run; unknown fields are ignored.

    It holds the :class:`actkit.extraction.monitoring.progress.Progress` of the run, or the main fields of the
    :class:`actkit.features.training_progress.TrainingProgress` of a training, the process and host that
    wrote it, and the time (`updated`, in seconds since 1970; years 1 to 9999, since clocks can be wrong).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    state: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,20}$")]
    pid: int = Field(ge=1, lt=2**31)
    host: str
    updated: float = Field(ge=-62_135_596_800, lt=253_402_300_800, allow_inf_nan=False)
    samples: _Count = 0
    total_samples: _Count = 0
    run_samples: _Count = 0  # of the whole run, in the status of a part
    committed: _Count = 0
    tokens: _Count = 0
    seconds: _Amount = 0.0
    samples_per_second: _Amount = 0.0
    tokens_per_second: _Amount = 0.0
    eta_seconds: _Amount | None = None
    bytes_written: _Count = 0
    batch_tokens: _Count = 0
    host_bytes: _Count = 0
    device_bytes: dict[str, _Count] = {}
    workers: dict[str, dict[str, _Count]] = {}
    languages: dict[str, _Count] = {}
    labels: dict[str, dict[str, _Count]] = {}
    # of a training of autoencoders
    step: _Count = 0
    total_steps: _Count = 0
    loss: _Amount | None = None
    fvu: _Amount | None = None
    l0: _Amount | None = None
    n_dead: _Count = 0


def check_folder(run: Path) -> list[Fault]:
    """Find reasons why a run cannot be started or continued in a folder.

    Parameters
    ----------
    run
        The folder; it need not exist.

    Returns
    -------
    list of Fault
        Faults if the path is a file, holds files of other programs, or cannot be written.
    """
    where = f"out {run}"
    if "\0" in str(run):
        return [Fault("out", "holds a NUL character", "correct the path")]
    try:
        mode = None
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = run.stat().st_mode  # called once, because another process may create the folder meanwhile
        if mode is not None and stat.S_ISDIR(mode):
            names = {entry.name for entry in run.iterdir()}
            # users may add files to a folder that has a cube, such as a report
            foreign = sorted(names - _RUN_FILES) if CUBE not in names else []
            foreign = [name for name in foreign if finished_name(name) not in _REPLACED]
            if foreign:
                shown = ", ".join(foreign[:3]) + (" …" if len(foreign) > 3 else "")
                return [Fault(where, f"holds other files: {shown}", "choose an empty or new folder")]
            if faults := _unusable(run, where):
                return faults
        elif mode is not None:
            return [Fault(where, "is a file", "choose a folder")]
        nearest = next(folder for folder in (run, *run.absolute().parents) if folder.exists())
    except OSError as error:
        return [Fault(where, f"cannot be used: {error.strerror}", "choose another folder")]
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return [
            Fault(where, f"{nearest} cannot be written", "choose another folder, or change its permissions")
        ]
    return []


def _unusable(run: Path, where: str) -> list[Fault]:
    """Find links, FIFOs and devices, which would lead a writer out of the folder or make it hang."""
    faults = []
    for entry in sorted(os.scandir(run), key=lambda entry: entry.name):
        is_folder = entry.name in (CUBE, CREATING, PARTS)
        is_run_file = entry.name in _RUN_FILES or finished_name(entry.name) in _REPLACED
        is_type = entry.is_dir if is_folder else entry.is_file
        # other parts of the run may rename or remove the entry meanwhile
        if is_run_file and not is_type(follow_symlinks=False) and os.path.lexists(entry.path):
            noun = "folder" if is_folder else "regular file"
            what = "is a link" if entry.is_symlink() else f"is not a {noun}"
            faults.append(Fault(f"{where}/{entry.name}", what, f"replace it with a {noun}, or remove it"))
        elif entry.name == CUBE:
            irregular = next(_irregular(entry.path), None)
            if irregular is not None:
                what, hint = "is a link, or neither file nor folder", "replace it with its target"
                faults.append(Fault(f"{where}/{Path(irregular).relative_to(run)}", what, hint))
    return faults


def _irregular(folder: str) -> Iterator[str]:
    """Yield the entries of a folder tree that are neither files nor folders."""
    folders = [folder]  # without recursion, since a downloaded folder may have any depth
    while folders:
        for entry in list(os.scandir(folders.pop())):  # an unfinished scan would keep its folder open
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                yield entry.path


@contextmanager
def locked(run: Path) -> Iterator[Folder]:
    """Hold the exclusive lock of a run folder.

    The kernel releases the lock when the process ends, however it ends. The lock, and the files written
    through the yielded object, belong to the folder rather than to its path.

    Yields
    ------
    Folder
        The folder.

    Raises
    ------
    LockedError
        If another process holds the lock; the message names its pid and host.
    StorageError
        If the folder is moved, deleted or replaced while it is being locked.
    """
    lock = filelock.FileLock(run / LOCK)
    with storage_errors("cannot lock the run folder"):
        folder = Folder(run)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise locked_error(run) from error
    try:
        folder.check()
        with storage_errors("cannot remove unfinished files"):
            folder.sweep(*_REPLACED)
        write_status(folder, {"state": "starting"})
        yield folder
    finally:
        lock.release()
        folder.close()


@contextmanager
def unused(run: Path) -> Iterator[None]:
    """Keep writers out of an untrusted run folder, without changing its status.

    Raises
    ------
    LockedError
        If a process is writing to it, whatever its status says.
    OSError
        If its lock cannot be opened.
    """
    lock, descriptor = run / LOCK, -1
    try:
        # writers lock only regular files
        if not os.path.lexists(lock) or (lock.is_file() and not lock.is_symlink()):
            try:
                descriptor = open_descriptor(lock, os.O_RDWR | os.O_CREAT)
            except IrregularError:  # a file with several names can only be opened for reading
                descriptor = open_descriptor(lock)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise locked_error(run) from error
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def locked_error(run: Path) -> LockedError:
    """Return the error that names the process that writes to a folder."""
    status, _ = read_status(run)
    is_named = "pid" in status
    holder = f"process {status['pid']} on {status['host']}" if is_named else "a process that holds its lock"
    return LockedError(f"{run}: is being written by {holder}; wait for it, or end it")


def write_status(run: Path | Folder, status: Mapping[str, Any]) -> None:
    """Replace the heartbeat, adding pid, host and time; if it is too long, omit the counts."""
    entry = {"pid": os.getpid(), "host": socket.gethostname(), "updated": time.time(), **status}
    text = json.dumps(entry, indent=1)
    if len(text) > STATUS_BYTES:
        text = json.dumps({name: value for name, value in entry.items() if not isinstance(value, Mapping)})
    if isinstance(run, Path):
        replace_text(run / STATUS, text)
    else:
        with storage_errors("cannot write"):
            run.replace(STATUS, text.encode())


def read_status(run: Path) -> tuple[dict[str, Any], list[Fault]]:
    """Read and validate the last heartbeat.

    Parameters
    ----------
    run
        The run folder.

    Returns
    -------
    status : dict
        The fields of :class:`Status` that are set; empty if there is no heartbeat or it cannot be read.
    faults : list of Fault
        Reasons why it cannot be read.
    """
    where, hint = str(run / STATUS), "remove it; running again writes a new one"
    try:
        content = read_regular(run / STATUS, STATUS_BYTES, follow=False)
        return Status.model_validate_json(content).model_dump(exclude_unset=True), []
    except FileNotFoundError:
        return {}, []
    except OSError as error:
        return {}, [Fault(where, error.strerror or str(error), hint)]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = f"`{first['loc'][0]}`: " if first["loc"] else ""
        return {}, [Fault(where, f"cannot be read: {field}{first['msg'][:200]}", hint)]


def frozen_folder(config: Path) -> Path | None:
    """Return the run folder to which a frozen config belongs; None for a config that a user wrote.

    The `out` in a frozen config may be outdated: a run that was copied or moved continues in the folder of
    its config.

    Parameters
    ----------
    config
        A YAML file.
    """
    folder = config.absolute().parent
    is_run = any(os.path.lexists(folder / name) for name in (CUBE, CREATING, LOCK, STATUS))
    return folder if config.name == CONFIG and is_run else None


def replace_text(path: Path, text: str) -> None:
    """Replace a small file atomically: readers see either the old or the new content.

    Raises
    ------
    StorageError
        If the disk cannot be written.
    """
    with storage_errors("cannot write"), closing(Folder(path.parent)) as folder:
        folder.replace(path.name, text.encode())
