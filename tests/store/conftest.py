"""A cube to read, a copy to damage, and a disk that fails where it is told to."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actkit import open_cube
from actkit.schema import VARIABLES, VISION
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.testing import Synthetic, contents, synthetic
from tests.disk import Disk, watched


@pytest.fixture(scope="session")
def numbers() -> Synthetic:
    """Three windows, the last of them not full."""
    return synthetic(n_layers=3, n_samples=10, n_tokens=6, hidden=8, window=4, everything=True)


@pytest.fixture(scope="session")
def intact(tmp_path_factory: pytest.TempPathFactory, numbers: Synthetic) -> Path:
    """The run folder of a complete cube, which nobody changes."""
    run = tmp_path_factory.mktemp("intact")
    writer = numbers.create(run)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    return run


@pytest.fixture(scope="session")
def undisturbed(intact: Path) -> dict[str, bytes]:
    """Every file of the complete cube."""
    return contents(intact / CUBE)


@pytest.fixture
def truth(numbers: Synthetic) -> xr.Dataset:
    """The same numbers, in memory, that never were on a disk."""
    return xr.Dataset(
        {
            name: (VARIABLES[name].dims, values)
            for name, values in numbers.values.items()
            if not VARIABLES[name].coord and not VARIABLES[name].group
        }
    )


@pytest.fixture
def written(numbers: Synthetic) -> dict[str, np.ndarray]:
    """All that was written, by the paths in the store."""
    return {**numbers.values, **numbers.coords, **numbers.rows, "batch": numbers.plan.batches}


@pytest.fixture
def cube(intact: Path) -> xr.Dataset:
    """The complete cube, opened."""
    return open_cube(intact)


@pytest.fixture
def tower(intact: Path) -> xr.Dataset:
    """What it holds of the vision tower."""
    return open_cube(intact, group=VISION)


@pytest.fixture
def stored(cube: xr.Dataset, tower: xr.Dataset) -> Callable[[str], xr.DataArray]:
    """Return a variable of it, by its path in the store."""

    def read(name: str) -> xr.DataArray:
        group, _, short = name.rpartition("/")
        return {"": cube, VISION: tower}[group][short]

    return read


@pytest.fixture
def run(intact: Path, tmp_path: Path) -> Path:
    """The run folder of a complete cube, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "run"))


@pytest.fixture
def uncommit(run: Path) -> Callable[[int], None]:
    """Take a window back, and leave garbage where its shards were."""

    def take_back(window: int) -> None:
        names = [name for name, variable in VARIABLES.items() if variable.by_window]
        for name in (*names, "committed"):
            path = list(shards(run / CUBE, array_of(open_group(run / CUBE), name)))[window].path
            path.unlink() if name == "committed" else path.write_bytes(b"garbage")

    return take_back


@pytest.fixture
def disk() -> Iterator[Disk]:
    """The disk below the store; its fsync only takes notes."""
    with watched() as below:
        yield below
