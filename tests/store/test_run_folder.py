"""The run folder: who may write it, and who does."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actkit.errors import LockedError, StorageError
from actkit.store.run_folder import (
    LOCK,
    STATUS,
    check_folder,
    locked,
    read_status,
)

# holds a run folder until its input ends
HOLDER = """
import sys
from pathlib import Path
from actkit.store.run_folder import locked

with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.slow
def test_a_folder_that_another_process_holds(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(LockedError) as caught, locked(tmp_path):
        pass
    held = f"is being written by process {holder.pid} on {socket.gethostname()}; wait for it, or end it"
    assert str(caught.value) == f"{tmp_path}: {held}"
    assert read_status(tmp_path)[0]["pid"] == holder.pid, "who was refused left its mark"


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_ends_with_its_process(
    tmp_path: Path, holder: subprocess.Popen[str], end: signal.Signals
) -> None:
    holder.send_signal(end)
    assert holder.wait() == -end
    with locked(tmp_path):
        assert read_status(tmp_path)[0]["pid"] == os.getpid()


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    with locked(tmp_path):
        pass


def test_two_threads_do_not_share_a_lock(tmp_path: Path) -> None:
    refused: list[LockedError] = []

    def second() -> None:
        try:
            with locked(tmp_path):
                pass
        except LockedError as error:
            refused.append(error)

    with locked(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1


@pytest.mark.slow
def test_a_holder_that_left_no_status(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / STATUS).unlink()
    with pytest.raises(LockedError, match="by a process that holds its lock; wait"), locked(tmp_path):
        pass


def test_a_lock_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(StorageError, match="cannot lock the run folder"), locked(tmp_path):
        pass


# which folders will do


def nothing(folder: Path) -> None:
    folder.rmdir()


def nothing_two_levels_deep(folder: Path) -> None:
    folder.rmdir()
    folder.parent.rmdir()


def empty(folder: Path) -> None:
    pass


def ours(folder: Path) -> None:
    names = ("config.yaml", "status.json", "log.txt", ".lock", "status.json.partial", "config.yaml.partial")
    for name in names:
        (folder / name).touch()
    for name in ("cube.zarr", "cube.zarr.creating"):
        (folder / name).mkdir()


@pytest.mark.parametrize("make", [nothing, nothing_two_levels_deep, empty, ours])
def test_folders_that_will_do(tmp_path: Path, make: Callable[[Path], None]) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    make(run)
    before = sorted(tmp_path.rglob("*"))
    assert check_folder(run) == []
    assert sorted(tmp_path.rglob("*")) == before, "checking left something behind"


@pytest.mark.parametrize("looks", range(1, 6))
def test_a_folder_that_another_process_makes_meanwhile_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    run = tmp_path / "run"
    stat, left = os.stat, looks

    def made_after(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        nonlocal left
        try:
            return stat(path, follow_symlinks=follow_symlinks)
        finally:
            if path == run:
                left -= 1
                if left == 0:
                    run.mkdir()

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", made_after)
        faults = check_folder(run)
    assert faults == []


def test_a_relative_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_folder(Path("runs/a")) == []


def a_file(path: Path) -> Path:
    path.touch()
    return path


def below_a_file(path: Path) -> Path:
    path.touch()
    return path / "run"


def one_foreign_file(path: Path) -> Path:
    path.mkdir()
    (path / "thesis.tex").touch()
    return path


def many_foreign_files(path: Path) -> Path:
    path.mkdir()
    for name in "edcba":
        (path / name).touch()
    return path


def linked_status(path: Path) -> Path:
    path.mkdir()
    (path / "status.json").symlink_to("/etc/passwd")
    return path


def linked_cube(path: Path) -> Path:
    path.mkdir()
    (path / "cube.zarr").symlink_to("/tmp")
    return path


def linked_chunk(path: Path) -> Path:
    (path / "cube.zarr" / "norm").mkdir(parents=True)
    (path / "cube.zarr" / "norm" / "c.0.0.partial").symlink_to("/etc/passwd")
    return path


def waiting_log(path: Path) -> Path:
    path.mkdir()
    os.mkfifo(path / "log.txt")
    return path


def nul(path: Path) -> Path:
    return path / "a\0b"


def too_long(path: Path) -> Path:
    return path.with_name("x" * 300)


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_file, "out {}: is a file (choose a folder)"),
        (below_a_file, "out {}/run: {} cannot be written (choose another folder, or change its permissions)"),
        (one_foreign_file, "out {}: holds other files: thesis.tex (choose an empty or new folder)"),
        (many_foreign_files, "out {}: holds other files: a, b, c … (choose an empty or new folder)"),
        (linked_status, "out {}/status.json: is a link (replace it with a regular file, or remove it)"),
        (linked_cube, "out {}/cube.zarr: is a link (replace it with a folder, or remove it)"),
        (waiting_log, "out {}/log.txt: is not a regular file (replace it with a regular file, or remove it)"),
        (
            linked_chunk,
            "out {}/cube.zarr/norm/c.0.0.partial: is a link, or neither file nor folder "
            "(replace it with its target)",
        ),
        (nul, "out: holds a NUL character (correct the path)"),
        (too_long, "out {.}/" + "x" * 300 + ": cannot be used: File name too long (choose another folder)"),
        (loop, "out {}: cannot be used: Too many levels of symbolic links (choose another folder)"),
    ],
)
def test_folders_that_will_not_do(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    (fault,) = check_folder(make(tmp_path / "it"))
    assert str(fault) == message.replace("{}", str(tmp_path / "it")).replace("{.}", str(tmp_path))


@pytest.mark.parametrize(
    ("depth", "messages"),
    [
        (1500, []),
        (2500, ["out {}: cannot be used: File name too long (choose another folder)"]),
    ],
)
def test_folders_of_any_depth_are_looked_at(
    tmp_path: Path, nest: Callable[[Path, int], Path], depth: int, messages: list[str]
) -> None:
    nest(tmp_path / "run" / "cube.zarr", depth)
    expected = [message.format(tmp_path / "run") for message in messages]
    assert [str(fault) for fault in check_folder(tmp_path / "run")] == expected


@pytest.mark.parametrize("name", ["", "run", "deep/run"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    mount = ["mount", "--bind", "-o", "ro", tmp_path, tmp_path]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.strip()}")
    try:
        (fault,) = check_folder(tmp_path / name)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
    where = f"out {tmp_path / name}: {tmp_path} cannot be written"
    assert str(fault) == f"{where} (choose another folder, or change its permissions)"


def test_a_folder_without_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    (fault,) = check_folder(tmp_path / "run")
    assert fault.what == f"{tmp_path} cannot be written"
