"""Runs that share a device wait for their turn: the first to come is the first to go."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from ..config import Config
from ..store.writing import storage_errors
from .models.loading import pick_device

_PAUSE = 0.2  # seconds between two looks
_GUARD = "guard.lock"


def device_name(config: Config) -> str:
    """Name what a run needs for itself: a device, or all of them."""
    if config.device_map is not None:
        return "all"
    device = pick_device(config.device)
    return f"{device.type}-{device.index or 0}" if device.type == "cuda" else device.type


@contextmanager
def turn(queue: Path, device: str, wait: Callable[[], object]) -> Iterator[None]:
    """Hold a device, alone among those who use the same queue.

    Tickets are locked by the kernel, so that a process that ends, however it does, makes way.

    Parameters
    ----------
    queue
        A folder; it is made.
    device
        From :func:`device_name`; ``all`` waits for every device, and keeps those who come later waiting.
    wait
        Called again and again while others are ahead.

    Raises
    ------
    StorageError
        Where the folder cannot be written.
    """
    with storage_errors("cannot join the queue"):
        queue.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(queue / _GUARD):  # no ticket is seen before it is locked
            ticket = queue / f"{time.time_ns():020d}-{os.getpid()}.{device}"
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


def _is_anybody_ahead(queue: Path, own: str, device: str) -> bool:
    with filelock.FileLock(queue / _GUARD):
        for path in sorted(queue.glob("[0-9]*.*")):
            if path.name >= own:
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
