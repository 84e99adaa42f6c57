"""Writers that share no lock: only the same bytes are written twice."""

import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actkit import open_cube, verify
from actkit.errors import StorageError
from actkit.store.layout import CUBE
from actkit.store.receipts import receipt_name
from actkit.store.shared_writer import SharedWriter
from actkit.testing import contents
from tests.store.subject import Subject, subject


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """A cube on a file system that knows no locks, as Lustre without `-o flock`."""

    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    (tmp_path / "made").mkdir()
    made = subject("small", tmp_path / "made")
    monkeypatch.setattr(fcntl, "flock", refuse)
    return made


@pytest.fixture
def run(tried: Subject, tmp_path: Path) -> Path:
    return tried.copy(0, tmp_path / "run")


def writer(tried: Subject, run: Path, windows: list[int] | None = None) -> SharedWriter:
    return SharedWriter(run / CUBE, tried.numbers.plan, tried.windows if windows is None else windows)


def test_parts_write_what_one_writer_writes(tried: Subject, run: Path) -> None:
    for part in ([2], [0], [1]):
        mine = writer(tried, run, part)
        assert mine.recover() == part
        for window in part:
            assert mine.write(window, tried.numbers.part(window)) > 0
            assert mine.write(window, tried.numbers.part(window)) == 0
    assert contents(run) == tried.whole


def test_a_window_of_which_only_the_receipt_was_written_is_completed(tried: Subject, run: Path) -> None:
    receipt = f"{CUBE}/{receipt_name(0)}"
    (run / receipt).write_bytes(tried.whole[receipt])
    mine = writer(tried, run)
    assert mine.recover() == [0, 1, 2]
    for window in tried.windows:
        mine.write(window, tried.numbers.part(window))
    assert contents(run) == tried.whole


@pytest.mark.parametrize("committed", [False, True])
def test_other_values_for_a_window_are_refused_and_harm_nothing(
    tried: Subject, run: Path, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = writer(tried, run), writer(tried, run)
    other: dict[str, Any] = dict(tried.numbers.part(0))
    other["n_tokens"] = np.asarray(other["n_tokens"]) + 1
    if committed:
        first.write(0, tried.numbers.part(0))
        monkeypatch.setattr(second, "_is_committed", lambda window: False)  # it looked before
    else:
        receipt = f"{CUBE}/{receipt_name(0)}"
        (run / receipt).write_bytes(tried.whole[receipt])
    with pytest.raises(StorageError, match="other values for window 0; compute all parts on machines"):
        second.write(0, other)
    for window in tried.windows:
        first.write(window, tried.numbers.part(window))
    assert contents(run) == tried.whole


def test_a_window_that_another_writer_committed_survives_the_loss_of_unfinished_files(
    tried: Subject, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = writer(tried, run), writer(tried, run)
    commit = slow._commit

    def swept(window: int, files: list[Any]) -> int:
        fast.write(window, tried.numbers.part(window))
        for path in (run / CUBE).rglob("*.partial"):
            path.unlink()
        monkeypatch.setattr(slow, "_is_committed", lambda window: False)  # a stale view of the folder
        try:
            return commit(window, files)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(slow, "_commit", swept)
    assert slow.write(0, tried.numbers.part(0)) == 0
    assert verify(run).ok


def test_a_damaged_window_is_computed_again_by_its_part_alone(tried: Subject, tmp_path: Path) -> None:
    run = tried.copy(3, tmp_path / "damaged")
    (run / CUBE / "residual" / "c.0.1.0.0").unlink()
    assert writer(tried, run, [0, 2]).recover() == []
    mine = writer(tried, run, [1])
    assert mine.recover() == [1]
    mine.write(1, tried.numbers.part(1))
    assert contents(run) == tried.whole
    assert open_cube(run).sizes["sample"] == 10


def test_no_writer_touches_files_that_others_write(tried: Subject, run: Path) -> None:
    other = run / CUBE / "residual" / f"c.0.0.0.0.{'a' * 32}.partial"
    other.write_bytes(b"being written on another machine")
    mine = writer(tried, run)
    mine.recover()
    mine.write(0, tried.numbers.part(0))
    assert other.read_bytes() == b"being written on another machine"
