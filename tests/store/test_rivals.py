"""Any number of writers of the same windows, any of them killed: what is committed is whole."""

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Semaphore

import numpy as np
import pytest

from actkit import open_cube, verify
from actkit.errors import CubeError, StorageError
from actkit.store import folders
from actkit.store.layout import CUBE
from actkit.store.partial_files import PARTIAL
from actkit.store.writer import CubeWriter
from actkit.testing import contents, synthetic
from tests.store.subject import SIZES, Subject, subject
from tests.trials import trials

NIGHTLY = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(7200)]


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [4, pytest.param(200, marks=NIGHTLY)])
@pytest.mark.parametrize("locks", ["locks", "none"])
def test_writers_of_the_same_windows_that_are_killed_at_random(
    tmp_path: Path, rounds: int, locks: str
) -> None:
    command = [sys.executable, "-m", "tests.store.rivals", str(tmp_path), str(rounds), "1", locks]
    killed = 0
    what = f"locks: {locks}; 2 to 4 writers of all windows, some killed at random (kill -9), {rounds} rounds"
    with (
        trials(what) as trial,
        subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as mother,
    ):
        assert mother.stdout is not None
        for made in map(json.loads, mother.stdout):
            killed += made["killed"]
            with trial(made):
                assert made["torn"] == []
                assert made["faults"] == []
                assert made["rerun"] == ""
                assert made["failed"] == 0  # nobody who lives is disturbed
    assert mother.returncode == 0
    assert trial.count == rounds
    assert killed >= rounds // 2  # others may leave one nothing to write


@pytest.fixture
def tried(tmp_path: Path) -> Subject:
    (tmp_path / "made").mkdir()
    return subject("small", tmp_path / "made")


@pytest.fixture
def run(tried: Subject, tmp_path: Path) -> Path:
    """A run folder without any window."""
    return tried.copy(0, tmp_path / "run")


def test_a_window_that_is_committed_is_not_written_again(tried: Subject, run: Path) -> None:
    first, second = (CubeWriter(run / CUBE, tried.numbers.plan) for _ in range(2))
    assert first.write(0, tried.numbers.part(0)) > 0
    before = {path: path.stat().st_ino for path in (run / CUBE).rglob("c.0*")}
    assert second.write(0, tried.numbers.part(0)) == 0
    assert {path: path.stat().st_ino for path in before} == before


