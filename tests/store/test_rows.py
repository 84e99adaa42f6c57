"""The rows of the data reach the cube in blocks, and again where they were damaged."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actkit import open_cube, verify
from actkit.store.layout import CUBE
from actkit.store.writer import CubeWriter, create_cube
from actkit.testing import Synthetic, contents, flip_bit, synthetic
from tests.disk import Disk, Killed
from tests.trials import trials


def blocks_of(rows: dict[str, np.ndarray], *sizes: int) -> Iterator[dict[str, np.ndarray]]:
    start = 0
    for size in sizes:
        yield {name: values[start : start + size] for name, values in rows.items()}
        start += size


@pytest.fixture(scope="module")
def many() -> Synthetic:
    """More samples than a file of a coordinate holds; a label of each dtype."""
    numbers = synthetic(n_layers=1, n_samples=9000, n_tokens=2, hidden=1, window=9000)
    rng = np.random.default_rng(0)
    labels = {
        "gender": numbers.labels["gender"],
        "score": np.where(rng.random(9000) < 0.1, np.nan, rng.normal(size=9000)),
        "year": rng.integers(-(2**62), 2**62, 9000),
        "spoken": rng.random(9000) < 0.5,
    }
    rows = {name: numbers.rows[name] for name in ("sample_id", "language", "text")}
    return dataclasses.replace(numbers, labels=labels, rows={**rows, **labels})


DTYPES = {"gender": "str", "score": "float64", "year": "int64", "spoken": "bool"}


def create(run: Path, numbers: Synthetic, *sizes: int) -> CubeWriter:
    create_cube(
        run,
        numbers.plan,
        variables=tuple(numbers.values),
        coords=numbers.coords,
        labels=DTYPES,
        rows=blocks_of(numbers.rows, *sizes),
        attrs={"model": "synthetic", "first_is_content": True},
    )
    return CubeWriter(run / CUBE, numbers.plan)


def test_rows_arrive_in_blocks(tmp_path: Path, many: Synthetic) -> None:
    writer = create(tmp_path, many, 4096, 4096, 808)
    for window in range(many.plan.n_windows):
        writer.write(window, many.part(window))
    cube = open_cube(tmp_path)
    for name, values in many.rows.items():
        np.testing.assert_array_equal(cube[name], values, err_msg=name)
        assert cube[name].dtype == (object if DTYPES.get(name, "str") == "str" else DTYPES[name])
        assert ("label" in cube[name].attrs) == (name in DTYPES)
    assert verify(tmp_path).ok


def test_the_size_of_the_blocks_leaves_no_trace(tmp_path: Path, many: Synthetic) -> None:
    trees = []
    for name, sizes in {"whole": (9000,), "files": (4096, 4096, 808), "odd": (5000, 1, 3999)}.items():
        (tmp_path / name).mkdir()
        create(tmp_path / name, many, *sizes)
        trees.append(contents(tmp_path / name))
    assert trees[0] == trees[1] == trees[2]


def test_one_damaged_file_of_several_is_restored(tmp_path: Path, many: Synthetic) -> None:
    writer = create(tmp_path, many, 4096, 4096, 808)
    wanted = contents(tmp_path)
    for name, file in (("text", "c.1"), ("year", "c.2"), ("spoken", "c.0"), ("truncated", "c.1")):
        flip_bit(tmp_path / CUBE / name / file, 77)
    restored = writer.restore(many.coords, DTYPES, blocks_of(many.rows, 4096, 4096, 808))
    assert sorted(restored) == ["spoken", "text", "truncated", "year"]
    assert contents(tmp_path) == wanted


@pytest.mark.slow
def test_an_end_while_coordinates_are_restored_is_mended_by_the_next_one(
    tmp_path: Path, many: Synthetic, disk: Disk
) -> None:
    writer = create(tmp_path, many, 9000)
    wanted = contents(tmp_path)

    def damage() -> None:
        flip_bit(tmp_path / CUBE / "text" / "c.1", 77)
        flip_bit(tmp_path / CUBE / "batch" / "c.0", 77)

    def restore() -> None:
        writer.recover()
        writer.restore(many.coords, DTYPES, blocks_of(many.rows, 4096, 4096, 808))
        assert contents(tmp_path) == wanted

    damage()
    disk.steps.clear()
    restore()
    steps = [kind for kind, _ in disk.steps]
    assert set(steps) == {"open", "write", "rename", "fsync"}
    with trials("an end at every step of restoring two coordinates") as trial:
        for at, kind in enumerate(steps, start=1):
            damage()
            disk.fail(at, Killed())
            with trial(f"{kind}, {at}"):
                with pytest.raises(Killed):
                    restore()
                disk.mend()
                restore()
