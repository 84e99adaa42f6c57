"""A process that writes cubes in forks of its own, each of which the kernel ends at another step.

It runs no thread and has imported all that they need, so that a trial takes milliseconds.
Give it a size of `subject.SIZES`, and an empty folder; it prints a line of JSON for each trial.
"""

import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from actkit.store.layout import CUBE
from actkit.store.writer import CubeWriter
from tests.disk import watched
from tests.store.subject import Subject, subject

STRIDES = {"small": 3, "everything": 1}  # of the steps


def begin(act: Callable[[], object]) -> int:
    """Do something in a fork, and return its number."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with watched():
                act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def fork(act: Callable[[], object]) -> int:
    """Do something in a fork, and return how it ended."""
    return ended(begin(act))


def ended(pid: int) -> int:
    """Wait for a fork, and return how it ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write_all(subject: Subject, run: Path, kill_at: int, reports: Connection | None = None) -> None:
    """Write all windows, on a disk that ends the process at a step; or tell how many steps there are."""
    with watched() as disk:
        writer = CubeWriter(run / CUBE, subject.numbers.plan)
        disk.kill(kill_at)
        for window in subject.windows:
            writer.write(window, subject.numbers.part(window))
        if reports is not None:
            reports.send(len(disk.steps))


def main(size: str, folder: Path) -> None:
    receive, send = multiprocessing.Pipe()
    made = folder / "made"
    made.mkdir()
    # in a fork too: it starts threads
    maker = begin(lambda: send.send(subject(size, made)))
    tried: Subject = receive.recv()  # before the maker ends: it may be more than a pipe holds
    assert ended(maker) == 0
    run = tried.copy(0, folder / "run")
    assert fork(lambda: write_all(tried, run, 10**9, send)) == 0
    last = receive.recv()
    for at in sorted({*range(1, last, STRIDES[size]), last}):
        tried.copy(0, run)
        how = fork(lambda at=at: write_all(tried, run, at))
        committed = sum(name in ("c.0", "c.1", "c.2") for name in os.listdir(run / CUBE / "committed"))
        rerun = fork(lambda windows=committed: check(tried, run, windows))
        print(json.dumps({"at": at, "ended": how, "committed": committed, "rerun": rerun}), flush=True)


def check(tried: Subject, run: Path, committed: int) -> None:
    if committed in tried.windows:
        tried.check_safe(run, committed)
    assert tried.check_rerun(run) == list(tried.windows)[committed:]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
