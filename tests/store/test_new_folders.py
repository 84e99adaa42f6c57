"""A new folder appears whole or not at all, whoever builds one of the same name."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from actkit.errors import InputError, StorageError
from actkit.store.folders import Folder
from actkit.store.new_folders import new_folder

Nest = Callable[[Path, int], Path]

TAKEN = "cannot run: 1 fault\n  - out: {} already exists (name a new folder)"

BUILDER = """
import sys
from pathlib import Path
from actkit.store.new_folders import new_folder

with new_folder(Path(sys.argv[1])) as building:
    (building / "half").touch()
    print(building, flush=True)
    sys.stdin.read()
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_what_was_put_into_it(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    with new_folder(out) as building:
        (building / "file").write_text("whole")
        assert not out.exists()
    assert (out / "file").read_text() == "whole"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as building:  # noqa: PT012
        (building / "file").touch()
        raise error
    assert names(tmp_path) == []


def test_of_two_builders_the_first_to_finish_has_the_name_and_neither_touches_the_other(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError) as caught, new_folder(out) as first:  # noqa: PT012
        (first / "1").touch()
        with new_folder(out) as second:
            (second / "2").touch()
            assert names(first) == ["1"]
        (first / "3").touch()
        assert names(first) == ["1", "3"]
    assert str(caught.value) == TAKEN.format(out)
    assert names(tmp_path) == ["out"]
    assert names(out) == ["2"]


def test_a_living_process_keeps_its_folder_and_a_dead_one_does_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", BUILDER, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        building = Path(builder.stdout.readline().strip())
        with pytest.raises(ValueError, match="no"), new_folder(out):
            raise ValueError("no")
        assert names(building) == ["half"]
        builder.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [building.name]
    with new_folder(out):
        pass
    assert names(tmp_path) == ["out"]


def test_only_unfinished_folders_of_the_same_name_are_removed(tmp_path: Path, nest: Nest) -> None:
    unique = f"{'0a' * 16}.partial"
    nest(tmp_path / f".out.{unique}", 1500)
    (tmp_path / ".out.partial").mkdir()  # of an earlier version
    kept = [".output.partial", f".other.{unique}", "out.partial", ".out.1.partial"]
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f".out.{'1' * 32}.partial").symlink_to("out.partial")
    (tmp_path / f".out.{'2' * 32}.partial").touch()
    kept += [f".out.{'1' * 32}.partial", f".out.{'2' * 32}.partial"]
    with new_folder(tmp_path / "out"):
        pass
    assert names(tmp_path) == sorted([*kept, "out"])


def a_file(out: Path) -> None:
    out.touch()


def a_full_folder(out: Path) -> None:
    out.mkdir()
    (out / "file").touch()


def a_dangling_link(out: Path) -> None:
    out.symlink_to("nowhere")


@pytest.mark.parametrize("make", [Path.mkdir, a_file, a_full_folder, a_dangling_link])
@pytest.mark.parametrize("is_late", [False, True])
def test_what_appears_in_the_meantime_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], is_late: bool
) -> None:
    """Late: after the last look at the path, where only the rename itself can fail."""
    out = tmp_path / "out"
    if is_late and make is Path.mkdir:
        pytest.skip("an empty folder is replaced by a rename")
    with pytest.raises(InputError) as caught, new_folder(out):  # noqa: PT012
        make(out)
        before = os.lstat(out)
        if is_late:
            monkeypatch.setattr(os.path, "lexists", lambda path: False)
    assert str(caught.value) == TAKEN.format(out)
    assert os.path.samestat(before, os.lstat(out))
    assert names(tmp_path) == ["out"]


def test_a_folder_that_was_replaced_is_not_published(tmp_path: Path) -> None:
    replaced = pytest.raises(StorageError, match="is now another folder")
    with replaced, new_folder(tmp_path / "out") as building:
        building.rename(tmp_path / "moved")
        building.mkdir()
    assert names(tmp_path) == ["moved"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = Folder.lock, []

    def late(folder: Folder) -> bool:
        if not swept:
            swept.append(folder.path)
            folder.path.rmdir()
        return lock(folder)

    monkeypatch.setattr(Folder, "lock", late)
    with new_folder(tmp_path / "out") as building:
        (building / "file").touch()
    assert building not in swept
    assert names(tmp_path / "out") == ["file"]
