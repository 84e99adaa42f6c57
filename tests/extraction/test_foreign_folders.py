"""`actkit extract` goes on with a run folder where it lies, and writes through no link in it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import actkit
from actkit.cli import main
from actkit.errors import InputError
from actkit.schema import MOMENTS

WINDOW = 2


@pytest.fixture(scope="module")
def whole(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    options: dict[str, Any] = {"model": str(tiny_model), "data": str(prompts), "out": str(run)}
    actkit.extract(**options, listeners=[], window_samples=WINDOW, whiten=True)
    return run


@pytest.fixture
def halved(whole: Path, tmp_path: Path) -> Path:
    """A run whose last window is missing."""
    run = Path(shutil.copytree(whole, tmp_path / "original"))
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(config.replace(str(whole), str(run)), encoding="utf-8")
    (run / "cube.zarr" / "committed" / "c.2").unlink()
    (run / MOMENTS).unlink()
    return run


def committed(run: Path) -> int:
    return int(actkit.open_cube(run, partial=True).sizes["sample"])


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


@pytest.mark.slow
def test_a_copied_run_is_completed_itself(halved: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(halved, tmp_path / "copied"))
    before = tree(halved)
    assert main(["extract", str(copied / "config.yaml")]) == 0
    assert (committed(copied), committed(halved)) == (6, 4)
    assert tree(halved) == before


@pytest.mark.slow
def test_a_moved_run_stays_where_it_is(halved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = halved.rename(tmp_path / "moved")
    monkeypatch.chdir(moved)
    actkit.extract("config.yaml", listeners=[])
    assert committed(moved) == 6
    assert not halved.exists()


@pytest.mark.slow
def test_out_that_is_given_goes_over_the_folder(halved: Path, tmp_path: Path) -> None:
    actkit.extract(halved / "config.yaml", out=str(tmp_path / "again"), listeners=[])
    assert (committed(tmp_path / "again"), committed(halved)) == (6, 4)


@pytest.mark.slow
def test_a_config_that_somebody_wrote_says_where_it_goes(
    halved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "mine" / "config.yaml"
    written.parent.mkdir()
    shutil.copy(halved / "config.yaml", written)
    actkit.extract(written, listeners=[])
    assert committed(halved) == 6
    assert os.listdir(written.parent) == ["config.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "status.json",
        "status.json.partial",
        "log.txt",
        "config.yaml",
        "moments.safetensors",
        "moments.safetensors.partial",
        ".lock",
        "cube.zarr/committed/c.2",
        "cube.zarr/norm/c.0.2.partial",
    ],
)
def test_a_link_in_a_run_folder_is_refused_and_nothing_is_written(
    halved: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    shutil.copy(halved / "config.yaml", outside)
    (halved / name).unlink(missing_ok=True)
    (halved / name).symlink_to(outside)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        actkit.extract(halved / "config.yaml", listeners=[])
    assert tree(tmp_path) == before


def a_folder(path: Path, outside: Path) -> None:
    shutil.move(path, outside)
    path.symlink_to(outside)


def a_fifo(path: Path, outside: Path) -> None:
    if path.is_file():
        path.unlink()
    os.mkfifo(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("cube.zarr", a_folder),
        ("cube.zarr/norm", a_folder),
        ("config.yaml", a_fifo),
        ("status.json", a_fifo),
        ("log.txt", a_fifo),
        ("cube.zarr/norm/c.0.9", a_fifo),
    ],
)
def test_nor_is_a_folder_followed_or_a_fifo_waited_for(
    halved: Path, tmp_path: Path, name: str, make: Callable[[Path, Path], None]
) -> None:
    make(halved / name, tmp_path / "outside")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"is a link|is not a regular file|neither file nor folder"):
        actkit.extract(halved / "config.yaml", listeners=[])
    assert tree(tmp_path) == before
