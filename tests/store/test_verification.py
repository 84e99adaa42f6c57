"""Damage is named, file by file, and never read as numbers."""

import errno
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr.storage._local as local

from actkit import open_cube, verify
from actkit.cli import main
from actkit.errors import CorruptError, CubeError
from actkit.schema import VARIABLES, VISION
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.testing import Synthetic, contents, flip_bit

LABELS = ("gender", "image_id")
ARRAYS = (*VARIABLES, *LABELS)
# what is read when it is computed with, not when the cube is opened
LAZY = [name for name, variable in VARIABLES.items() if len(variable.dims) > 1]
VISION_NODES = [VISION, *(name for name, variable in VARIABLES.items() if variable.group == VISION)]


def files_of(run: Path, name: str) -> list[Path]:
    array = array_of(open_group(run / CUBE), name)
    return [shard.path for shard in shards(run / CUBE, array)]


def expect_named(run: Path, name: str, files: list[Path], what: str) -> None:
    """Every way to the numbers of an array leads to an error with the names of these files, and no others."""
    wanted = [(str(path.relative_to(run / CUBE)), what) for path in files]

    found = verify(run)
    assert [(fault.where, fault.what.partition(":")[0]) for fault in found.faults] == wanted
    assert not found.ok
    group, _, short = name.rpartition("/")
    with pytest.raises(CorruptError) as caught:
        open_cube(run, group=group)[short].load(scheduler="synchronous")
    assert [(fault.where, fault.what.partition(":")[0]) for fault in caught.value.faults] == wanted


def test_a_sound_cube(intact: Path, undisturbed: dict[str, bytes]) -> None:
    found = verify(intact)
    assert found.ok
    assert (found.path, found.committed, found.samples) == (intact / CUBE, 10, 10)
    # the flags are read as well, but tell nothing about a sample of their own
    checked = [path for path in undisturbed if not path.startswith("committed/") and "zarr.json" not in path]
    assert (found.files, found.bytes) == (len(checked), sum(len(undisturbed[path]) for path in checked))


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit(run: Path, name: str) -> None:
    chance = random.Random(name)
    for path in files_of(run, name):
        for bit in (chance.randrange(8 * path.stat().st_size), chance.choice([0, -1])):
            flip_bit(path, bit)
            expect_named(run, name, [path], "is truncated or corrupted")
            flip_bit(path, bit)
    assert verify(run).ok


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", VISION, *ARRAYS])
def test_a_flipped_bit_of_the_metadata(run: Path, name: str) -> None:
    path = run / CUBE / name / "zarr.json"
    chance = random.Random(name)
    for _ in range(20 if name in ("", VISION) else 2):
        bit = chance.randrange(8 * path.stat().st_size)
        flip_bit(path, bit)
        for read in (verify, open_cube):
            with pytest.raises(CubeError) as caught:
                read(run)
            # what is no metadata at all is not known to be ours
            if isinstance(caught.value, CorruptError):
                assert str(caught.value.faults[0]).startswith(
                    str(path.relative_to(run / CUBE)) + ": was changed"
                )
            else:
                assert str(run / CUBE) in str(caught.value)
        flip_bit(path, bit)
    assert verify(run).ok


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("residual", "mlp", "embedding", "pooled", "nonfinite", "text", "sample", "has_mlp"),
        *("token_kind", "token_text", "n_tokens", "generated"),
        *("vision/residual", "vision/n_tokens", "vision/layer"),
    ],
)
@pytest.mark.parametrize("keep", [1, 0.3, 0.9, -1])
def test_a_cut_file(run: Path, name: str, keep: float) -> None:
    path = files_of(run, name)[-1]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if abs(keep) == 1 else keep * len(content))])
    expect_named(run, name, [path], "is truncated or corrupted")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARRAYS if name != "committed"])
def test_a_file_that_is_missing_or_empty(run: Path, name: str) -> None:
    *_, path = files_of(run, name)
    path.write_bytes(b"")
    expect_named(run, name, [path], "is empty")
    path.unlink()
    expect_named(run, name, [path], "is missing")
    with pytest.raises(CorruptError):  # no need to read it
        open_cube(run)


def test_empty_flags_are_named_and_missing_flags_mean_that_the_window_is_not_there(run: Path) -> None:
    path = files_of(run, "committed")[1]
    path.write_bytes(b"")
    expect_named(run, "committed", [path], "is empty")
    path.unlink()
    assert verify(run).committed == 6
    with pytest.raises(CubeError, match="6 of 10 samples are committed"):
        open_cube(run)


def test_beside_damaged_flags_missing_ones_are_no_damage(run: Path) -> None:
    first, second, _ = files_of(run, "committed")
    first.unlink()
    flip_bit(second, 3)
    files_of(run, "residual")[0].unlink()
    found = verify(run)
    assert [fault.where for fault in found.faults] == ["committed/c.1"]
    assert found.committed == 2


def test_every_fault_is_named_at_once(run: Path) -> None:
    cut, missing = files_of(run, "residual")[0], files_of(run, "norm")[2]
    text, flags = files_of(run, "text")[0], files_of(run, "committed")[1]
    pieces, patches = files_of(run, "token_text")[2], files_of(run, "vision/residual")[0]
    cut.write_bytes(cut.read_bytes()[:100])
    missing.unlink()
    for path in (text, flags, pieces):
        flip_bit(path, 9)
    patches.write_bytes(b"")
    assert {fault.where: fault.what.partition(":")[0] for fault in verify(run).faults} == {
        "residual/c.0.0.0.0": "is truncated or corrupted",
        "norm/c.0.2.0": "is missing",
        "text/c.0": "is truncated or corrupted",
        "committed/c.1": "is truncated or corrupted",
        "token_text/c.2.0": "is truncated or corrupted",
        "vision/residual/c.0.0.0.0": "is empty",
    }


