"""What is asked of the extractions that are ended and started again, and how far one has come."""

import fcntl
import os
import signal
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier
from typing import Any

from actkit import extract
from actkit.errors import LockedError
from actkit.extraction import run as extraction_run
from actkit.extraction.monitoring.progress import Progress
from actkit.store.layout import CUBE
from actkit.store.writer import CubeWriter

WINDOWS = 15
SENTENCES = {"english": "He reads a long book. ", "arabic": "الطبيبةُ تقرأ كتابًا. "}

Options = dict[str, Any]


def write_prompts(path: Path, count: int) -> Path:
    """Write so many prompts, of one to four sentences, in two languages."""
    rows = [
        f"s{number},{language},{SENTENCES[language] * (1 + number % 4)},{('male', 'female')[number % 2]}"
        for number in range(count // len(SENTENCES))
        for language in SENTENCES
    ]
    path.write_text("sample_id,language,text,gender\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def command(options: Options, run: Path) -> list[str]:
    """Return what the command line takes for the same extraction."""
    given = {**options, "out": run}
    return ["extract", *(f"--{name.replace('_', '-')}={value}" for name, value in given.items())]


def flags(run: Path) -> int:
    """Return how many windows are committed."""
    names = (path.name.removeprefix("c.") for path in (run / CUBE / "committed").glob("c.*"))
    return sum(name.isdigit() for name in names)  # a kill may leave c.….partial


class Stop:
    """Listener that stops its process, as the kernel does it, when a window has been committed."""

    has_stopped = False

    def __call__(self, event: Progress) -> None:
        if event.committed and not self.has_stopped:
            self.has_stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)


def is_stopped(pid: int) -> bool:
    """Return whether the kernel has stopped every thread of a process."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):  # a thread has just ended, so the process is running
        return False
    return {stat.rpartition(") ")[2][0] for stat in stats} == {"T"}


# the command line, with windows that take a while
SLOW = """
import sys, time
from actkit.cli import main
from actkit.store.writer import CubeWriter

write = CubeWriter.write

def write_slowly(*arguments):
    time.sleep(0.3)
    return write(*arguments)

CubeWriter.write = write_slowly
sys.exit(main())
"""

_write = CubeWriter.write


def delay_writes(seconds: float) -> None:
    """Make every window of this process take longer by some seconds, in all later calls."""

    def delayed(writer: CubeWriter, *arguments: Any) -> int:
        time.sleep(seconds)
        return _write(writer, *arguments)

    CubeWriter.write = delayed  # type: ignore[method-assign]


REFUSED = 3


def extract_part(options: Options, run: Path, part: str, locks: bool) -> None:
    """Compute a part; without locks, on a file system where each machine obtains every lock."""
    if not locks:
        fcntl.flock = lambda *_: None  # type: ignore[assignment]
    try:
        extract(**options, out=str(run), part=part, listeners=[])
    except LockedError:
        sys.exit(REFUSED)


def extract_together(barrier: Barrier, options: Options) -> None:
    """Extract, but wait for another process before taking the lock; exit with ``REFUSED`` without it."""
    locked = extraction_run.locked

    def at_once(run: Path) -> AbstractContextManager[None]:
        barrier.wait(240)
        return locked(run)

    extraction_run.locked = at_once  # type: ignore[attr-defined]
    try:
        extract(**options, listeners=[])
    except LockedError:
        sys.exit(REFUSED)
    except BaseException:
        barrier.abort()  # the other need not wait
        raise
