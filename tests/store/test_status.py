"""The heartbeat of a run, and the small text files beside its cube."""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import pytest

from actkit.errors import StorageError
from actkit.extraction.monitoring.progress import Progress
from actkit.schema import MOMENTS
from actkit.store.folders import Folder
from actkit.store.run_folder import (
    CONFIG,
    LOCK,
    SKIPPED,
    STATUS,
    check_folder,
    locked,
    read_status,
    replace_text,
    write_status,
)
from actkit.widgets.markup import figures
from tests.statuses import EVERY, put


def test_a_status_says_whose_it_is(tmp_path: Path) -> None:
    write_status(tmp_path, {"state": "running", "samples": 3})
    status, faults = read_status(tmp_path)
    assert not faults
    assert status.pop("updated") > 1.7e9
    assert status == {"pid": os.getpid(), "host": socket.gethostname(), "state": "running", "samples": 3}


@pytest.mark.parametrize("now", [-1.5, -2e9, 0.0, 2e11])
def test_a_clock_that_is_set_wrong_leaves_a_status_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: float
) -> None:
    monkeypatch.setattr(time, "time", lambda: now)
    write_status(tmp_path, {"state": "running"})
    status, faults = read_status(tmp_path)
    assert (status["updated"], faults) == (now, [])
    assert figures(status, is_running=True).count("-") == (2 if now else 0)  # the date


def test_a_folder_without_a_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) == ({}, [])


@pytest.mark.parametrize("name", EVERY)
def test_a_status_that_cannot_be_believed_is_a_fault_at_once(tmp_path: Path, name: str) -> None:
    put(tmp_path / "run", name)
    started = time.monotonic()
    status, (fault,) = read_status(tmp_path / "run")
    assert time.monotonic() - started < 1
    assert status == {}
    assert fault.where == str(tmp_path / "run" / STATUS)
    assert len(str(fault)) < 500


def test_a_status_of_another_version_is_read_as_far_as_it_is_known(tmp_path: Path) -> None:
    write_status(tmp_path, {"state": "running", "colour": "blue"})
    status, faults = read_status(tmp_path)
    assert (status["state"], "colour" in status, faults) == ("running", False, [])


def test_every_event_of_a_run_can_be_read_back(tmp_path: Path) -> None:
    event = Progress("running", samples=3, total_samples=4, eta_seconds=1.5, labels={"gender": {"female": 2}})
    write_status(tmp_path, asdict(event))
    status, _ = read_status(tmp_path)
    assert {name: status[name] for name in asdict(event)} == asdict(event)


def test_counts_that_make_a_status_too_long_are_left_out(tmp_path: Path) -> None:
    languages = {"x" * 2000 + str(number): number for number in range(1000)}
    write_status(tmp_path, asdict(Progress("running", samples=3, languages=languages)))
    status, faults = read_status(tmp_path)
    assert (status["samples"], "languages" in status, faults) == (3, False, [])


def test_a_reader_and_two_writers_of_a_status(tmp_path: Path) -> None:
    write_status(tmp_path, {"state": "running"})
    writers = [
        threading.Thread(target=lambda: [write_status(tmp_path, {"state": "running"}) for _ in range(200)])
        for _ in range(2)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert read_status(tmp_path)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


@pytest.mark.parametrize("middle", ["", f".{'0a' * 16}"])
@pytest.mark.parametrize("name", [STATUS, CONFIG, SKIPPED, MOMENTS])
def test_who_holds_the_folder_removes_what_a_kill_left(tmp_path: Path, name: str, middle: str) -> None:
    left = tmp_path / f"{name}{middle}.partial"
    left.touch()
    assert check_folder(tmp_path) == []
    with locked(tmp_path):
        assert not left.exists()


def test_what_others_are_writing_is_left_alone(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    living = folder.partial(STATUS)
    with locked(tmp_path):
        assert len(list(tmp_path.glob("*.partial"))) == 1
    living.close()
    folder.close()


def test_a_reader_never_sees_half_a_status(tmp_path: Path) -> None:
    write_status(tmp_path, {"n": 0})
    writer = threading.Thread(target=lambda: [write_status(tmp_path, {"n": n}) for n in range(300)])
    writer.start()
    while writer.is_alive():
        assert "n" in json.loads((tmp_path / STATUS).read_text())
    writer.join()
    assert [path.name for path in tmp_path.iterdir()] == [STATUS]


def test_a_text_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    replace_text(path, "old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(StorageError, match="No space left on device"):
        replace_text(path, "new")
    assert path.read_text() == "old"


def fill(disk: Path) -> Path:
    """Leave no room on a small disk."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return ballast


@pytest.mark.parametrize("small_disk", ["256k"], indirect=True)
def test_a_full_disk_is_told_and_leaves_nothing_behind(small_disk: Path) -> None:
    run = small_disk / "run"
    run.mkdir()
    (run / CONFIG).write_text("old")
    ballast = fill(small_disk)
    with pytest.raises(StorageError) as caught:
        replace_text(run / CONFIG, "x" * 5000)
    assert str(caught.value) == (
        f"cannot write {run / CONFIG} (at least 5,000 bytes to write, 0 bytes free: make room): "
        "No space left on device; committed windows are safe, rerun to continue"
    )
    with pytest.raises(StorageError) as caught, locked(run):
        pass
    assert str(caught.value).startswith(f"cannot write {run / STATUS} (")
    assert sorted(path.name for path in run.iterdir()) == [LOCK, CONFIG]
    assert (run / CONFIG).read_text() == "old"
    ballast.unlink()
    with locked(run):
        assert read_status(run)[0]["state"] == "starting"


@pytest.mark.parametrize("small_disk", ["256k,nr_inodes=4"], indirect=True)
def test_a_disk_that_takes_no_more_files_is_told(small_disk: Path) -> None:
    for number in range(3):
        (small_disk / str(number)).touch()
    with pytest.raises(StorageError) as caught:
        replace_text(small_disk / CONFIG, "new")
    assert str(caught.value) == (
        f"cannot write {small_disk / CONFIG} (no more files can be created there: remove some): "
        "No space left on device; committed windows are safe, rerun to continue"
    )


def test_a_file_that_cannot_be_locked_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(StorageError) as caught:
        replace_text(tmp_path / CONFIG, "new")
    assert str(caught.value).startswith(f"cannot write {tmp_path / CONFIG}: No locks available; ")
    assert list(tmp_path.iterdir()) == []
