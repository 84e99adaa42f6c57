"""An extraction whose folder becomes that of another run ends, and leaves the other one alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from actkit import extract, open_cube, verify
from actkit.errors import StorageError
from actkit.extraction.monitoring.progress import Progress
from actkit.store.run_folder import LOG, read_status
from actkit.testing import contents, write_cube
from tests.runs.extractions import Options


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def moved(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))
    write_cube(run)


def deleted(run: Path) -> None:
    shutil.rmtree(run)
    write_cube(run)


@pytest.mark.slow
@pytest.mark.parametrize("whiten", [False, True], ids=["", "whiten"])
@pytest.mark.parametrize("replace", [moved, deleted])
@pytest.mark.parametrize("state", ["loading", "running"])
def test_an_extraction_whose_folder_is_replaced(
    run: Path, options: Options, state: str, replace: Callable[[Path], None], whiten: bool
) -> None:
    before: dict[str, bytes] = {}

    def watch(event: Progress) -> None:
        if not before and event.state == state and (state == "loading" or event.committed):
            replace(run)
            before.update(contents(run))

    with pytest.raises(StorageError, match=f"{run}.*: (is now another folder|no longer exists)"):
        extract(**options, whiten=whiten, out=str(run), listeners=[watch])
    assert before
    assert contents(run) == before
    assert open_cube(run).attrs["model"] == "synthetic"
    if replace is moved:
        left = run.with_name("elsewhere")
        assert read_status(left)[0]["state"] == "failed"
        assert "StorageError" in (left / LOG).read_text()
        if state == "running":
            assert verify(left).ok
            assert 0 < verify(left).committed < verify(left).samples
