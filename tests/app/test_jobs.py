"""Runs are processes of their own; what they are is seen from their folders, whoever looks."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from actkit import open_cube, verify
from actkit.config import Config
from actkit.demo import CAPTIONS, MODEL
from actkit.errors import InputError, LockedError
from actkit.store.run_folder import locked
from actkit.testing import contents, write_cube
from app import processes
from app.jobs import Jobs, Run, State, state_of
from app.settings import Settings

pytestmark = pytest.mark.slow


def asked(**options: Any) -> Config:
    """Ask for a run of some seconds, in windows of 16."""
    defaults = {"model": str(MODEL), "data": str(CAPTIONS), "out": "-", "device": "cpu", "limit": 64}
    return Config(**{**defaults, "window_samples": 16, **options})


def wait(jobs: Jobs, name: str, until: Callable[[Run], object]) -> Run:
    deadline = time.monotonic() + 120
    while not until(run := jobs[name]):
        assert time.monotonic() < deadline, (run, jobs.log(run))
        time.sleep(0.02)
    return run


def ended(run: Run) -> bool:
    return not run.state.is_active


def committed(run: Run) -> int:
    with suppress(Exception):
        return int(open_cube(run.path, partial=True).sizes["sample"])
    return 0


def test_a_run_is_done_and_another_process_sees_the_same(jobs: Jobs, settings: Settings) -> None:
    jobs.start("one", asked())
    other = Jobs(settings)  # as after a restart of the server
    assert other["one"].state.is_active
    run = wait(other, "one", ended)
    assert run.state is State.DONE
    assert run.progress == 1
    assert run.has_cube
    assert "done" in jobs.log(run)
    assert [job.name for job in jobs] == ["one"]
    assert open_cube(run.path).sizes["sample"] == 64
    with pytest.raises(InputError, match="nothing to resume"):
        jobs.resume("one")
    with pytest.raises(InputError, match="nothing to cancel"):
        jobs.cancel("one")


def test_two_runs_share_a_device_one_after_the_other(jobs: Jobs) -> None:
    long = asked(limit=2000)
    jobs.start("first", long)
    wait(jobs, "first", lambda run: run.status["state"] == "running")
    jobs.start("second", asked())
    wait(jobs, "second", lambda run: run.status["state"] == "queued")
    assert jobs["second"].state is State.QUEUED
    jobs.cancel("first")
    assert wait(jobs, "first", ended).state is State.CANCELLED
    assert wait(jobs, "second", ended).state is State.DONE


def test_cancelled_and_resumed_it_is_as_if_nothing_had_been(jobs: Jobs) -> None:
    jobs.start("whole", asked(limit=400))
    wait(jobs, "whole", ended)
    jobs.start("halves", asked(limit=400))
    wait(jobs, "halves", lambda run: committed(run) >= 16)
    with pytest.raises(LockedError, match="cancel it first"):
        jobs.delete("halves")
    with pytest.raises(InputError, match="nothing to resume"):
        jobs.resume("halves")
    jobs.cancel("halves")
    run = wait(jobs, "halves", ended)
    assert run.state is State.CANCELLED
    assert 16 <= committed(run) < 400
    jobs.resume("halves")
    run = wait(jobs, "halves", ended)
    assert run.state is State.DONE
    assert contents(run.path / "cube.zarr") == contents(jobs["whole"].path / "cube.zarr")
    assert not verify(run.path).faults


def test_a_killed_run_is_interrupted_at_once_and_goes_on(jobs: Jobs) -> None:
    jobs.start("killed", asked(limit=2000))
    run = wait(jobs, "killed", lambda run: committed(run) >= 16)
    os.kill(run.status["pid"], signal.SIGKILL)
    started = time.monotonic()
    assert wait(jobs, "killed", ended).state is State.INTERRUPTED
    assert time.monotonic() - started < 1
    assert jobs.resume("killed").state.is_active


def test_a_run_that_does_not_end_is_ended(jobs: Jobs, settings: Settings) -> None:
    hasty = Jobs(settings.model_copy(update={"cancel_seconds": 1}))
    hasty.start("stubborn", asked(limit=2000))
    run = wait(hasty, "stubborn", lambda run: run.status["state"] == "running")
    os.kill(run.status["pid"], signal.SIGSTOP)  # it hears nothing
    hasty.cancel("stubborn")
    assert wait(hasty, "stubborn", ended).state is State.CANCELLED


def test_what_cannot_run_says_why(jobs: Jobs) -> None:
    jobs.start("wrong", asked(text_column="nope"))
    run = wait(jobs, "wrong", ended)
    assert run.state is State.FAILED
    assert "has no column `nope`" in jobs.log(run)
    jobs.start("layers", asked(layers="99"))
    run = wait(jobs, "layers", ended)
    assert "the model has no layer 99" in jobs.log(run)


def test_names_and_limits(jobs: Jobs, settings: Settings) -> None:
    write_cube(settings.workspace / "brought")
    assert jobs["brought"].state is State.DONE
    with pytest.raises(InputError, match="brought already exists"):
        jobs.start("brought", asked())
    for name in ("../x", "a/b", ".x", ""):
        with pytest.raises(InputError):
            jobs.start(name, asked())
        with pytest.raises(InputError):
            jobs[name]
    small = settings.model_copy(update={"max_samples": 10, "max_batch": 2, "max_active": 0})
    with pytest.raises(InputError) as caught:
        Jobs(small).start("large", asked(limit=11, batch_size=3))
    assert [fault.where for fault in caught.value.faults] == ["runs", "limit", "batch_size"]
    assert not (settings.workspace / "large").exists()
    jobs.delete("brought")
    assert list(jobs) == []
    assert [path.name for path in settings.workspace.iterdir()] == ["data"]


def test_links_are_no_runs(jobs: Jobs, settings: Settings, tmp_path: Path) -> None:
    write_cube(tmp_path / "elsewhere")
    (settings.workspace / "link").symlink_to(tmp_path / "elsewhere")
    assert list(jobs) == []
    with pytest.raises(InputError, match="outside runs"):
        jobs.delete("link")
    assert (tmp_path / "elsewhere" / "cube.zarr").exists()


@pytest.mark.parametrize(
    ("status", "alive", "cancelled", "state"),
    [
        ("submitted", True, False, State.QUEUED),
        ("queued", True, False, State.QUEUED),
        ("starting", True, False, State.RUNNING),
        ("running", True, True, State.RUNNING),  # it is still ending
        ("done", False, True, State.DONE),
        ("failed", False, False, State.FAILED),
        ("submitted", False, False, State.FAILED),
        ("", False, False, State.FAILED),
        ("running", False, False, State.INTERRUPTED),
        ("queued", False, False, State.INTERRUPTED),
        ("interrupted", False, False, State.INTERRUPTED),
        ("interrupted", False, True, State.CANCELLED),
        ("submitted", False, True, State.CANCELLED),
    ],
)
def test_states(status: str, alive: bool, cancelled: bool, state: State) -> None:
    assert state_of({"state": status}, is_alive=alive, is_cancelled=cancelled) is state


def test_a_process_is_known_by_more_than_its_number(tmp_path: Path) -> None:
    process = psutil.Process()
    host = os.uname().nodename

    def alive(asked: Sequence[str] = ("python", "other"), **fields: Any) -> bool:
        status = {"state": "running", "pid": process.pid, "host": host, "updated": time.time(), **fields}
        return processes.is_alive(tmp_path, status, asked)

    assert not alive()
    assert alive(process.cmdline())  # started for it
    with locked(tmp_path):
        assert alive()
        assert not alive(state="done")
        assert not alive(pid=2**22 + 1)
        assert not alive(pid=process.ppid())
    assert not alive()
