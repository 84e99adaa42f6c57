"""A run is deleted with all that it wrote, unless a process writes it; nothing else of the workspace is."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actkit.errors import InputError, LockedError, StorageError
from actkit.testing import synthetic, write_cube
from app.jobs import Jobs
from app.run_state import State
from app.settings import Settings
from app.views.run_form import ExtractForm
from app.views.run_list import RunList
from tests.app.run_config import run_config

WRITER = """
import sys
from pathlib import Path
from actkit.store.run_folder import locked

with locked(Path(sys.argv[1])):
    print("up", flush=True)
    sys.stdin.read()
"""


def damaged(status: Path) -> None:
    status.write_bytes(b"?" + status.read_bytes()[1:])


def rewritten(**fields: Any) -> Callable[[Path], None]:
    def rewrite(status: Path) -> None:
        status.write_text(json.dumps({**json.loads(status.read_text()), **fields}))

    return rewrite


def hard_linked(status: Path) -> None:
    status.unlink()
    os.link(status.parent / ".lock", status.parent / "lock-of-a-copy")


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (damaged, "a process that holds its lock"),
    (Path.unlink, "a process that holds its lock"),
    (hard_linked, "a process that holds its lock"),
    (rewritten(host="elsewhere", updated=1e9), "process {} on elsewhere"),
    (rewritten(pid=2**22 + 1), f"process {2**22 + 1} on {os.uname().nodename}"),
    (rewritten(state="done"), "process {} on " + os.uname().nodename),
]


def test_a_run_that_a_process_writes_is_kept_whatever_its_status_says(jobs: Jobs, settings: Settings) -> None:
    run = write_cube(settings.workspace / "live")
    command = [sys.executable, "-c", WRITER, str(run)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "up\n"
        sound = (run / "status.json").read_bytes()
        for change, holder in CHANGES:
            (run / "status.json").unlink(missing_ok=True)
            (run / "status.json").write_bytes(sound)
            change(run / "status.json")
            assert not jobs["live"].state.is_active
            with pytest.raises(LockedError) as caught:
                jobs.delete("live")
            reason = f"is being written by {holder.format(writer.pid)}; wait for it, or end it"
            assert str(caught.value) == f"{run}: {reason}"
            assert sorted(path.name for path in settings.workspace.iterdir()) == ["data", "live"]
        writer.kill()
    jobs.delete("live")
    assert [path.name for path in settings.workspace.iterdir()] == ["data"]


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("make", [os.mkfifo, a_link, Path.mkdir, Path.touch])
def test_a_lock_that_no_writer_could_hold_keeps_no_run(
    jobs: Jobs, settings: Settings, make: Callable[[Path], None]
) -> None:
    make(write_cube(settings.workspace / "received") / ".lock")
    jobs.delete("received")
    assert [path.name for path in settings.workspace.iterdir()] == ["data"]


def test_the_folder_of_prompts_is_never_a_run(jobs: Jobs, settings: Settings) -> None:
    (settings.data / "status.json").write_text(json.dumps([{"text": "a prompt"}]))
    write_cube(settings.data)
    assert list(jobs) == []
    for act in (jobs.__getitem__, jobs.delete, jobs.resume, jobs.cancel):
        with pytest.raises(InputError, match="there is no run 'data'"):
            act("data")
    with pytest.raises(InputError, match="data already exists"):
        jobs.start("data", run_config())
    assert (settings.data / "status.json").exists()


def test_links_and_hidden_folders_are_no_runs(jobs: Jobs, settings: Settings) -> None:
    write_cube(settings.workspace / "real")
    write_cube(settings.workspace / ".hidden")
    (settings.workspace / "alias").symlink_to("real")
    (settings.workspace / "dangling").symlink_to("nowhere")
    before = sorted(path.name for path in settings.workspace.iterdir())
    assert [run.name for run in jobs] == ["real"]
    for name in ("alias", "dangling", ".hidden"):
        with pytest.raises(InputError, match=f"there is no run '{name}'"):
            jobs.delete(name)
    with pytest.raises(InputError, match="dangling already exists"):
        jobs.start("dangling", run_config())
    assert sorted(path.name for path in settings.workspace.iterdir()) == before


@pytest.mark.parametrize("depth", [1500, 2500])
def test_a_run_is_deleted_however_deep_its_folders_are(
    jobs: Jobs, settings: Settings, nest: Callable[[Path, int], Path], depth: int
) -> None:
    nest(write_cube(settings.workspace / "deep") / "cube.zarr" / "d", depth)
    jobs.delete("deep")
    assert [path.name for path in settings.workspace.iterdir()] == ["data"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A workspace with a run that ended halfway, on a disk that is mounted to be read."""
    workspace = tmp_path / "read-only"
    made = synthetic(n_samples=16, window=8)
    (workspace / "half").mkdir(parents=True)
    made.create(workspace / "half").write(0, made.part(0))
    (workspace / "half" / "config.yaml").write_text(run_config().to_yaml())
    (workspace / "half" / "status.json").write_text(
        json.dumps({"state": "interrupted", "pid": 1, "host": "elsewhere", "updated": 1e9})
    )
    (workspace / "half" / ".cancelled").touch()
    for options in ([], ["-o", "remount,ro,bind"]):
        mount = ["mount", *options, *([] if options else ["--bind", workspace]), workspace]
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    yield workspace
    subprocess.run(["umount", "-l", workspace], check=True)


def test_a_workspace_that_can_only_be_read_is_shown_and_says_so(read_only: Path, settings: Settings) -> None:
    settings = settings.model_copy(update={"workspace": read_only})
    jobs = Jobs(settings)
    runs = RunList(jobs, lambda name: None)
    runs.update()
    assert runs._fault.visible
    assert runs._fault.title == (
        f"{read_only} cannot be written: runs are shown, but none can be started or deleted"
    )
    assert [(run.name, run.state) for run in jobs] == [("half", State.CANCELLED)]
    with pytest.raises(InputError, match=f"{read_only} cannot be written"):
        jobs.start("new", run_config())
    with pytest.raises(
        StorageError, match=r"cannot delete half .*: Read-only file system; nothing was removed"
    ):
        jobs.delete("half")
    with pytest.raises(StorageError, match=r"cannot start .*: Read-only file system"):
        jobs.resume("half")
    form = ExtractForm.__new__(ExtractForm)
    form._settings = settings
    with pytest.raises(StorageError, match=r"cannot save .*: Read-only file system"):
        form._keep("prompts.csv", b"text\nhello\n")


def test_a_workspace_that_can_be_written_says_nothing(jobs: Jobs) -> None:
    runs = RunList(jobs, lambda name: None)
    runs.update()
    assert not runs._fault.visible
    assert jobs.fault == ""


def test_two_who_delete_a_run_at_once_delete_it_once(jobs: Jobs, settings: Settings) -> None:
    write_cube(settings.workspace / "run")
    refusals: list[str] = []

    def delete() -> None:
        try:
            jobs.delete("run")
        except InputError as error:
            refusals.append(str(error))

    threads = [threading.Thread(target=delete) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refusals) == 3
    assert [path.name for path in settings.workspace.iterdir()] == ["data"]
