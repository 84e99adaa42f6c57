"""The run folder around a cube: its lock, its frozen config, its heartbeat."""

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
from .folders import Folder, finished_name
from .layout import CUBE
from .writer import CREATING, storage_errors

CONFIG = "config.yaml"
STATUS = "status.json"
LOG = "log.txt"
LOCK = ".lock"
OUTPUT = "output.txt"  # what a run says that nobody watches
SKIPPED = "skipped.jsonl"
STATUS_BYTES = MB  # a thousand languages, and labels of twenty values
_REPLACED = (STATUS, CONFIG, SKIPPED, MOMENTS)
_OURS = {CUBE, CREATING, LOG, LOCK, OUTPUT, *_REPLACED}

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Amount = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]


class Status(BaseModel):
    """The heartbeat of a run, as it is believed: each field is of its type, others are left out.

    It is the :class:`actkit.extraction.monitoring.progress.Progress` of the run, with who wrote it and when
    (`updated`, in seconds since 1970, for the years 1 to 9999: a wrong clock is no fault of the run).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    state: Annotated[str, StringConstraints(pattern=r"^[a-z]{1,20}$")]
    pid: int = Field(ge=1, lt=2**31)
    host: str
    updated: float = Field(ge=-62_135_596_800, lt=253_402_300_800, allow_inf_nan=False)
    samples: _Count = 0
    total_samples: _Count = 0
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
    languages: dict[str, _Count] = {}
    labels: dict[str, dict[str, _Count]] = {}


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
        return [Fault("out", "holds a NUL character", "correct the path")]
    try:
        mode = None
        with suppress(FileNotFoundError, NotADirectoryError):
            mode = run.stat().st_mode  # once: another process may make the folder meanwhile
        if mode is not None and stat.S_ISDIR(mode):
            names = {entry.name for entry in run.iterdir()}
            # what somebody put beside a cube, such as a report, is theirs
            foreign = sorted(names - _OURS) if CUBE not in names else []
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
        return [Fault(where, f"{nearest} cannot be written", "choose another folder, or change its rights")]
    return []


def _unusable(run: Path, where: str) -> list[Fault]:
    """Find what would lead a writer out of the folder, or keep it waiting: links, FIFOs and devices."""
    faults = []
    for entry in sorted(os.scandir(run), key=lambda entry: entry.name):
        noun = "folder" if entry.name in (CUBE, CREATING) else "file"
        ours = entry.name in _OURS or finished_name(entry.name) in _REPLACED
        if ours and not _is_own(entry, is_folder=noun == "folder"):
            what = "is a link" if entry.is_symlink() else f"is not a regular {noun}"
            faults.append(
                Fault(f"{where}/{entry.name}", what, f"put a {noun} of its own there, or remove it")
            )
        elif entry.name == CUBE:
            found = next(_foreign(entry.path), None)
            if found is not None:
                what, hint = "is a link, or neither file nor folder", "put what it stands for there"
                faults.append(Fault(f"{where}/{Path(found).relative_to(run)}", what, hint))
    return faults


def _foreign(folder: str) -> Iterator[str]:
    """Yield what is in a folder, or in those below it, and neither a file nor a folder."""
    folders = [folder]  # not a recursion: a received folder may be of any depth
    while folders:
        for entry in list(os.scandir(folders.pop())):  # a scan that is not ended would stay open
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif not entry.is_file(follow_symlinks=False):
                yield entry.path


def _is_own(entry: os.DirEntry[str], *, is_folder: bool) -> bool:
    return entry.is_dir(follow_symlinks=False) if is_folder else entry.is_file(follow_symlinks=False)


@contextmanager
def locked(run: Path) -> Iterator[Folder]:
    """Hold a run folder, alone.

    The lock is the kernel's: it ends with its process, however that ends. It is that of the folder and not
    of its path, as are the files that are written through what is yielded.

    Yields
    ------
    Folder
        The folder.

    Raises
    ------
    LockedError
        Where another process holds it; the message names pid and host.
    StorageError
        Where the folder is moved, deleted or replaced at once.
    """
    lock = filelock.FileLock(run / LOCK)
    with storage_errors("cannot lock the run folder"):
        folder = Folder(run)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise _locked_error(run) from error
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
    """Keep writers out of a run folder that may come from anywhere, without a change to its status.

    Raises
    ------
    LockedError
        Where a process writes it, whatever its status says.
    OSError
        Where its lock cannot be opened.
    """
    lock, descriptor = run / LOCK, -1
    try:
        if not os.path.lexists(lock) or (
            lock.is_file() and not lock.is_symlink()
        ):  # no writer locks anything but a file
            try:
                descriptor = open_descriptor(lock, os.O_RDWR | os.O_CREAT)
            except IrregularError:  # a file that has another name elsewhere is opened for reading alone
                descriptor = open_descriptor(lock)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise _locked_error(run) from error
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _locked_error(run: Path) -> LockedError:
    status, _ = read_status(run)
    is_named = "pid" in status
    holder = f"process {status['pid']} on {status['host']}" if is_named else "a process that holds its lock"
    return LockedError(f"{run}: is being written by {holder}; wait for it, or end it")


def write_status(run: Path | Folder, status: Mapping[str, Any]) -> None:
    """Replace the heartbeat; pid, host and time are added, counts that make it too long left out."""
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
    """Read the last heartbeat, believing nothing of it that is not of its type.

    Parameters
    ----------
    run
        The run folder.

    Returns
    -------
    status : dict
        The fields of :class:`Status` that it has; empty where there is none, or where it cannot be read.
    faults : list of Fault
        Why it cannot be read.
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
    """Return the run folder whose frozen config a file is; None for one that somebody wrote.

    What was asked for the `out` of a run is where it lay then; a run that was copied or moved since goes on
    where its config lies.

    Parameters
    ----------
    config
        A YAML file.
    """
    folder = config.absolute().parent
    is_run = any(os.path.lexists(folder / name) for name in (CUBE, CREATING, LOCK, STATUS))
    return folder if config.name == CONFIG and is_run else None


def replace_text(path: Path, text: str) -> None:
    """Write a small file so that a reader sees the old or the new one, never half.

    Raises
    ------
    StorageError
        Where the disk refuses.
    """
    with storage_errors("cannot write"), closing(Folder(path.parent)) as folder:
        folder.replace(path.name, text.encode())
