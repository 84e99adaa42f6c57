"""Any zarr reader reads the same, and ours reads no more than it needs."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr

from actkit import open_cube
from actkit.schema import VARIABLES, VISION
from actkit.store.layout import CUBE, array_of, open_group, shards
from actkit.testing import synthetic, write_cube
from tests.store.test_shard_files import ABSENT, index_of

# other readers of the same files


def test_xarray_alone_reads_the_same(intact: Path, cube: xr.Dataset) -> None:
    plain = xr.open_zarr(intact / CUBE, consolidated=False)
    assert set(plain.coords) == set(cube.coords)
    xr.testing.assert_equal(plain.load(), cube.load())


def test_xarray_alone_reads_the_same_of_the_vision_tower(intact: Path, tower: xr.Dataset) -> None:
    plain = xr.open_zarr(intact / CUBE, group=VISION, consolidated=False)
    assert set(plain.coords) == {"layer", "sample", "token", "n_tokens"}
    assert set(plain.data_vars) == set(tower.data_vars)
    xr.testing.assert_equal(plain.load(), tower.drop_vars(tower.coords.keys() - plain.coords.keys()).load())


def test_xarray_alone_reads_all_groups_at_once(intact: Path, cube: xr.Dataset, tower: xr.Dataset) -> None:
    groups = xr.open_groups(intact / CUBE, engine="zarr", consolidated=False)
    assert set(groups) == {"/", "/vision"}
    xr.testing.assert_equal(groups["/"].load(), cube.load())
    xr.testing.assert_equal(
        groups["/vision"].residual.load(),
        tower.residual.load().drop_vars(tower.coords.keys() - groups["/vision"].coords.keys()),
    )


def test_zarr_alone_reads_the_same(
    intact: Path, cube: xr.Dataset, stored: Callable[[str], xr.DataArray]
) -> None:
    group = zarr.open_group(intact / CUBE, mode="r")
    assert set(group.array_keys()) == set(cube.variables)
    assert set(group.group_keys()) == {VISION}
    arrays = {name: array for name, array in group.members(max_depth=None) if isinstance(array, zarr.Array)}
    assert set(arrays) == {*VARIABLES, "gender", "image_id"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(np.asarray(array[...]), stored(name).values)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIABLES if VARIABLES[name].dtype != "str"])
def test_tensorstore_reads_the_same(intact: Path, stored: Callable[[str], xr.DataArray], name: str) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(intact / CUBE / name)}}
    read = tensorstore.open(spec, read=True).result().read().result()
    expected = stored(name)
    assert read.dtype == expected.dtype
    np.testing.assert_array_equal(read, expected.values)


BY_WINDOW = [name for name, variable in VARIABLES.items() if variable.by_window]


# how much it reads, and how long it takes


def bytes_read(read: Callable[[], object]) -> int:
    """Return how many bytes this process read from files, as the kernel counts them."""

    def count() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    empty = -count() + count()
    before = count()
    read()
    return count() - before - empty


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A residual of 6 layers × 2 windows × several inner chunks."""
    return write_cube(
        tmp_path_factory.mktemp("large"), n_layers=6, n_samples=32, n_tokens=64, hidden=512, window=16
    )


@pytest.mark.slow
def test_one_layer_reads_its_share_of_the_bytes(large: Path) -> None:
    cube = open_cube(large)
    size = sum(path.stat().st_size for path in (large / CUBE / "residual").glob("c.*"))
    read = bytes_read(lambda: cube.residual.sel(layer=2).load())
    print(f"\n.sel(layer=2) read {read:,} of {size:,} bytes: {read / size:.4f}, 1/6 = {1 / 6:.4f}")
    assert size / 6 * 0.95 < read < size / 6 * 1.05


def test_one_sample_reads_its_inner_chunks_alone(large: Path) -> None:
    cube = open_cube(large)
    array = array_of(open_group(large / CUBE), "residual")
    path = large / CUBE / "residual" / "c.0.0.0.0"
    index = index_of(path.read_bytes(), array)
    chunks = index[:, 5 // array.chunks[1], :, 0]
    chunk_bytes = int(chunks[..., 1][chunks[..., 0] != ABSENT].sum())
    read = bytes_read(lambda: cube.residual.isel(sample=5).load())
    size = path.stat().st_size
    share = chunk_bytes / size
    print(f"\n.isel(sample=5) read {read:,} bytes; its chunks are {chunk_bytes:,} of {size:,}: {share:.4f}")
    # and the index, for each layer
    assert chunk_bytes < read < chunk_bytes + 6 * (index.nbytes + 4) * 2 + 10_000
    assert chunk_bytes < size / 2


def test_the_graph_stays_small(large: Path) -> None:
    cube = open_cube(large)
    assert cube.residual.data.npartitions == 6
    assert len(cube.sel(layer=2).residual.data.dask) < 15


@pytest.mark.slow
def test_ten_thousand_samples_open_at_once(tmp_path: Path) -> None:
    numbers = synthetic(n_layers=2, n_samples=10_000, n_tokens=4, hidden=4, window=16)
    numbers.create(tmp_path).write(0, numbers.part(0))
    group = open_group(tmp_path / CUBE)
    written = [name for name in BY_WINDOW if name in group]
    assert {"residual", "token_text", "n_tokens"} <= set(written)
    for name in (*written, "committed"):
        first, *others = (shard.path for shard in shards(tmp_path / CUBE, array_of(group, name)))
        for path in others:
            shutil.copyfile(first, path)
    started = time.perf_counter()
    cube = open_cube(tmp_path)
    seconds = time.perf_counter() - started
    assert cube.sizes["sample"] == 10_000
    print(f"\n10,000 samples in 625 windows opened in {seconds:.2f} s")
    assert seconds < 2


@pytest.mark.slow
def test_opening_and_analysing_import_no_torch(intact: Path) -> None:
    code = (
        "import sys, actkit\n"
        "cube = actkit.open_cube(sys.argv[1])\n"
        "cube.groupby('language').mean().load()\n"
        "actkit.layer_norms(cube).load(), actkit.verify(sys.argv[1]), actkit.token_strings(cube, 3)\n"
        "actkit.open_cube(sys.argv[1], group='vision').load()\n"
        "print([name for name in ('torch', 'transformers', 'tokenizers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(intact)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
