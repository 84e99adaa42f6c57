"""Windows in files without a name: as large as those of a cube, and nothing of them is left."""

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from actkit.errors import StorageError
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.store.scratch_writer import ScratchWriter
from actkit.testing import Synthetic, synthetic


@pytest.fixture
def numbers() -> Synthetic:
    """A cube with every variable, in windows of four samples."""
    return synthetic(n_samples=12, everything=True)


@pytest.fixture
def writer(numbers: Synthetic, tmp_path: Path) -> Iterator[ScratchWriter]:
    with closing(ScratchWriter(tmp_path, numbers.plan)) as writer:
        yield writer


def test_every_variable_takes_the_bytes_of_its_shard(
    numbers: Synthetic, writer: ScratchWriter, tmp_path: Path
) -> None:
    cost = writer.write(numbers.part(1), 4)
    with closing(numbers.create(tmp_path)) as real:
        real.write(1, numbers.part(1))
    group = open_group(tmp_path / CUBE)
    for name in numbers.part(1):
        shard = list(shards(real.path, array_of(group, name)))[1]
        assert cost.sizes[name] == shard.path.stat().st_size, name
    assert cost.seconds > 0
    assert cost.busy > 0
    assert cost.other_seconds > 0


def test_a_few_samples_need_no_whole_window(numbers: Synthetic, writer: ScratchWriter) -> None:
    part = numbers.part(0)
    small = {name: values for name, values in part.items() if name in ("norm", "n_tokens", "generated")}
    three = {name: values[:, :3] if name == "norm" else values[:3] for name, values in small.items()}
    assert writer.write(three, 3).sizes["norm"] < writer.write(small, 4).sizes["norm"]


def test_nothing_is_left(numbers: Synthetic, writer: ScratchWriter, tmp_path: Path) -> None:
    open_before = len(os.listdir("/proc/self/fd"))
    writer.write(numbers.part(0), 4)
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == open_before


@pytest.mark.parametrize("at", range(1, 12))
def test_a_disk_that_refuses_is_an_error_and_nothing_is_left(
    at: int, numbers: Synthetic, writer: ScratchWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, calls = os.fsync, iter(range(1, 100))

    def refuse(file: int) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(file)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=f"cannot write into {tmp_path}: No space left on device"):
        writer.write(numbers.part(0), 4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_is_an_error(small_disk: Path) -> None:
    numbers = synthetic(n_samples=64, n_tokens=32, hidden=64, window=64)
    part = numbers.part(0)
    with closing(ScratchWriter(small_disk, numbers.plan)) as writer:
        with pytest.raises(StorageError, match="No space left on device"):
            writer.write(part, 64)
        assert list(small_disk.iterdir()) == []
        # and its room is free again
        writer.write({"nonfinite": part["nonfinite"]}, 64)
