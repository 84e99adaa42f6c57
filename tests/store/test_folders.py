"""Files of a folder are replaced whole, and unfinished ones are known by their names."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from actkit.store import partial_files
from actkit.store.folders import Folder
from actkit.store.partial_files import finished_name


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    held = Folder(tmp_path)
    yield held
    held.close()


def test_a_file_is_replaced_and_what_it_links_to_is_not(tmp_path: Path, folder: Folder) -> None:
    (tmp_path / "outside").write_text("outside")
    for name in ("it", "it.partial"):
        (tmp_path / name).symlink_to("outside")
    folder.replace("it", b"new")
    assert not (tmp_path / "it").is_symlink()
    assert (tmp_path / "it").read_text() == "new"
    assert (tmp_path / "outside").read_text() == "outside"


def test_a_file_is_whole_when_it_gets_its_name(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.rename, []

    def watched(source: str, target: str, **folders: Any) -> None:
        seen.append((tmp_path / source).read_bytes())
        assert finished_name(source) == target
        rename(source, target, **folders)

    monkeypatch.setattr(os, "rename", watched)
    folder.replace("it", b"new")
    assert seen == [b"new"]


def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "it").write_text("old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        folder.replace("it", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["it"]
    assert (tmp_path / "it").read_text() == "old"


def test_unfinished_files_of_the_dead_are_swept_by_their_names(tmp_path: Path, folder: Folder) -> None:
    (tmp_path / "below").mkdir()
    left = ["it.partial", f"it.{'0a' * 16}.partial"]
    kept = ["it", "its.partial", "it.1.partial", f"below/it.{'0a' * 16}.partial"]
    for name in left + kept:
        (tmp_path / name).touch()
    living = folder.partial("it")
    folder.sweep("it")
    remaining = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert remaining - {living._unfinished} == set(kept)
    living.place()
    living.close()


@pytest.mark.parametrize("depth", [1500, 2500])
def test_folders_of_any_depth_are_swept_as_far_as_arrays_lie_and_removed(
    tmp_path: Path, folder: Folder, nest: Callable[[Path, int], Path], depth: int
) -> None:
    nest(tmp_path / "d", depth)
    unfinished = f"c.0.{'0a' * 16}.partial"
    left = [unfinished, f"d/{unfinished}", f"d/d/{unfinished}"]
    for name in (*left, f"d/d/d/{unfinished}"):
        (tmp_path / name).touch()
    folder.sweep()
    assert [name for name in left if (tmp_path / name).exists()] == []
    assert (tmp_path / f"d/d/d/{unfinished}").exists()
    (tmp_path / "d" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    folder.remove_tree("d")
    assert not (tmp_path / "d").exists()
    assert (tmp_path / "outside" / "file").exists()


def test_a_tree_is_removed_as_far_as_that_is_allowed(
    tmp_path: Path, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kept", "a", "b/kept", "b/c"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).touch()
    unlink = os.unlink

    def refuse(name: str, **at: int) -> None:
        if name == "kept":
            raise PermissionError(13, "Permission denied")
        unlink(name, **at)

    monkeypatch.setattr(os, "unlink", refuse)
    folder.remove_tree("tree")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path)) for path in files) == ["tree/b/kept", "tree/kept"]
    folder.remove_tree("missing")


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "{absolute}", "..", ".", ""])
def test_a_tree_outside_the_folder_is_never_removed(tmp_path: Path, name: str) -> None:
    for path in ("victim", "inside/a"):
        (tmp_path / path).mkdir(parents=True)
    with closing(Folder(tmp_path / "inside")) as folder, pytest.raises(ValueError, match="is not the name"):
        folder.remove_tree(name.format(absolute=tmp_path / "victim"))
    assert (tmp_path / "victim").exists()
    assert (tmp_path / "inside" / "a").exists()


@pytest.mark.parametrize("name", ["it", ".partial", "it.partially", f"it.{'0a' * 16}"])
def test_finished_files_are_known_as_such(name: str) -> None:
    assert finished_name(name) == ""


def test_a_folder_behind_a_link_is_opened_where_that_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    Folder(tmp_path / "link").close()
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        Folder(tmp_path / "link", follow=False)


def test_a_folder_that_is_open_at_the_end_of_the_interpreter(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as ended:
        ended.setattr("actkit.store.folders.os", None)
        folder.__del__()
    folder.check()


def test_the_disk_is_asked_early_to_store_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, ranges = partial_files._start_writeback, []

    def recorded(descriptor: int, first: int, last: int) -> None:
        ranges.append((first, last))
        start(descriptor, first, last)

    monkeypatch.setattr(partial_files, "_start_writeback", recorded)
    blocks = [bytes([number]) * 3 * 2**20 for number in range(7)]
    with closing(Folder(tmp_path)) as folder, closing(folder.partial("x")) as file:
        for block in blocks:
            file.write(block)
        file.place()
    assert ranges == [(0, 9 * 2**20), (9 * 2**20, 18 * 2**20)]
    assert (tmp_path / "x").read_bytes() == b"".join(blocks)
