"""Windows reach the disk whole or not at all, whatever the disk does."""

import dataclasses
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from actkit import open_cube, verify
from actkit.errors import StorageError
from actkit.schema import VARIABLES
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.store.partial_files import PARTIAL
from actkit.store.ragged import Ragged
from actkit.store.writer import CREATING, CubeWriter
from actkit.testing import Synthetic, contents, flip_bit
from tests.disk import Disk
from tests.store.subject import resume

LAST = 2  # the window that is not full: zarr reads what lies there before it writes
ARRAYS = [name for name, variable in VARIABLES.items() if variable.by_window]
FLAGS = f"committed/c.{LAST}"


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory, numbers: Synthetic) -> Path:
    """The run folder of a cube that lacks its last window."""
    run = tmp_path_factory.mktemp("started")
    writer = numbers.create(run)
    for window in range(LAST):
        writer.write(window, numbers.part(window))
    return run


@pytest.fixture
def cube(started: Path, tmp_path: Path) -> Path:
    """A copy of it, to be continued."""
    return Path(shutil.copytree(started / CUBE, tmp_path / CUBE))


def shard(cube: Path, name: str, window: int) -> str:
    """Return the file of a window, relative to the cube."""
    return str(list(shards(cube, array_of(open_group(cube), name)))[window])


@pytest.mark.slow
def test_the_flags_follow_when_all_else_is_safe(cube: Path, numbers: Synthetic, disk: Disk) -> None:
    CubeWriter(cube, numbers.plan).write(LAST, numbers.part(LAST))
    steps = [(kind, str(path.relative_to(cube))) for kind, path in disk.steps]
    names = ARRAYS
    placed = [path for kind, path in steps if kind == "rename"]
    receipt = f"committed/receipt.{LAST}.json"
    assert placed == [*(shard(cube, name, LAST) for name in names), receipt, FLAGS]
    first = steps.index(("rename", placed[0]))
    # nothing has its name before all of it is safe, the flags too; and nothing that counts is removed
    assert {kind for kind, _ in steps[:first]} == {"open", "write", "fsync"}
    for path in placed:
        kinds = [kind for kind, part in steps[:first] if part.startswith(f"{path}.")]
        assert kinds[0] == "open"
        assert kinds[-1] == "fsync"
        assert all(PARTIAL in part for _, part in steps[:first] if part.startswith(path))
    # each folder is synced before the next kind of file counts
    order = steps[first + len(names) :]
    assert order[: len(names)] == [("fsync", name) for name in names]
    assert order[len(names) :] == [
        *(("rename", receipt), ("fsync", "committed")),
        *(("rename", FLAGS), ("fsync", "committed")),
    ]
    assert {path.split("/")[0] for _, path in steps} >= {"token_text", "generated", "n_tokens", "vision"}


def test_a_cube_takes_its_place_when_all_of_it_is_safe(
    tmp_path: Path, numbers: Synthetic, disk: Disk
) -> None:
    numbers.create(tmp_path)
    *before, moved, last = disk.steps
    assert moved == ("rename", tmp_path / CUBE)
    assert last == ("fsync", tmp_path)
    everything = {path.relative_to(tmp_path / CUBE) for path in (tmp_path / CUBE).rglob("*")} | {Path()}
    synced = before[-len(everything) :]
    assert {kind for kind, _ in synced} == {"fsync"}
    (built,) = {path.relative_to(tmp_path / CREATING).parts[0] for _, path in synced}
    assert {path.relative_to(tmp_path / CREATING / built) for _, path in synced} == everything
    assert not (tmp_path / CREATING).exists()


@pytest.mark.slow
def test_several_writers_in_any_order_make_the_same_cube(
    tmp_path: Path, intact: Path, numbers: Synthetic, undisturbed: dict[str, bytes]
) -> None:
    numbers.create(tmp_path)
    with ThreadPoolExecutor(3) as pool:
        jobs = {
            window: pool.submit(CubeWriter(tmp_path / CUBE, numbers.plan).write, window, numbers.part(window))
            for window in (2, 0, 1)
        }
    assert contents(tmp_path / CUBE) == undisturbed
    assert jobs[2].result() == sum(len(undisturbed[shard(intact / CUBE, name, 2)]) for name in ARRAYS)


