"""Whatever the disk does and whenever the process ends: what is committed is safe, a rerun completes it."""

import errno
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from actkit import open_cube
from actkit.errors import StorageError
from actkit.store.layout import CUBE
from actkit.store.writer import CREATING, CubeWriter
from actkit.testing import synthetic
from tests.disk import Disk, Killed
from tests.store.subject import SIZES, Subject, subject
from tests.trials import trials

TOLD = "committed windows are safe, rerun to continue"
NIGHTLY = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject("small", tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """Shards of many pages."""
    return subject("wide", tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module", params=["small", pytest.param("everything", marks=NIGHTLY)])
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return subject(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The place of the run folder."""
    return tmp_path / "run"


def steps_of(disk: Disk, act: Callable[[], object]) -> list[tuple[str, Path]]:
    """Return the steps that it takes."""
    before = len(disk.steps)
    act()
    return disk.steps[before:]


def steps_of_window(tried: Subject, run: Path, window: int, disk: Disk) -> list[tuple[str, Path]]:
    tried.copy(window, run)
    return steps_of(disk, lambda: tried.write(run, window))


# errors of the disk, at every step


@pytest.mark.slow
@pytest.mark.parametrize("lasting", [False, pytest.param(True, marks=NIGHTLY)], ids=["once", "from then on"])
@pytest.mark.parametrize("after", [False, pytest.param(True, marks=NIGHTLY)], ids=["refused", "unanswered"])
def test_an_error_at_every_step_of_writing(
    tried: Subject, run: Path, disk: Disk, lasting: bool, after: bool
) -> None:
    how = f"{'from then on' if lasting else 'once'}, {'having' if after else 'not having'} taken place"
    with trials(f"I/O error at every open, write, fsync, rename × 3 windows, {tried.what} ({how})") as trial:
        for window in tried.windows:
            steps = steps_of_window(tried, run, window, disk)
            assert {kind for kind, _ in steps} == {"open", "write", "fsync", "rename"}  # nothing is removed
            for at, (kind, path) in enumerate(steps, start=1):
                tried.copy(window, run)
                with trial(f"window {window}, {kind} of {path.relative_to(run)}"):
                    writer = CubeWriter(run / CUBE, tried.numbers.plan)
                    error = OSError(errno.EIO, "Input/output error")
                    disk.fail(at, error, after=after, lasting=lasting)
                    with pytest.raises(StorageError, match=f"window {window}.*Input/output error; {TOLD}"):
                        writer.write(window, tried.numbers.part(window))
                    disk.mend()
                    assert lasting or not list(run.rglob("*.partial"))
                    tried.check_safe(run, window)
                    tried.check_rerun(run)


@pytest.mark.slow
def test_a_rename_that_fails_as_on_a_network_disk(tried: Subject, run: Path, disk: Disk) -> None:
    codes = (errno.EIO, errno.ESTALE, errno.EBUSY)
    each = itertools.cycle(codes)
    how = "raises EIO, ESTALE or EBUSY, having or not having taken place"
    what = f"every rename of 3 windows and of the creation {how}, {tried.what}"
    with trials(what) as trial:
        for window in tried.windows:
            steps = steps_of_window(tried, run, window, disk)
            moves = sum(kind == "rename" for kind, _ in steps)
            for at, after in itertools.product(range(1, moves + 1), (False, True)):
                code = next(each)
                tried.copy(window, run)
                with trial(f"window {window}, rename {at}, {code}, after: {after}"):
                    writer = CubeWriter(run / CUBE, tried.numbers.plan)
                    disk.fail(at, OSError(code, os.strerror(code)), kinds=["rename"], after=after)
                    with pytest.raises(StorageError, match=f"{os.strerror(code)}; {TOLD}"):
                        writer.write(window, tried.numbers.part(window))
                    disk.mend()
                    tried.check_safe(run, window)
                    # only the rename of the flags commits, whatever is said of it
                    done = after and at == moves
                    assert tried.check_rerun(run) == list(tried.windows)[window + done :]
        shutil.rmtree(run)
        run.mkdir()
        moves = sum(kind == "rename" for kind, _ in steps_of(disk, lambda: tried.numbers.create(run)))
        for code, after in itertools.product(codes, (False, True)):
            shutil.rmtree(run)
            run.mkdir()
            with trial(f"creation, {code}, after: {after}"):
                disk.fail(moves, OSError(code, os.strerror(code)), kinds=["rename"], after=after)
                with pytest.raises(StorageError, match=rf"cannot create the cube in.*{os.strerror(code)}"):
                    tried.numbers.create(run)
                disk.mend()
                assert {path.name for path in run.iterdir()} == {CREATING, *([CUBE] if after else [])}
                tried.check_rerun(run)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "error"])
@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=NIGHTLY)], ids=["some", "every"])
def test_an_end_while_a_cube_is_created(
    tried: Subject, run: Path, disk: Disk, stride: int, killed: bool
) -> None:
    run.mkdir()
    last = len(steps_of(disk, lambda: tried.numbers.create(run)))
    what = "an end" if killed else "an I/O error"
    which = "every one" if stride == 1 else f"one in {stride}"
    with trials(f"{what} while the cube is created, at {which} of {last} steps, {tried.what}") as trial:
        # the last three: fsync of the last folder, rename, fsync of the run folder
        for at in sorted({*range(1, last, stride), last - 2, last - 1, last}):
            shutil.rmtree(run)
            run.mkdir()
            with trial(f"step {at}"):
                disk.fail(at, Killed() if killed else OSError(errno.EIO, "Input/output error"))
                with pytest.raises(Killed if killed else StorageError):
                    tried.numbers.create(run)
                disk.mend()
                names = {path.name for path in run.iterdir()}
                assert names <= {CREATING, CUBE}
                assert (CUBE in names) == (at == last)
                tried.check_rerun(run)


def test_a_write_that_outlives_its_failed_creation_does_not_meet_the_next(
    tried: Subject, run: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.mkdir()
    last = len(steps_of(disk, lambda: tried.numbers.create(run)))
    shutil.rmtree(run)
    run.mkdir()
    disk.fail(last - 3, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageError):
        tried.numbers.create(run)
    disk.mend()
    late = {path: path.read_bytes() for path in run.rglob("zarr.json")}
    assert late
    remove = shutil.rmtree

    def remove_too_early(folder: Path, **options: bool) -> None:
        remove(folder, **options)
        for path, content in late.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        late.clear()

    monkeypatch.setattr(shutil, "rmtree", remove_too_early)
    tried.numbers.create(run)
    monkeypatch.undo()
    tried.check_rerun(run)


# ends, at every step


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=NIGHTLY)], ids=["some", "every"])
def test_an_end_at_a_step_leaves_numbers_that_are_right(
    tried: Subject, run: Path, disk: Disk, stride: int
) -> None:
    numbers = tried.numbers
    which = "every step" if stride == 1 else "steps"
    what = f"an end at {which} of the commit × 3 windows: what then opens is right, {tried.what}"
    with trials(what) as trial:
        for window in tried.windows:
            steps = steps_of_window(tried, run, window, disk)
            (commit,) = (
                at
                for at, (kind, path) in enumerate(steps, start=1)
                if kind == "rename" and path.name == f"c.{window}" and path.parent.name == "committed"
            )
            for at in sorted({*range(1, len(steps) + 1, stride), commit, commit + 1}):
                tried.copy(window, run)
                with trial(f"window {window}, step {at}"):
                    writer = CubeWriter(run / CUBE, numbers.plan)
                    disk.fail(at, Killed())
                    with pytest.raises(Killed):
                        writer.write(window, numbers.part(window))
                    disk.mend()
                    # once the flags are in place, all that they stand for is safe
                    samples = 4 * (window + (at > commit))
                    left = open_cube(run, partial=True)
                    np.testing.assert_array_equal(left.residual, numbers.values["residual"][:, :samples])
                    tried.check_safe(run, window)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", pytest.param("everything", marks=NIGHTLY)])
def test_a_kill_by_the_kernel_at_a_step(tmp_path: Path, size: str) -> None:
    command = [sys.executable, "-m", "tests.store.killed_writers", size, str(tmp_path)]
    root = Path(__file__).parents[2]
    variables = len(synthetic(**SIZES[size]).values)
    which = "every step" if size == "everything" else "every third step"
    what = f"kill -9 (a real one) at {which} of the commit × 3 windows, {variables} variables"
    met = set()
    with (
        trials(what) as trial,
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as mother,
    ):
        assert mother.stdout is not None
        for made in map(json.loads, mother.stdout):
            with trial(made):
                assert made["ended"] == -signal.SIGKILL
                assert made["rerun"] == 0
                met.add(made["committed"])
    assert mother.returncode == 0
    assert met == {0, 1, 2, 3}


# a disk that is full

PAGE = os.sysconf("SC_PAGESIZE")


def leave(disk: Path, pages: int) -> Path:
    """Fill a file system in memory up to some pages."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes((os.statvfs(disk).f_bavail - pages) * PAGE))
    assert os.statvfs(disk).f_bavail == pages
    return ballast


def refused(act: Callable[[], object], what: str) -> bool:
    """Tell whether a full disk kept it from being done; it then says so, and what to do."""
    try:
        act()
    except StorageError as error:
        if not re.search(f"{what}.*No space left on device; {TOLD}", str(error)):
            raise
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_disk_that_is_full_after_every_page_of_a_window(small_disk: Path, wide: Subject) -> None:
    run = small_disk / "run"
    with trials(f"disk full (a real tmpfs) after every {PAGE // 1024} kB of 3 windows") as trial:
        for window in wide.windows:
            pages, full = -1, True
            while full:
                pages, full = pages + 1, False
                wide.copy(window, run)
                ballast = leave(small_disk, pages)
                with trial(f"window {window}, {pages} pages"):
                    full = refused(
                        lambda window=window: wide.write(run, window), f"cannot write window {window}"
                    )
                    wide.check_safe(run, window)
                    assert not list(run.rglob("*.partial"))
                    ballast.unlink()
                    assert wide.check_rerun(run) == list(wide.windows)[window + (not full) :]
                ballast.unlink(missing_ok=True)
            assert pages > 10


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_a_disk_that_is_full_while_a_cube_is_created(small_disk: Path, wide: Subject) -> None:
    run = small_disk / "run"
    pages, full = -1, True
    with trials(f"disk full (a real tmpfs) after every {PAGE // 1024} kB of the creation of a cube") as trial:
        while full:
            pages, full = pages + 1, False
            shutil.rmtree(run, ignore_errors=True)
            run.mkdir()
            ballast = leave(small_disk, pages)
            with trial(f"{pages} pages"):
                full = refused(lambda: wide.numbers.create(run), "cannot create the cube in")
                assert (run / CUBE).exists() == (not full)
                ballast.unlink()
                wide.check_rerun(run)
            ballast.unlink(missing_ok=True)
    assert pages > 30
