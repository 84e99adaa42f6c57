"""A writer that outlives its folder writes nothing into the one that has its path now."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actkit import open_cube, verify
from actkit.errors import CorruptError, Fault, StorageError
from actkit.store.folders import Folder
from actkit.store.layout import CUBE, array_of, open_group
from actkit.store.receipts import read_receipt, receipt_name
from actkit.store.shard_files import encoded
from actkit.store.writer import CubeWriter
from actkit.testing import Synthetic, contents, flip_bit, synthetic
from tests.store.outlived import MINE
from tests.store.subject import resume

ROOT = Path(__file__).parents[2]
WRITTEN = 2  # windows, before it is stopped


def another(run: Path) -> Synthetic:
    """Write another run to its end: other numbers, of a model of another name."""
    numbers = synthetic(**{**MINE, "seed": 2}, model="another")  # type: ignore[arg-type]
    run.mkdir(parents=True, exist_ok=True)
    writer = numbers.create(run)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    return numbers


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    another(run)


def deleted(run: Path) -> None:
    shutil.rmtree(run)
    another(run)


def cube_moved(run: Path) -> None:
    (run / CUBE).rename(run / "old.zarr")
    another(run)


def overwritten(run: Path) -> None:
    """As rsync does it: the folders stay, the files in them are replaced."""
    other = run.with_name("source")
    another(other)
    for path in (run / CUBE).rglob("*"):
        if path.is_file():
            path.unlink()
    shutil.copytree(other / CUBE, run / CUBE, dirs_exist_ok=True)


def gone(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has written two windows of a run, and was stopped by the kernel."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-m", "tests.store.outlived", str(tmp_path / "run")]
    with subprocess.Popen(
        command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for window in range(WRITTEN):
            assert process.stdout.readline() == f"window {window}\n"
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.stdout.readline() == f"window {WRITTEN}\n"
        process.send_signal(signal.SIGSTOP)
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("replace", [moved, deleted, cube_moved, overwritten, gone])
def test_a_stopped_writer_whose_folder_is_another_one(
    writer: subprocess.Popen[str], tmp_path: Path, replace: Callable[[Path], None]
) -> None:
    run = tmp_path / "run"
    replace(run)
    before = contents(run) if run.exists() else {}
    writer.send_signal(signal.SIGCONT)
    output, _ = writer.communicate("\n" * 5, timeout=60)
    assert output.startswith(f"StorageError: {run}")
    assert output.count("\n") == 1
    assert (contents(run) if run.exists() else {}) == before
    if before:
        assert verify(run).ok
        assert open_cube(run).attrs["model"] == "another"


@pytest.mark.slow
def test_a_folder_that_is_moved_while_a_window_is_written_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # after the last look at its path nothing but the descriptor decides
    numbers = synthetic(**MINE)  # type: ignore[arg-type]
    run = tmp_path / "run"
    run.mkdir()
    writer = numbers.create(run)
    check, looks = CubeWriter._check, count()

    def checked(self: CubeWriter) -> None:
        check(self)
        if self is writer and next(looks) == 1:
            moved(run)

    monkeypatch.setattr(CubeWriter, "_check", checked)
    writer.write(0, numbers.part(0))
    monkeypatch.undo()
    assert verify(run).ok
    assert open_cube(run).attrs["model"] == "another"
    left = verify(tmp_path / "elsewhere")
    assert (left.ok, left.committed) == (True, 4)
    with pytest.raises(StorageError, match="is now another folder"):
        writer.write(1, numbers.part(1))
    assert resume(tmp_path / "elsewhere", numbers) == [1, 2, 3, 4]


# whoever mixes two runs all the same, as with a copy that is interrupted, is found out


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, Synthetic]:
    """Two runs of one shape, of two models."""
    numbers = another(tmp_path / "one")
    other = synthetic(**MINE)  # type: ignore[arg-type]
    (tmp_path / "other").mkdir()
    writer = other.create(tmp_path / "other")
    for window in range(other.plan.n_windows):
        writer.write(window, other.part(window))
    return tmp_path / "one", tmp_path / "other", numbers


@pytest.mark.slow
@pytest.mark.parametrize("with_receipt", [True, False])
def test_files_of_another_run_are_found(two: tuple[Path, Path, Synthetic], with_receipt: bool) -> None:
    run, other, numbers = two
    undisturbed = contents(run)
    for path in (other / CUBE).rglob("c.*"):
        name = path.relative_to(other / CUBE)
        if str(name.parent) in numbers.values and "1" in path.name.split("."):
            shutil.copy(path, run / CUBE / name)
    if with_receipt:
        shutil.copy(other / CUBE / receipt_name(1), run / CUBE / receipt_name(1))
    faults = verify(run).faults
    if with_receipt:
        assert [(fault.where, fault.what) for fault in faults] == [
            ("committed/receipt.1.json", "was written by the run of another cube")
        ]
    else:
        assert "residual/c.0.1.0.0" in [fault.where for fault in faults]
        assert {fault.what for fault in faults} == {"is not the file that was committed"}
    for fault in faults:
        assert fault.hint == "delete it if it exists, and rerun the extraction"
        (run / CUBE / fault.where).unlink()
    assert resume(run, numbers) == [1]
    assert contents(run) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1e999", "-Infinity", "NaN", '"many"', "[]", "null"])
def test_a_receipt_with_a_size_that_cannot_be_is_damaged(
    two: tuple[Path, Path, Synthetic], size: str
) -> None:
    run, _, numbers = two
    undisturbed = contents(run)
    path = run / CUBE / receipt_name(1)
    receipt = json.loads(path.read_text())
    name = next(iter(receipt["files"]))
    receipt["files"][name][0] = "SIZE"
    path.write_text(json.dumps(receipt).replace('"SIZE"', size))
    assert [fault.where for fault in verify(run).faults] == [receipt_name(1)]
    path.unlink()
    assert resume(run, numbers) == [1]
    assert contents(run) == undisturbed


def same_shape(run: Path, seed: int) -> Path:
    """Write a run whose files have the sizes of any other of these: values that do not compress."""
    cube = synthetic(n_samples=16, window=8, seed=seed, hidden=8, n_tokens=8)
    random = np.random.default_rng(seed)
    for name in ("residual", "pooled", "last"):
        values = cube.values[name]
        bits = random.integers(0, 2**32, values.shape, dtype=np.uint32).view(np.float32)
        values[...] = np.where(np.isfinite(values) & np.isfinite(bits), bits, values)
    run.mkdir()
    writer = cube.create(run)
    for window in range(cube.plan.n_windows):
        writer.write(window, cube.part(window))
    return run


@pytest.mark.slow
def test_every_file_of_another_run_is_found_though_it_has_the_same_size(tmp_path: Path) -> None:
    run, other = same_shape(tmp_path / "run", 1), same_shape(tmp_path / "other", 2)
    names = [path.relative_to(run) for path in sorted((run / CUBE).rglob("c.*"))]
    replaced = [name for name in names if (run / name).read_bytes() != (other / name).read_bytes()]
    same_size = [name for name in replaced if (run / name).stat().st_size == (other / name).stat().st_size]
    assert len(same_size) >= 5  # else the sizes alone tell
    for name in replaced:
        sound = (run / name).read_bytes()
        shutil.copy(other / name, run / name)
        faults = [(fault.where, fault.what) for fault in verify(run).faults]
        assert faults == [(name.relative_to(CUBE).as_posix(), "is not the file that was committed")]
        (run / name).write_bytes(sound)
    assert verify(run).ok


@pytest.mark.parametrize("names", [("n_tokens/c.0", "n_tokens/c.1"), ("gender/c.0", "language/c.0")])
def test_files_of_one_cube_that_were_exchanged_are_found_and_written_again(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    numbers = synthetic(n_samples=8, window=4, seed=3)
    run = tmp_path / "run"
    run.mkdir()
    writer = numbers.create(run)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    undisturbed = contents(run)
    first, second = (run / CUBE / name for name in names)
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert sorted(fault.where for fault in verify(run).faults) == list(names)
    if not names[0].startswith("n_tokens"):  # which `verify` asks to delete, because values are not compared
        resume(run, numbers)
        assert contents(run) == undisturbed


@pytest.mark.slow
def test_flags_that_commit_a_part_of_a_window_are_damage(two: tuple[Path, Path, Synthetic]) -> None:
    run, _, numbers = two
    undisturbed = contents(run)
    flags = np.ones(numbers.plan.window, bool)
    flags[0] = False
    array = array_of(open_group(run / CUBE), "committed")
    (run / CUBE / "committed" / "c.0").write_bytes(encoded(array, 0, flags))
    verification = verify(run)
    assert [(fault.where, fault.what) for fault in verification.faults] == [
        ("committed/c.0", "commits only part of its window")
    ]
    assert verification.committed == verification.samples - numbers.plan.window
    with pytest.raises(CorruptError, match=r"committed/c\.0: commits only part of its window"):
        open_cube(run, partial=True)
    assert resume(run, numbers) == [0]
    assert contents(run) == undisturbed


def digest_of_a_file(receipt: dict[str, Any]) -> None:
    next(iter(receipt["files"].values()))[1] = "00000000"


def another_file(receipt: dict[str, Any]) -> None:
    receipt["files"]["residual/c.9.9.9.9"] = [1, "00000000"]


EDITS = {
    "the digest of a file": digest_of_a_file,
    "one more file": another_file,
    "one more member": lambda receipt: receipt.update(more=1),
    "no checksum": lambda receipt: receipt.pop("crc32c"),
}


@pytest.mark.slow
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_receipt_blames_itself_and_no_sound_file(
    two: tuple[Path, Path, Synthetic], edit: str
) -> None:
    run, _, numbers = two
    undisturbed = contents(run)
    path = run / CUBE / receipt_name(1)
    receipt = json.loads(path.read_text())
    EDITS[edit](receipt)
    path.write_text(json.dumps(receipt, indent=1, sort_keys=True))
    faults = [(fault.where, fault.what) for fault in verify(run).faults]
    assert faults == [(receipt_name(1), "is truncated or corrupted")]
    assert resume(run, numbers) == [1]
    assert contents(run) == undisturbed


@pytest.mark.slow
def test_every_flipped_bit_of_a_receipt_is_found(two: tuple[Path, Path, Synthetic]) -> None:
    run = two[0]
    path = run / CUBE / receipt_name(1)
    sound = path.read_bytes()
    for bit in range(8 * len(sound)):
        flip_bit(path, bit)
        with closing(Folder(run / CUBE)) as folder:
            assert isinstance(read_receipt(folder, 1, promised=True), Fault), bit
        path.write_bytes(sound)


@pytest.mark.slow
def test_blanks_behind_a_receipt_are_damage(two: tuple[Path, Path, Synthetic]) -> None:
    run = two[0]
    path = run / CUBE / receipt_name(1)
    path.write_bytes(path.read_bytes() + b"\n")
    assert [fault.where for fault in verify(run).faults] == [receipt_name(1)]


@pytest.mark.slow
def test_two_windows_that_were_exchanged_are_found(two: tuple[Path, Path, Synthetic]) -> None:
    run = two[0]
    first, second = (run / CUBE / "residual" / f"c.0.{window}.0.0" for window in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    faults = [(fault.where, fault.what) for fault in verify(run).faults]
    assert faults == [
        (f"residual/{path.name}", "is not the file that was committed") for path in (first, second)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[" * 10**6, b'{"cube": 1, "files": {"a": 3}}'])
def test_a_receipt_that_is_missing_or_no_receipt(
    two: tuple[Path, Path, Synthetic], content: bytes | None
) -> None:
    run, _, numbers = two
    undisturbed = contents(run)
    path = run / CUBE / receipt_name(2)
    path.unlink() if content is None else path.write_bytes(content)
    what = {None: "is missing", b"": "is empty"}.get(content, "is truncated or corrupted")
    assert [(fault.where, fault.what) for fault in verify(run).faults] == [(receipt_name(2), what)]
    assert resume(run, numbers) == [2]
    assert contents(run) == undisturbed
