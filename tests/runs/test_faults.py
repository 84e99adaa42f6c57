"""Whatever goes wrong beside a run, it ends with its own error, and a rerun makes the cube it should."""

import errno
import itertools
import json
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actkit import extract, verify
from actkit.cli import main
from actkit.errors import InputError, StorageError
from actkit.extraction import run as extraction_run
from actkit.extraction.loop import data_loader, local_engine
from actkit.extraction.monitoring.progress import Bar, Progress
from actkit.store.layout import CUBE
from actkit.store.run_folder import LOG, STATUS, read_status
from actkit.store.shard_files import ShardWriter
from actkit.store.writer import CubeWriter
from actkit.testing import contents
from tests.disk import KINDS, watched
from tests.runs.extractions import REFUSED, WINDOWS, Options, command, extract_together, flags
from tests.trials import trials

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The place of a run folder that is not there yet."""
    return tmp_path / "run"


# the disk


@pytest.mark.parametrize("per_kind", [1, pytest.param(4, marks=pytest.mark.nightly)])
def test_an_error_of_the_disk_at_steps_of_a_whole_run(
    run: Path, options: Options, undisturbed: dict[str, bytes], per_kind: int
) -> None:
    asked: Options = {**options, "out": str(run), "listeners": []}
    with (
        watched(CUBE) as disk,
        trials("I/O error at steps of each kind of a whole extraction, its creation included") as trial,
    ):
        extract(**asked)
        steps = list(disk.steps)
        kinds = [kind for kind, _ in steps]
        assert set(kinds) >= {"open", "write", "fsync", "rename"}
        # from the creation, where files are opened and removed, to the last windows
        order = [kind for kind in KINDS if kind in kinds] * per_kind
        for number, kind in enumerate(order):
            after = len(kinds) * number // len(order) if kind != "unlink" else 0
            at = 1 + kinds.index(kind, after)
            shutil.rmtree(run)
            with trial(steps[at - 1]):
                disk.fail(at, OSError(errno.EIO, "Input/output error"))
                with pytest.raises(StorageError, match=r"Input/output error; committed windows are safe"):
                    extract(**asked)
                disk.mend()
                assert read_status(run)[0]["state"] == "failed"
                assert not (run / CUBE).exists() or verify(run).ok
                extract(**asked)
                assert contents(run / CUBE) == undisturbed


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that can be remounted to take no writes, even those of root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_read_only_folder_is_refused_before_the_model_is_loaded(
    read_only: Path,
    finished: Path,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(local_engine, "load_model", load)
    begun, new = read_only / "begun", read_only / "new"
    shutil.copytree(finished, begun)
    (begun / CUBE / "committed" / "c.3").unlink()
    before = contents(read_only)
    subprocess.run(["mount", "-o", "remount,ro", read_only], check=True)
    with trials("a folder on a disk that is mounted read-only: refused before the model is loaded") as trial:
        for run, where in ((begun, begun), (new, read_only)):
            with trial(run.name):
                what = (
                    f"out {run}: {where} cannot be written (choose another folder, or change its permissions)"
                )
                with pytest.raises(InputError) as caught:
                    extract(**options, out=str(run), listeners=[])
                assert [str(fault) for fault in caught.value.faults] == [what]
                assert main(command(options, run)) == 1
                assert what in capsys.readouterr().err
                assert contents(read_only) == before


# the clock


class Clock:
    """A clock that is set anew each time that somebody looks."""

    def __init__(self, *offsets: float) -> None:
        self._time = time.time
        self._offsets = itertools.cycle(offsets)
        self.looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self._time() + next(self._offsets)


CLOCKS = {
    "back and forth, by hours and by years": (0, -3600, 86400, -1e9, 3e8, -0.5, 1),
    "always further back": tuple(-1e4 * step for step in range(10_000)),
    "always further on": tuple(1e4 * step for step in range(10_000)),
}


class StoppedError(Exception):
    """The end of a run that a listener wants."""


def test_a_clock_that_jumps_changes_nothing_but_what_tells_the_time(
    run: Path, options: Options, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Options = {**options, "out": str(run)}
    with trials("the clock is set during a run and its rerun: rates, ETA, status, bytes") as trial:
        for name, offsets in CLOCKS.items():
            shutil.rmtree(run, ignore_errors=True)
            sessions: list[list[Progress]] = [[], []]
            with trial(name), monkeypatch.context() as patched:
                clock = Clock(*offsets)
                patched.setattr("time.time", clock)
                patched.setattr("tqdm.std.time", clock)
                began = time.monotonic()
                with pytest.raises(StoppedError):
                    extract(**asked, listeners=[Bar(), sessions[0].append, stop])
                assert 20 < 4 * flags(run) < 60
                extract(**asked, listeners=[Bar(), sessions[1].append])
                assert clock.looks > 20
                assert contents(run / CUBE) == undisturbed
                passed = time.monotonic() - began
                for events in sessions:
                    check_rates(events, passed)
                status = json.loads((run / STATUS).read_text())
                assert (status["state"], status["samples"], status["committed"]) == ("done", 60, 60)


def stop(event: Progress) -> None:
    if event.committed > 20:
        raise StoppedError


def check_rates(events: list[Progress], passed: float) -> None:
    """Assert that rates are sensible, and that no session took longer than the seconds that passed."""
    running = [event for event in events if event.state != "loading"]
    seconds = [event.seconds for event in running]
    assert seconds == sorted(seconds)
    assert 0 < seconds[-1] < passed
    for event in running:
        for number in (event.samples_per_second, event.tokens_per_second, event.eta_seconds or 0):
            assert math.isfinite(number)
            assert 0 <= number < 1e7


# threads


class BrokenError(Exception):
    """What no code of ours raises or knows."""


def raise_at(call: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that raises at one of its calls."""
    calls = itertools.count(1)

    def broken(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise BrokenError(f"call {call}")
        return function(*arguments, **options)

    return broken


THREADS = {
    "read": (data_loader, "batch_prompts", WINDOWS),
    "compress": (ShardWriter, "_compress", WINDOWS * (3 + 1)),
    "write": (CubeWriter, "write", WINDOWS),
}


# in two of these calls each, and in all of them at night
CALLS = [(thread, at) for thread, (_, _, calls) in THREADS.items() for at in (1, 2, calls // 2, calls)]
SOME = {
    ("read", 1),
    ("read", WINDOWS),
    ("compress", 2),
    ("compress", 2 * WINDOWS),
    ("write", 2),
    ("write", WINDOWS),
}


@pytest.mark.parametrize(
    ("thread", "at"),
    [pytest.param(*call, marks=() if call in SOME else pytest.mark.nightly) for call in CALLS],
)
def test_a_thread_that_raises_ends_the_run_with_its_error(
    run: Path,
    options: Options,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    thread: str,
    at: int,
) -> None:
    monkeypatch.setattr(extraction_run, "compression_threads", lambda: 3)
    owner, name, _ = THREADS[thread]
    events: list[Progress] = []
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, raise_at(at, getattr(owner, name)))
        with pytest.raises(BrokenError, match=f"call {at}"):
            extract(**options, out=str(run), listeners=[events.append])
    # no thread goes on, and the model does not compute what nobody will write
    threads = {one.name for one in threading.enumerate() if one.name.startswith("actkit")}
    assert not {name for name in threads if not name.startswith("actkit-read")}  # which the process keeps
    assert events[-1].state == read_status(run)[0]["state"] == "failed"
    assert events[-1].samples - events[-1].committed <= 3 * 4
    assert f"BrokenError: call {at}" in (run / LOG).read_text()
    assert verify(run).ok
    extract(**options, out=str(run), listeners=[])
    assert contents(run / CUBE) == undisturbed


# two at once


@pytest.mark.parametrize(
    "count", [5, pytest.param(50, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])]
)
def test_of_two_writers_that_start_together_one_is_refused(
    tmp_path: Path, options: Options, server: Any, count: int
) -> None:
    short: Options = {**options, "limit": 8}
    extract(**short, out=str(tmp_path / "alone"), listeners=[])
    alone = contents(tmp_path / "alone" / CUBE)
    with trials("two processes, released by a barrier at the lock of the same folder") as trial:
        for number in range(count):
            run = tmp_path / str(number)
            with trial(number):
                barrier = server.Barrier(2)
                asked = barrier, {**short, "out": str(run)}
                both = [server.Process(target=extract_together, args=asked) for _ in range(2)]
                for process in both:
                    process.start()
                for process in both:
                    process.join()
                assert sorted(process.exitcode for process in both) == [0, REFUSED]
                assert contents(run / CUBE) == alone