def test_a_shard_of_nothing_but_fill_values_is_a_file(cube: Path, numbers: Synthetic) -> None:
    # zarr would leave it out, and no reader could tell that from a lost shard
    fills: dict[str, np.ndarray | Ragged] = {}
    for name, values in numbers.part(LAST).items():
        if isinstance(values, Ragged):
            fills[name] = dataclasses.replace(values, lengths=np.zeros_like(values.lengths))
        else:
            fills[name] = np.full_like(values, VARIABLES[name].fill_value)
    CubeWriter(cube, numbers.plan).write(LAST, fills)
    assert verify(cube).ok
    assert np.isnan(open_cube(cube).residual.isel(sample=slice(8, 10))).all()


def test_threads_leave_no_trace(tmp_path: Path, numbers: Synthetic, undisturbed: dict[str, bytes]) -> None:
    numbers.create(tmp_path)
    writer = CubeWriter(tmp_path / CUBE, numbers.plan, threads=3)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    assert sum(thread.name.startswith("actkit-compress") for thread in threading.enumerate()) > 0
    writer.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("actkit-compress")]
    assert contents(tmp_path / CUBE) == undisturbed


def test_what_cannot_be_cleared_away_is_a_storage_error(tmp_path: Path, numbers: Synthetic) -> None:
    (tmp_path / CREATING).write_text("a file, not a folder")
    with pytest.raises(StorageError, match="cannot create the cube in"):
        numbers.create(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("damage", ["vanished", "empty"])
def test_a_committed_window_without_its_shard_is_taken_back(
    run: Path, numbers: Synthetic, undisturbed: dict[str, bytes], name: str, damage: str
) -> None:
    path = run / CUBE / shard(run / CUBE, name, 1)
    path.unlink() if damage == "vanished" else path.write_bytes(b"")
    assert resume(run, numbers) == [1]
    assert contents(run / CUBE) == undisturbed


@pytest.mark.parametrize("window", [0, LAST])
@pytest.mark.parametrize("damage", ["vanished", "empty", "flipped", "cut"])
def test_a_window_with_damaged_flags_is_not_committed(
    run: Path, numbers: Synthetic, undisturbed: dict[str, bytes], window: int, damage: str
) -> None:
    flags = run / CUBE / "committed" / f"c.{window}"
    match damage:
        case "vanished":
            flags.unlink()
        case "empty":
            flags.write_bytes(b"")
        case "flipped":
            flip_bit(flags, 0)
        case "cut":
            flags.write_bytes(flags.read_bytes()[:2])
    assert resume(run, numbers) == [window]
    assert contents(run / CUBE) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("leftover", [b"", b"torn", "of another window"])
def test_what_an_unfinished_window_left_is_overwritten_unread(
    cube: Path, numbers: Synthetic, undisturbed: dict[str, bytes], leftover: bytes | str
) -> None:
    for name in ARRAYS:
        content = leftover if isinstance(leftover, bytes) else undisturbed[shard(cube, name, 0)]
        (cube / shard(cube, name, LAST)).write_bytes(content)
    assert resume(cube.parent, numbers) == [LAST]
    assert contents(cube) == undisturbed


def test_recovery_removes_what_a_kill_left_half_written(run: Path, numbers: Synthetic) -> None:
    left = [run / CUBE / name / "c.0.0.0123456789abcdef.partial" for name in ("norm", "vision/norm", "text")]
    for path in left:
        path.write_bytes(b"half a sh")
    assert resume(run, numbers) == []
    assert not [path for path in left if path.exists()]


@pytest.mark.slow
def test_a_label_may_be_called_as_half_written_files_are(tmp_path: Path, numbers: Synthetic) -> None:
    labels = {"notes.partial": numbers.labels["gender"]}
    labelled = dataclasses.replace(numbers, labels=labels, rows={**numbers.rows, **labels})
    labelled.create(tmp_path)
    assert resume(tmp_path, labelled) == [0, 1, 2]
    assert (open_cube(tmp_path)["notes.partial"] == numbers.labels["gender"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["vanished", "empty", "flipped"])
def test_damaged_coordinates_are_restored(
    run: Path, numbers: Synthetic, undisturbed: dict[str, bytes], damage: str
) -> None:
    damaged = ["text", "truncated", "batch", "prompt_tokens", "gender", "has_mlp", "vision/layer", "sample"]
    for name in damaged:
        path = run / CUBE / shard(run / CUBE, name, 0)
        match damage:
            case "vanished":
                path.unlink()
            case "empty":
                path.write_bytes(b"")
            case "flipped":
                flip_bit(path, 5)
    writer = CubeWriter(run / CUBE, numbers.plan)
    assert sorted(writer.restore(numbers.coords, numbers.labels, [numbers.rows])) == sorted(damaged)
    assert contents(run / CUBE) == undisturbed
    assert writer.restore(numbers.coords, numbers.labels, [numbers.rows]) == []


def unreadable() -> Iterator[dict[str, np.ndarray]]:
    """The rows of data that are not there any more."""
    raise AssertionError("nobody needs the rows")
    yield


@pytest.mark.parametrize("damaged", [[], ["layer", "batch", "vision/token"]])
def test_the_data_are_read_again_only_where_they_are_needed(
    run: Path, numbers: Synthetic, undisturbed: dict[str, bytes], damaged: list[str]
) -> None:
    for name in damaged:
        (run / CUBE / shard(run / CUBE, name, 0)).unlink()
    writer = CubeWriter(run / CUBE, numbers.plan)
    assert sorted(writer.restore(numbers.coords, numbers.labels, unreadable())) == sorted(damaged)
    assert contents(run / CUBE) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["vanished", "empty", "flipped"])
@pytest.mark.parametrize("name", ["n_tokens", "token_id", "token_text", "generated", "vision/n_tokens"])
def test_a_damaged_coordinate_of_tokens_is_computed_again_with_its_window(
    run: Path, numbers: Synthetic, undisturbed: dict[str, bytes], name: str, damage: str
) -> None:
    path = run / CUBE / shard(run / CUBE, name, 1)
    match damage:
        case "vanished":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "flipped":
            flip_bit(path, 5)
            (fault,) = verify(run).faults
            (run / CUBE / fault.where).unlink()  # as the fault says
    assert CubeWriter(run / CUBE, numbers.plan).restore(numbers.coords, numbers.labels, unreadable()) == []
    assert resume(run, numbers) == [1]
    assert contents(run / CUBE) == undisturbed


# one process with a limit of its own: no file may grow past 1.5 kB, as on a disk with a quota
LIMITED = """
import resource, sys
from pathlib import Path
from actkit.errors import StorageError
from actkit.store.writer import CubeWriter
from actkit.testing import synthetic

numbers = synthetic(n_layers=3, n_samples=10, n_tokens=6, hidden=8, window=4, everything=True)
writer = CubeWriter(Path(sys.argv[1]), numbers.plan)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    writer.write(2, numbers.part(2))
except StorageError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_real_limit_of_the_operating_system(
    cube: Path, numbers: Synthetic, undisturbed: dict[str, bytes]
) -> None:
    assert max(len(undisturbed[shard(cube, name, LAST)]) for name in ARRAYS) > 1500
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(cube)], capture_output=True, text=True, check=True
    )
    assert re.search(r"cannot write window 2 \S+: File too large", done.stdout)
    assert resume(cube.parent, numbers) == [LAST]
    assert contents(cube) == undisturbed


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_full_disk(
    small_disk: Path, started: Path, numbers: Synthetic, undisturbed: dict[str, bytes]
) -> None:
    cube = Path(shutil.copytree(started / CUBE, small_disk / CUBE))
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2**21))
    with pytest.raises(StorageError, match=r"cannot write window 2.*No space left on device"):
        CubeWriter(cube, numbers.plan).write(LAST, numbers.part(LAST))
    assert verify(cube).committed == 8
    ballast.unlink()
    assert resume(cube.parent, numbers) == [LAST]
    assert contents(cube) == undisturbed
