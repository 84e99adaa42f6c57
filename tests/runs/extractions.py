"""What is asked of the extractions that are ended and started again, and how far one has come."""

import sys
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Barrier
from typing import Any

from actkit import extract
from actkit.errors import LockedError
from actkit.extraction import run as extraction_run
from actkit.store.layout import CUBE

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


REFUSED = 3


def extract_together(barrier: Barrier, options: Options) -> None:
    """Extract, but wait for another process before taking the lock; exit with ``REFUSED`` without it."""
    locked = extraction_run.locked

    def at_once(run: Path) -> AbstractContextManager[None]:
        barrier.wait(60)
        return locked(run)

    extraction_run.locked = at_once  # type: ignore[attr-defined]
    try:
        extract(**options, listeners=[])
    except LockedError:
        sys.exit(REFUSED)
    except BaseException:
        barrier.abort()  # the other need not wait
        raise
