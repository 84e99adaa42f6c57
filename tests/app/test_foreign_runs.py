"""Run folders that came from elsewhere: shown, resumed and cancelled without harm to anything else."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from actkit import open_cube
from actkit.cli import main
from actkit.errors import InputError
from actkit.testing import write_cube
from app import processes
from app.jobs import Jobs
from app.processes import command
from app.run_state import State
from app.settings import Settings
from app.views.run_list import RunList
from tests.app.run_config import N_SAMPLES, has_ended, is_running, run_config, wait
from tests.statuses import EVERY, HOST, put

HOLDER = """
import sys
from pathlib import Path
from actkit.store.run_folder import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with any run."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def claim(run: Path, pid: int, **fields: Any) -> None:
    """Have a run folder say that a process works on it."""
    status = {"state": "running", "pid": pid, "host": HOST, "updated": time.time() + 3600, **fields}
    (run / "status.json").write_text(json.dumps(status))


# the list


@pytest.mark.slow
def test_no_run_folder_takes_the_list_down(jobs: Jobs, settings: Settings) -> None:
    for number, name in enumerate(EVERY):
        put(settings.workspace / f"run{number}", name)
    write_cube(settings.workspace / "sound")
    runs = RunList(jobs, lambda name: None)
    runs.update()
    found = {run.name: run for run in jobs}
    assert found.pop("sound").state is State.DONE
    assert len(found) == len(EVERY) >= 35
    for run in found.values():
        assert run.state is State.UNREADABLE
        assert "status.json" in str(run.faults[0])


def test_a_run_that_cannot_be_read_is_shown_as_such_and_can_be_deleted(
    jobs: Jobs, settings: Settings
) -> None:
    put(settings.workspace / "waiting", "FIFO")
    runs = RunList(jobs, lambda name: None)
    runs.update()
    card = runs._cards["waiting"]
    assert "unreadable" in card._title.object
    assert "status cannot be read" in card._title.object
    assert "status.json: is not a regular file" in card._log.object
    jobs.delete("waiting")
    assert list(jobs) == []


def a_fifo(path: Path) -> None:
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 200 * 2**20)


def nested(path: Path) -> None:
    path.write_text("model: " + "[" * 50_000)


def odd(path: Path) -> None:
    path.write_text("model: [{a: 1}]\ndata: {b: 2}\nlayers: 2024-01-01\n")


@pytest.mark.slow
@pytest.mark.parametrize("make", [a_fifo, a_link, zeros, large, nested, odd, Path.mkdir])
@pytest.mark.parametrize("name", ["config.yaml", "log.txt", "output.txt", "cube.zarr", ".lock", ".cancelled"])
def test_nothing_else_beside_a_cube_does_either(
    jobs: Jobs, settings: Settings, make: Callable[[Path], None], name: str
) -> None:
    run = settings.workspace / "odd"
    run.mkdir()
    claim(run, 2**22 + 1, state="failed")
    make(run / name)
    runs = RunList(jobs, lambda name: None)
    runs.update()
    (found,) = jobs
    assert "root:" not in jobs.log(found)
    refused = name == "config.yaml" and make is not odd
    assert bool(found.faults) == refused
    if refused:
        with pytest.raises(InputError, match=r"config\.yaml"):
            jobs.resume("odd")


# who is ended


@pytest.mark.parametrize("state", ["running", "submitted", "queued", "starting"])
def test_a_process_that_only_a_status_names_is_never_ended(
    jobs: Jobs, settings: Settings, sleeper: subprocess.Popen[bytes], state: str
) -> None:
    run = write_cube(settings.workspace / "received")
    (run / ".lock").touch()
    claim(run, sleeper.pid, state=state)
    assert not jobs["received"].state.is_active
    with pytest.raises(InputError, match="nothing to cancel"):
        jobs.cancel("received")
    assert sleeper.poll() is None
    jobs.delete("received")


@pytest.mark.parametrize("whose", ["init", "server", "parent"])
def test_neither_the_server_nor_init_is_ended(jobs: Jobs, settings: Settings, whose: str) -> None:
    run = write_cube(settings.workspace / "received")
    claim(run, {"init": 1, "server": os.getpid(), "parent": os.getppid()}[whose])
    with pytest.raises(InputError, match="nothing to cancel"):
        jobs.cancel("received")


