"""Runs in parts in the list of runs: one card each, whose state is that of all parts."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actkit.errors import InputError
from actkit.store.parts import Part
from actkit.testing import write_cube
from app.jobs import Jobs
from app.run_state import State
from app.settings import Settings
from app.views.run_list import RunList
from tests.statuses import HOST

HOLDER = """
import sys
from pathlib import Path
from actkit.store.parts import Part, locked_part

with locked_part(Path(sys.argv[1]), Part.parse("2/3")):
    print("held", flush=True)
    sys.stdin.read()
"""


def report(run: Path, number: int, **fields: Any) -> None:
    folder = Part(3, number).folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    counts = {"samples": 4, "committed": 4, "total_samples": 4, "run_samples": 12}
    status = {"pid": 2**22 + 1, "host": HOST, "updated": time.time(), "state": "done", **counts, **fields}
    (folder / "status.json").write_text(json.dumps({**status, "languages": {"english": 4}}))
    (folder / "log.txt").write_text(f"log of part {number}")


@pytest.fixture
def run(settings: Settings) -> Path:
    return write_cube(settings.workspace / "parts", n_samples=12, window=4, windows=[0])


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that computes the second part, as far as one can see from outside."""
    command = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (["done", "done", "done"], State.DONE),
        (["done"], State.INTERRUPTED),
        (["done", "failed"], State.FAILED),
        (["done", "running"], State.INTERRUPTED),  # its process has ended
    ],
)
def test_the_state_of_all_parts(jobs: Jobs, run: Path, states: list[str], state: State) -> None:
    for number, each in enumerate(states, start=1):
        report(run, number, state=each)
    shown = jobs["parts"]
    assert shown.state is state
    assert shown.progress == pytest.approx(len(states) / 3)
    assert shown.status["languages"] == {"english": 4 * len(states)}
    assert jobs.log(shown) == f"log of part {len(states)}"


def test_a_part_that_runs_here(jobs: Jobs, run: Path, holder: subprocess.Popen[str]) -> None:
    report(run, 1)
    report(run, 2, state="running", pid=holder.pid, samples=2, committed=0, samples_per_second=3.0)
    shown = jobs["parts"]
    assert shown.state is State.RUNNING
    assert (shown.status["samples"], shown.status["total_samples"]) == (6, 12)
    assert shown.status["eta_seconds"] == 2.0
    with pytest.raises(InputError, match="was not started by the app"):
        jobs.cancel("parts")
    with pytest.raises(InputError, match="is running"):
        jobs.resume("parts")
    cards = RunList(jobs, lambda name: None)
    cards.update()
    assert not cards._cards["parts"]._delete.visible
    assert "6 of 12 samples" in cards._cards["parts"]._figures.object


def test_a_part_that_runs_elsewhere(jobs: Jobs, run: Path) -> None:
    report(run, 1, state="running", host="elsewhere")
    assert jobs["parts"].state is State.RUNNING
    report(run, 1, state="running", host="elsewhere", updated=time.time() - 600)
    assert jobs["parts"].state is State.INTERRUPTED


def test_a_sealed_run_is_done(jobs: Jobs, run: Path) -> None:
    report(run, 1, state="failed")
    status = {"pid": os.getpid(), "host": HOST, "updated": time.time() + 1, "state": "done"}
    (run / "status.json").write_text(json.dumps(status))
    assert jobs["parts"].state is State.DONE


def test_hostile_parts_do_no_harm(jobs: Jobs, run: Path, tmp_path: Path) -> None:
    (run / "parts").mkdir()
    (run / "parts" / "1-of-2").symlink_to(tmp_path)
    (run / "parts" / "9-of-2").mkdir()
    (run / "parts" / "x").write_text("no folder")
    (run / "parts" / "2-of-2").mkdir()
    (run / "parts" / "2-of-2" / "status.json").write_text('{"state": 7}')
    assert jobs["parts"].state is State.DONE  # as without parts
