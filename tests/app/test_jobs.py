"""Runs are separate processes; their states are read from their folders, by any server."""

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import actkit
from actkit import open_cube, verify
from actkit.errors import InputError, LockedError
from actkit.extraction.loop.device_queue import hold_device
from actkit.store.layout import CUBE
from actkit.store.run_folder import locked
from actkit.testing import contents, write_cube
from app import processes
from app.jobs import Jobs
from app.run_state import Run, State, state_of
from app.settings import Settings
from tests.app.run_config import N_SAMPLES, has_ended, is_running, run_config, wait


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of the cube of a run that nothing interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    actkit.extract(run_config(out=str(run)), listeners=[])
    return contents(run / CUBE)


def committed_samples(run: Run) -> int:
    flags = [path.name.removeprefix("c.") for path in (run.path / CUBE / "committed").glob("c.*")]
    return 16 * sum(flag.isdigit() for flag in flags)  # a kill may leave c.….partial


@pytest.mark.slow
def test_a_run_waits_for_its_device_and_every_server_sees_the_same(
    jobs: Jobs, settings: Settings, whole: dict[str, bytes]
) -> None:
    with hold_device(settings.queue, "cpu", lambda: None):
        jobs.start("run", run_config())
        other = Jobs(settings)  # as after a restart of the server
        assert other["run"].state.is_active
        wait(other, "run", lambda run: run.status["state"] == "queued")
        assert other["run"].state is State.QUEUED
        with pytest.raises(LockedError, match="cancel it first"):
            other.delete("run")
        with pytest.raises(InputError, match="nothing to resume"):
            other.resume("run")
    run = wait(other, "run", has_ended)
    assert run.state is State.DONE
    assert (run.progress, run.has_cube) == (1, True)
    assert "done" in other.log(run)
    assert [run.name for run in other] == ["run"]
    assert open_cube(run.path).sizes["sample"] == N_SAMPLES
    assert contents(run.path / CUBE) == whole
    for act in (other.resume, other.cancel):
        with pytest.raises(InputError, match="nothing to"):
            act("run")


@pytest.mark.slow
def test_a_cancelled_run_keeps_what_it_committed(jobs: Jobs) -> None:
    jobs.start("run", run_config(limit=2000))
    wait(jobs, "run", lambda run: committed_samples(run) >= 16)
    jobs.cancel("run")
    run = wait(jobs, "run", has_ended)
    assert run.state is State.CANCELLED
    assert 16 <= committed_samples(run) < 2000
    assert open_cube(run.path, partial=True).sizes["sample"] == committed_samples(run)


@pytest.mark.slow
def test_a_resumed_run_ends_as_if_it_had_never_stopped(
    jobs: Jobs, copied: Path, whole: dict[str, bytes]
) -> None:
    run = jobs["copied"]
    assert run.state is State.INTERRUPTED
    assert 16 <= committed_samples(run) < N_SAMPLES
    jobs.resume("copied")
    assert wait(jobs, "copied", has_ended).state is State.DONE
    assert contents(copied / CUBE) == whole
    assert not verify(copied).faults


@pytest.mark.slow
def test_a_killed_run_is_interrupted_without_waiting_for_its_heartbeat(light_runs: Jobs) -> None:
    light_runs.start("killed", run_config())
    pid = wait(light_runs, "killed", is_running).status["pid"]
    os.kill(pid, signal.SIGKILL)
    while psutil.pid_exists(pid):  # until it is reaped
        time.sleep(0.01)
    assert light_runs["killed"].state is State.INTERRUPTED
    assert light_runs.resume("killed").state.is_active
    wait(light_runs, "killed", is_running)


@pytest.mark.slow
def test_a_run_that_ignores_its_cancellation_is_killed(light_runs: Jobs, settings: Settings) -> None:
    impatient = Jobs(settings.model_copy(update={"cancel_seconds": 1}))
    impatient.start("stubborn", run_config())
    run = wait(impatient, "stubborn", is_running)
    os.kill(run.status["pid"], signal.SIGSTOP)
    impatient.cancel("stubborn")
    assert wait(impatient, "stubborn", has_ended).state is State.CANCELLED
    assert impatient.resume("stubborn").state.is_active
    wait(impatient, "stubborn", is_running)


def test_a_process_that_has_no_arguments_yet_is_known_as_a_child(
    light_runs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as between the moment in which the kernel closes the files of a new program, and that in which it has
    # copied its arguments
    monkeypatch.setattr(psutil.Process, "cmdline", lambda _: [])
    assert light_runs.start("run", run_config()).state.is_active
    light_runs.cancel("run")
    assert wait(light_runs, "run", has_ended).state is State.CANCELLED


@pytest.mark.nightly
def test_runs_that_are_killed_or_stopped_are_resumed(jobs: Jobs, settings: Settings) -> None:
    impatient = Jobs(settings.model_copy(update={"cancel_seconds": 1}))
    impatient.start("run", run_config(limit=2000))
    for number, state in ((signal.SIGKILL, State.INTERRUPTED), (signal.SIGSTOP, State.CANCELLED)):
        run = wait(impatient, "run", is_running)
        os.kill(run.status["pid"], number)
        if number == signal.SIGSTOP:
            impatient.cancel("run")
        assert wait(impatient, "run", has_ended).state is state
        impatient.resume("run")
    assert wait(impatient, "run", has_ended).state is State.DONE


@pytest.mark.nightly
def test_two_runs_share_a_device_one_after_the_other(jobs: Jobs) -> None:
    jobs.start("first", run_config(limit=2000))
    wait(jobs, "first", is_running)
    jobs.start("second", run_config())
    wait(jobs, "second", lambda run: run.status["state"] == "queued")
    jobs.cancel("first")
    assert wait(jobs, "first", has_ended).state is State.CANCELLED
    assert wait(jobs, "second", has_ended).state is State.DONE


@pytest.mark.slow
def test_the_log_says_why_a_run_was_refused(jobs: Jobs) -> None:
    jobs.start("wrong", run_config(text_column="nope", layers="99"))
    run = wait(jobs, "wrong", has_ended)
    assert run.state is State.FAILED
    assert "has no column `nope`" in jobs.log(run)
    assert "the model has no layer 99" in jobs.log(run)


def test_names_and_limits(jobs: Jobs, settings: Settings) -> None:
    write_cube(settings.workspace / "brought")
    assert jobs["brought"].state is State.DONE
    with pytest.raises(InputError, match="brought already exists"):
        jobs.start("brought", run_config())
    for name in ("../x", "a/b", ".x", ""):
        with pytest.raises(InputError):
            jobs.start(name, run_config())
        with pytest.raises(InputError):
            jobs[name]
    small = settings.model_copy(update={"max_samples": 10, "max_batch": 2, "max_active": 0})
    with pytest.raises(InputError) as caught:
        Jobs(small).start("large", run_config(limit=11, batch_size=3))
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
