"""One run at a time uses a device, and waiting runs start in the order of their arrival."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from actkit import extract
from actkit.config import Config
from actkit.demo import MODEL
from actkit.errors import StorageError
from actkit.extraction.loop.device_queue import device_name, hold_device
from actkit.extraction.monitoring.progress import Progress
from actkit.store.run_folder import read_status

HOLDER = """
import sys, time
from pathlib import Path
from actkit.extraction.loop.device_queue import hold_device
with hold_device(Path(sys.argv[1]), "cpu", lambda: None):
    print("mine", flush=True)
    time.sleep(600)
"""


class Visitor(threading.Thread):
    """Thread that holds a device, and signals while it waits."""

    def __init__(self, queue: Path, device: str, order: list[str], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.queue, self.device, self.order = queue, device, order
        self.waits, self.may_leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with hold_device(self.queue, self.device, self.waits.set):
            self.order.append(self.name)
            self.may_leave.wait()


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def test_first_come_first_served(tmp_path: Path) -> None:
    order: list[str] = []
    names = ["one", "two", "three"]
    visitors = []
    for name in names:
        visitors.append(Visitor(tmp_path / "queue", "cuda-0", order, name))
        until(lambda: order == ["one"] if len(visitors) == 1 else visitors[-1].waits.is_set())
    elsewhere = Visitor(tmp_path / "queue", "cuda-1", [], "elsewhere")
    until(lambda: elsewhere.order)
    assert not elsewhere.waits.is_set()
    for count, visitor in enumerate(visitors, start=1):
        until(lambda count=count: len(order) == count)
        assert order == names[:count]
        visitor.may_leave.set()
        visitor.join()
    elsewhere.may_leave.set()
    elsewhere.join()
    assert [path.name for path in (tmp_path / "queue").iterdir()] == ["guard.lock"]


@pytest.mark.parametrize("clock", [(2 * 10**18, 10**18), (-(10**18), -(10**18) + 1), (5, -5)])
def test_a_clock_set_back_does_not_change_the_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: tuple[int, int]
) -> None:
    order: list[str] = []
    monkeypatch.setattr(time, "time_ns", lambda: clock[0])
    first = Visitor(tmp_path, "cpu", order, "first")
    until(lambda: order == ["first"])
    monkeypatch.setattr(time, "time_ns", lambda: clock[1])
    second = Visitor(tmp_path, "cpu", order, "second")
    until(lambda: second.waits.is_set() or len(order) > 1)
    assert order == ["first"]
    for visitor in (first, second):
        visitor.may_leave.set()
        visitor.join()
    assert order == ["first", "second"]


def test_all_waits_for_every_device_and_blocks_later_runs(tmp_path: Path) -> None:
    order: list[str] = []
    first = Visitor(tmp_path, "cuda-1", order, "first")
    until(lambda: order == ["first"])
    everything = Visitor(tmp_path, "all", order, "everything")
    until(everything.waits.is_set)
    later = Visitor(tmp_path, "cuda-0", order, "later")
    until(later.waits.is_set)
    assert order == ["first"]
    first.may_leave.set()
    until(lambda: order == ["first", "everything"])
    everything.may_leave.set()
    until(lambda: order == ["first", "everything", "later"])
    later.may_leave.set()
    for visitor in (first, everything, later):
        visitor.join()


@pytest.mark.slow
def test_a_killed_process_releases_its_device(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        order: list[str] = []
        waiting = Visitor(tmp_path, "cpu", order, "waiting")
        until(waiting.waits.is_set)
        assert order == []
        holder.kill()
        until(lambda: order == ["waiting"])
        waiting.may_leave.set()
        waiting.join()
    finally:
        holder.kill()
        holder.communicate()


@pytest.mark.slow
def test_a_queued_run_reports_that_it_waits(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,language\nA man smiles.,english\n", encoding="utf-8")
    states: list[str] = []
    seen: list[str] = []

    def listen(event: Progress) -> None:
        if event.state == "queued":
            seen.append(read_status(tmp_path / "run")[0]["state"])
            ahead.may_leave.set()
        states.append(event.state)

    ahead = Visitor(tmp_path / "queue", "cpu", [], "ahead")
    until(lambda: ahead.order)
    extract(
        model=str(MODEL),
        data=str(tmp_path / "data.csv"),
        out=str(tmp_path / "run"),
        device="cpu",
        queue=tmp_path / "queue",
        listeners=[listen],
    )
    ahead.join()
    assert list(dict.fromkeys(states)) == ["queued", "loading", "running", "done"]
    assert set(seen) <= {"starting", "queued"}


def test_device_names() -> None:
    options = {"model": "m", "data": "d", "out": "o"}
    assert device_name(Config(**options, device="cpu")) == "cpu"
    assert device_name(Config(**options, device="cuda")) == "cuda-0"
    assert device_name(Config(**options, device="cuda:1")) == "cuda-1"
    assert device_name(Config(**options, device_map="auto")) == "all"


def test_a_queue_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with (
        pytest.raises(StorageError, match="cannot join the queue"),
        hold_device(tmp_path / "file" / "q", "cpu", print),
    ):
        raise AssertionError("nobody has a turn")
