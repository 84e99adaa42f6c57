"""What a piece of code takes from the machine, as the kernel counts it: bytes read, files opened, memory.

These counts stand in for seconds, which depend on what else the machine does.
"""

import io
import os
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


def bytes_read(read: Callable[[], object]) -> int:
    """Return the number of bytes that this process read from files during a call."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    empty = -count() + count()
    before = count()
    read()
    return count() - before - empty


def peak_memory() -> int:
    """Return the largest number of bytes of memory that this process has ever held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def requests() -> Iterator[Counter[str]]:
    """Count the calls that open, list or look up files, by their name."""
    made: Counter[str] = Counter()

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            made[name] += 1
            return call(*arguments, **options)

        return wrapper

    with ExitStack() as stack:
        for owner, name in (
            *((os, name) for name in ("open", "scandir", "listdir", "stat", "lstat")),
            (io, "open"),
        ):
            stack.enter_context(mock.patch.object(owner, name, counted(name, getattr(owner, name))))
        yield made