@pytest.mark.slow
def test_who_holds_a_run_but_was_not_started_here_is_shown_and_not_ended(
    jobs: Jobs, settings: Settings
) -> None:
    run = write_cube(settings.workspace / "notebook")
    holding = [sys.executable, "-c", HOLDER, str(run)]
    with subprocess.Popen(holding, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert jobs["notebook"].state is State.RUNNING
        with pytest.raises(InputError, match=f"was not started by the app; it is process {holder.pid}"):
            jobs.cancel("notebook")
        assert holder.poll() is None
        holder.kill()


def test_a_status_that_names_another_run_of_ours_ends_neither(light_runs: Jobs, settings: Settings) -> None:
    light_runs.start("victim", run_config())
    victim = wait(light_runs, "victim", is_running)
    run = write_cube(settings.workspace / "received")
    (run / ".lock").touch()
    claim(run, victim.status["pid"])
    with pytest.raises(InputError, match="nothing to cancel"):
        light_runs.cancel("received")
    assert light_runs["victim"].state is State.RUNNING
    assert psutil.Process(victim.status["pid"]).is_running()
    light_runs.cancel("victim")
    assert wait(light_runs, "victim", has_ended).state is State.CANCELLED


def test_a_run_is_cancelled_before_it_holds_its_folder_and_by_another_server_after_that(
    light_runs: Jobs, settings: Settings
) -> None:
    light_runs.start("early", run_config())
    light_runs.cancel("early")
    assert wait(light_runs, "early", has_ended).state is State.CANCELLED
    light_runs.resume("early")
    wait(light_runs, "early", is_running)
    Jobs(settings).cancel("early")
    assert wait(light_runs, "early", has_ended).state is State.CANCELLED


def test_a_heartbeat_of_next_year_keeps_no_run_alive(tmp_path: Path) -> None:
    status = {"state": "running", "pid": 1, "host": "elsewhere", "updated": time.time() + 1e7}
    assert not processes.is_alive(tmp_path, status, [])
    assert processes.is_alive(tmp_path, status | {"updated": time.time() - 60}, [])
    assert not processes.is_alive(tmp_path, status | {"updated": time.time() - 3600}, [])


def test_a_process_of_another_user_is_known_by_its_heartbeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(processes, "is_started_as", denied)
    status = {"state": "running", "pid": os.getpid(), "host": HOST, "updated": time.time()}
    assert processes.is_alive(tmp_path, status, [])
    assert not processes.is_alive(tmp_path, status | {"updated": time.time() - 3600}, [])


# resuming


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def extract_as_the_app(run: Path, settings: Settings) -> int:
    """Run the app's command for a run folder in this process."""
    _, _, _, *arguments = command(run, settings.queue)
    return main(arguments)


@pytest.mark.slow
def test_a_copied_run_continues_where_it_is(settings: Settings, half_run: Path, copied: Path) -> None:
    before = tree(half_run)
    assert extract_as_the_app(copied, settings) == 0
    assert open_cube(copied).sizes["sample"] == N_SAMPLES
    assert tree(half_run) == before


@pytest.mark.slow
def test_a_renamed_workspace_stays_renamed(settings: Settings, copied: Path) -> None:
    config = copied / "config.yaml"
    config.write_text(re.sub(r"(?m)^out: .*$", f"out: {copied}", config.read_text()))
    moved = settings.model_copy(update={"workspace": settings.workspace.with_name("moved")})
    settings.workspace.rename(moved.workspace)
    assert extract_as_the_app(moved.workspace / copied.name, moved) == 0
    assert Jobs(moved)[copied.name].state is State.DONE
    assert not settings.workspace.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["status.json", "log.txt", "cube.zarr/norm/x", "status.json.partial", "output.txt", ".cancelled"]
)
def test_resuming_writes_through_no_link(
    light_runs: Jobs, settings: Settings, copied: Path, name: str
) -> None:
    def resume_in_the_app() -> None:
        light_runs.resume("copied")
        wait(light_runs, "copied", lambda run: is_running(run) or has_ended(run))
        light_runs.cancel("copied")
        wait(light_runs, "copied", has_ended)

    outside = settings.workspace.parent / "outside"
    outside.write_text("mine")
    for resume in (resume_in_the_app, lambda: extract_as_the_app(copied, settings)):
        (copied / name).unlink(missing_ok=True)
        (copied / name).symlink_to(outside)
        with suppress(InputError):  # resuming may be refused
            resume()
        assert outside.read_text() == "mine"
