"""Writers of the same windows at once, some of which the kernel ends at a step of theirs.

It runs no thread, as `killed_writers` does. Give it an empty folder, the number of rounds, a seed, and
"locks" or "none"; it prints a line of JSON for each round: what of the committed windows is not as an
undisturbed run writes it.
"""

import fcntl
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from contextlib import ExitStack
from pathlib import Path

from actkit import verify
from actkit.store.layout import CUBE
from actkit.store.shared_writer import SharedWriter
from actkit.store.writer import CubeWriter
from tests.disk import watched
from tests.store.killed_writers import ended, fork
from tests.store.subject import Subject, subject

WRITERS = (2, 3, 4)
STEPS = 120  # of which a writer takes more, unless others are faster: a window of all variables takes 207


def begin(tried: Subject, run: Path, seed: int, kill_at: int | None = None, *, locks: bool = True) -> int:
    """Let a process write all windows that are left, in an order of its own, and return its number.

    With ``kill_at``, the kernel ends it at that step. Without locks, each writer obtains every lock, as on a
    file system that several machines share.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with ExitStack() as stack:
                if kill_at is not None:
                    stack.enter_context(watched()).kill(kill_at)
                if locks:
                    writer = CubeWriter(run / CUBE, tried.numbers.plan)
                else:
                    fcntl.flock = lambda *_: None  # type: ignore[assignment]
                    writer = SharedWriter(run / CUBE, tried.numbers.plan, tried.windows)
                left = writer.recover()
                random.Random(seed).shuffle(left)
                for window in left:
                    writer.write(window, tried.numbers.part(window))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def torn(tried: Subject, run: Path) -> list[str]:
    """Return the files of committed windows that are missing, or not what they should be."""
    flags = [tried.whole.get(f"{CUBE}/committed/c.{window}") for window in tried.windows]
    wrong = []
    for window in tried.windows:
        flag = run / CUBE / "committed" / f"c.{window}"
        if not flag.exists() or flag.read_bytes() != flags[window]:
            continue
        for name, content in tried.of_window(window).items():
            path = run / name
            if not path.exists() or path.read_bytes() != content:
                wrong.append(name)
    return wrong


def judged(tried: Subject, run: Path, report: Path) -> None:
    """Write down what is wrong with what was committed, and with what a rerun makes of it."""
    verdict = {"torn": torn(tried, run), "faults": [str(fault) for fault in verify(run).faults], "rerun": ""}
    try:
        tried.check_rerun(run)
    except Exception as error:
        verdict["rerun"] = f"{type(error).__name__}: {error}"
    report.write_text(json.dumps(verdict))


def main(folder: Path, rounds: int, seed: int, locks: bool) -> None:
    receive, send = multiprocessing.Pipe()
    made = folder / "made"
    made.mkdir()
    maker = os.fork()
    if maker == 0:
        send.send(subject("everything", made))
        os._exit(0)
    tried: Subject = receive.recv()
    ended(maker)
    run = tried.copy(0, folder / "run")
    chance = random.Random(seed)
    for number in range(rounds):
        # some rounds begin where windows are committed
        tried.copy(chance.choice([0, 0, 1, 2]), run)
        count = chance.choice(WRITERS)
        doomed = chance.sample(range(count), chance.randint(1, count))
        writers = []
        for each in range(count):
            kill_at = chance.randint(1, STEPS) if each in doomed else None
            writers.append(begin(tried, run, chance.randrange(2**32), kill_at, locks=locks))
            time.sleep(chance.uniform(0, 0.05))
        codes = [ended(pid) for pid in writers]
        killed = codes.count(-signal.SIGKILL)
        report = folder / "report.json"
        assert fork(lambda: judged(tried, run, report)) == 0  # noqa: B023
        verdict = json.loads(report.read_text())
        failed = sum(code > 0 for code in codes)
        summary = {"round": number, "writers": len(writers), "killed": killed, "failed": failed}
        print(json.dumps({**summary, **verdict}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "locks")
