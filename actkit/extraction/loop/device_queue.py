"""Queue of runs that share a device: first come, first served."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ...config import Config
from ...store.writer import storage_errors
from ..models.devices import pick_device

_PAUSE = 0.2  # seconds between checks
_GUARD = "guard.lock"


def device_name(config: Config) -> str:
    """Return the name of the device that a run uses, or ``all``."""
    if config.device_map is not None:
        return "all"
    device = pick_device(config.device)
    return f"{device.type}-{device.index or 0}" if device.type == "cuda" else device.type


@contextmanager
def hold_device(queue: Path, device: str, wait: Callable[[], object]) -> Iterator[None]:
    """Wait for a device, and hold it exclusively among the runs of a queue.

    The kernel holds the lock of each ticket, and releases it however a process ends.

    Parameters
    ----------
    queue
        Folder of the queue, created if necessary.
    device
        Name from :func:`device_name`; ``all`` waits for every device, and later runs wait for it.
    wait
        Called repeatedly while other runs are ahead.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """
    with storage_errors("cannot join the queue"):
        queue.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(queue / _GUARD):  # no ticket is visible before it is locked
            # numbers instead of times: a clock that is set back must not put this run ahead of an active one
            prefixes = [path.name.partition("-")[0] for path in queue.glob("[0-9]*.*")]
            number = max((int(prefix) for prefix in prefixes if prefix.isdecimal()), default=0) + 1
            ticket = queue / f"{number:020d}-{os.getpid()}.{device}"
            lock = filelock.FileLock(ticket)
            lock.acquire()
    try:
        while _is_anybody_ahead(queue, ticket.name, device):
            wait()
            time.sleep(_PAUSE)
        yield
    finally:
        lock.release()
        ticket.unlink(missing_ok=True)


def _is_anybody_ahead(queue: Path, ticket: str, device: str) -> bool:
    with filelock.FileLock(queue / _GUARD):
        for path in sorted(queue.glob("[0-9]*.*")):
            if path.name >= ticket:
                break
            if "all" not in (device, path.suffix[1:]) and path.suffix[1:] != device:
                continue
            other = filelock.FileLock(path)
            try:
                other.acquire(timeout=0)
            except filelock.Timeout:
                return True
            other.release()  # its process has ended
            path.unlink(missing_ok=True)
    return False