@pytest.mark.slow
def test_a_window_that_is_committed_meanwhile_keeps_its_files(
    tried: Subject, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = (CubeWriter(run / CUBE, tried.numbers.plan) for _ in range(2))
    commit = CubeWriter._commit
    kept: dict[str, bytes] = {}

    def overtaken(self: CubeWriter, window: int, files: list) -> int:  # type: ignore[type-arg]
        if self is slow:
            fast.write(window, tried.numbers.part(window))
            kept.update(contents(run / CUBE / "residual"))
        return commit(self, window, files)

    monkeypatch.setattr(CubeWriter, "_commit", overtaken)
    other = tried.numbers.part(0)
    other["nonfinite"] = other["nonfinite"] + 1  # type: ignore[operator]  # as on another device
    assert slow.write(0, other) == 0
    assert verify(run).ok
    assert verify(run).committed == 4
    assert not list(run.rglob("*.partial"))


def test_recovery_leaves_alone_what_a_living_writer_writes(tried: Subject, run: Path) -> None:
    living = CubeWriter(run / CUBE, tried.numbers.plan)
    dead = run / CUBE / "norm" / "c.0.0.0.0123456789abcdef.partial"
    dead.write_bytes(b"half a sh")
    file = living._folder.partial("norm/c.0.0.0")
    file.write(b"whole")
    assert CubeWriter(run / CUBE, tried.numbers.plan).recover() == [0, 1, 2]
    assert not dead.exists()
    assert len(list(run.rglob("*.partial"))) == 1
    file.close()
    assert not list(run.rglob("*.partial"))


@pytest.mark.parametrize("why", [errno.EACCES, errno.EMFILE, errno.ENFILE, errno.EIO])
def test_a_file_whose_writer_cannot_be_asked_for_is_left_alone(
    tried: Subject, run: Path, monkeypatch: pytest.MonkeyPatch, why: int
) -> None:
    living = CubeWriter(run / CUBE, tried.numbers.plan)
    opened = os.open

    def refuses(path: str, flags: int, *args: int, dir_fd: int | None = None) -> int:
        if str(path).endswith(PARTIAL) and not flags & os.O_CREAT:
            raise OSError(why, os.strerror(why), path)
        return opened(path, flags, *args, dir_fd=dir_fd)

    file = living._folder.partial("norm/c.0.0.0")
    monkeypatch.setattr(os, "open", refuses)
    assert CubeWriter(run / CUBE, tried.numbers.plan).recover() == [0, 1, 2]
    assert len(list(run.rglob("*.partial"))) == 1
    file.close()


def test_a_link_that_is_called_as_unfinished_files_are_is_removed(
    tried: Subject, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_text("kept")
    link = run / CUBE / "norm" / "c.0.0.0.0123456789abcdef.partial"
    link.symlink_to(tmp_path / "outside")
    CubeWriter(run / CUBE, tried.numbers.plan).recover()
    assert not os.path.lexists(link)
    assert (tmp_path / "outside").read_text() == "kept"


def test_what_is_swept_before_its_writer_could_lock_it_is_begun_again(
    tried: Subject, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CubeWriter(run / CUBE, tried.numbers.plan)
    lock, swept = folders.fcntl.flock, []

    def late(file: int, how: int) -> None:
        if not swept:
            swept.append(True)
            writer._folder.sweep()
        lock(file, how)

    monkeypatch.setattr(folders.fcntl, "flock", late)
    assert writer.write(0, tried.numbers.part(0)) > 0
    assert swept
    assert verify(run).ok


def test_a_commit_that_does_not_end_is_reported(
    tried: Subject, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, writer = (CubeWriter(run / CUBE, tried.numbers.plan) for _ in range(2))
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.05)
    with stopped._folder.locked("committed"), pytest.raises(StorageError, match="or is stopped"):
        writer.write(0, tried.numbers.part(0))
    assert writer.write(0, tried.numbers.part(0)) > 0


@pytest.mark.slow
def test_readers_meet_nothing_but_right_numbers_while_two_write(tried: Subject, run: Path) -> None:
    numbers, opened, stop, reads = tried.numbers, set(), Event(), Semaphore(0)

    def write(order: int) -> None:
        writer = CubeWriter(run / CUBE, numbers.plan)
        for window in list(tried.windows)[::order]:
            assert reads.acquire(timeout=120)  # somebody has read since the last window
            writer.write(window, numbers.part(window))

    def read() -> int:
        count = 0
        while not stop.is_set():
            cube = open_cube(run, partial=True)
            samples = cube.sample.values
            opened.add(len(samples))
            np.testing.assert_array_equal(cube.residual, numbers.values["residual"][:, samples])
            np.testing.assert_array_equal(cube.token_id, numbers.values["token_id"][samples])
            count += 1
            reads.release()
        return count

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for writer in [pool.submit(write, order) for order in (1, -1)]:
                writer.result()
        finally:
            stop.set()
        assert sum(reader.result() for reader in readers) > 2
    assert verify(run).committed == 10
    assert min(opened) == 0


def test_a_cube_that_takes_the_place_of_another_at_the_same_time_is_noticed(
    tried: Subject, run: Path, tmp_path: Path
) -> None:
    tried.copy(3, run)
    cube = open_cube(run)
    cube.norm.load()
    root = run / CUBE / "zarr.json"
    before = root.stat()
    other = synthetic(n_samples=10, window=4, **SIZES["small"], model="anothermod", seed=5)
    shutil.rmtree(run)
    run.mkdir()
    writer = other.create(run)
    for window in tried.windows:
        writer.write(window, other.part(window))
    os.utime(root, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a clock that is set back may do
    with pytest.raises(CubeError, match="was replaced by another cube"):
        cube.residual.load()