def test_what_lies_in_an_uncommitted_window_is_no_damage(run: Path) -> None:
    files_of(run, "committed")[1].unlink()
    files_of(run, "residual")[1].write_bytes(b"half a shard")
    files_of(run, "norm")[1].unlink()
    files_of(run, "n_tokens")[1].unlink()
    files_of(run, "generated")[1].write_bytes(b"")
    files_of(run, "vision/residual")[1].write_bytes(b"half a shard")
    files_of(run, "vision/n_tokens")[1].unlink()
    found = verify(run)
    assert found.ok
    assert found.committed == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", LAZY)
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (Path.unlink, "is missing"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is truncated or corrupted"),
        (lambda path: flip_bit(path, 77), "is truncated or corrupted"),
    ],
    ids=["deleted", "emptied", "cut", "flipped"],
)
def test_damage_after_opening(run: Path, name: str, damage: Callable[[Path], Any], what: str) -> None:
    group, _, short = name.rpartition("/")
    cube = open_cube(run, group=group)
    *_, path = files_of(run, name)
    damage(path)
    with pytest.raises(CorruptError) as caught:
        cube[short].load()
    assert [(fault.where, fault.what.partition(":")[0]) for fault in caught.value.faults] == [
        (f"{name}/{path.name}", what)
    ]


def test_only_the_files_that_are_read_are_looked_at(run: Path) -> None:
    cube = open_cube(run)
    first, _, last = files_of(run, "residual")
    flip_bit(first, 50)
    flip_bit(last, 50)
    with pytest.raises(CorruptError) as caught:
        cube.residual.isel(sample=9).load()
    assert [fault.where for fault in caught.value.faults] == ["residual/c.0.2.0.0"]
    cube.residual.isel(sample=slice(4, 8)).load()
    open_cube(run, group=VISION).residual.load()


@pytest.mark.slow
def test_damage_to_one_group_is_named_and_leaves_the_other_readable(run: Path) -> None:
    flip_bit(files_of(run, "vision/residual")[1], 500)
    flip_bit(files_of(run, "residual")[2], 500)
    assert [fault.where for fault in verify(run).faults] == [
        "residual/c.0.2.0.0",
        "vision/residual/c.0.1.0.0",
    ]
    with pytest.raises(CorruptError) as caught:
        open_cube(run, group=VISION).residual.load()
    assert [fault.where for fault in caught.value.faults] == ["vision/residual/c.0.1.0.0"]
    open_cube(run).mlp.load()


def test_a_missing_group_is_named(run: Path) -> None:
    shutil.rmtree(run / CUBE / VISION)
    for read in (verify, open_cube):
        with pytest.raises(CorruptError) as caught:
            read(run)
        assert sorted((fault.where, fault.what) for fault in caught.value.faults) == sorted(
            (f"{name}/zarr.json", "is missing") for name in VISION_NODES
        )


def test_a_disk_that_refuses_to_read_is_reported_as_such(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = local._get

    def broken(path: Path, *arguments: Any) -> Any:
        if path.parent.name == "norm" and path.name.startswith("c."):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, *arguments)

    monkeypatch.setattr(local, "_get", broken)
    assert {fault.what for fault in verify(run).faults} == {"cannot be read: Input/output error"}


def test_too_little_memory_is_no_damage(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(path: Path, *arguments: Any) -> Any:
        raise MemoryError

    cube = open_cube(run)
    monkeypatch.setattr(local, "_get", exhausted)
    with pytest.raises(MemoryError):
        cube.norm.load()


def test_the_command_line_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run)]) == 0
    assert "sound; " in capsys.readouterr().out

    path = files_of(run, "last")[0]
    flip_bit(path, 1000)
    assert main(["verify", str(run)]) == 1
    shown = capsys.readouterr().out
    assert "last/c.0.0.0: is truncated or corrupted" in shown
    assert "1 damaged; " in shown

    flip_bit(run / CUBE / "last" / "zarr.json", 1000)
    assert main(["verify", str(run)]) == 1
    assert "last/zarr.json: was changed" in capsys.readouterr().err


@pytest.mark.slow
def test_following_the_advice_mends_the_cube(
    run: Path, numbers: Synthetic, undisturbed: dict[str, bytes]
) -> None:
    from actkit.store.writer import CubeWriter

    damaged = ("residual", "text", "token_text", "vision/residual", "vision/layer", "n_tokens")
    for name in damaged:
        flip_bit(files_of(run, name)[0], 99)
    assert len(verify(run).faults) == len(damaged)
    for fault in verify(run).faults:
        assert fault.hint == "delete it if it exists, and rerun the extraction"
        (run / CUBE / fault.where).unlink()
    writer = CubeWriter(run / CUBE, numbers.plan)
    assert set(writer.restore(numbers.coords, numbers.labels, [numbers.rows])) == {"text", "vision/layer"}
    for window in writer.recover():
        writer.write(window, numbers.part(window))
    assert contents(run / CUBE) == undisturbed
