"""Where everything lies on disk: names, chunks, codecs, metadata."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from actkit import open_cube
from actkit.batch_plan import CHUNK_BYTES
from actkit.errors import CorruptError, CubeError
from actkit.schema import VARIABLES, VISION
from actkit.store.layout import CUBE, array_names, array_of, cube_path, open_group, shard_region, shards
from actkit.store.ragged import Ragged
from actkit.store.receipts import receipt_name
from actkit.testing import contents, synthetic

BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "blocksize": 0}


def metadata(run: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((run / CUBE / name / "zarr.json").read_text()))


def test_a_run_folder_and_its_zarr_folder_are_the_same_cube(intact: Path) -> None:
    assert cube_path(intact) == cube_path(str(intact / CUBE)) == intact / CUBE


@pytest.mark.parametrize("path", ["", "nothing/here", "empty"])
def test_a_path_without_a_cube(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CubeError, match=r"holds no cube; give a run folder with cube\.zarr in it"):
        cube_path(tmp_path / path)


def foreign_group(path: Path) -> None:
    zarr.create_group(path)


def dataset_of_xarray(path: Path) -> None:
    xr.Dataset({"residual": ("sample", np.zeros(3))}).to_zarr(path, consolidated=False)


def older_format(path: Path) -> None:
    zarr.create_group(path).update_attributes({"actkit_format": 1})


def newer_format(path: Path) -> None:
    zarr.create_group(path).update_attributes({"actkit_format": 3})


def array_instead(path: Path) -> None:
    zarr.create_array(path, shape=(3,), dtype="int8")


def garbage(path: Path) -> None:
    path.mkdir()
    (path / "zarr.json").write_bytes(b"\xff\x00{")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (foreign_group, "was not written by actkit; this version reads format 2"),
        (dataset_of_xarray, "was written by xarray, without checksums or ledger"),
        (older_format, "is of format 1; this version reads format 2"),
        (newer_format, "is of format 3; this version reads format 2"),
        (array_instead, "cannot be opened as a zarr v3 group"),
        (garbage, "cannot be opened as a zarr v3 group"),
    ],
)
def test_what_is_no_cube_of_ours(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "a.zarr")
    with pytest.raises(CubeError, match=message):
        open_group(tmp_path / "a.zarr")


def test_missing_and_changed_metadata_are_named(run: Path) -> None:
    (run / CUBE / "residual" / "zarr.json").unlink()
    (run / CUBE / "text" / "zarr.json").write_bytes((run / CUBE / "language" / "zarr.json").read_bytes())
    with pytest.raises(CorruptError) as caught:
        open_group(run / CUBE)
    assert [(fault.where, fault.what) for fault in caught.value.faults] == [
        ("residual/zarr.json", "is missing"),
        ("text/zarr.json", "was changed"),
    ]


def test_a_number_that_reads_the_same_but_is_spelled_otherwise_is_still_a_change(run: Path) -> None:
    root = run / CUBE / "zarr.json"
    root.write_bytes(root.read_bytes().replace(b'"actkit_format": 2', b'"actkit_format": 2.0'))
    with pytest.raises(CorruptError, match=r"zarr\.json: was changed"):
        open_group(run / CUBE)


def test_consolidated_metadata_do_no_harm(run: Path) -> None:
    before = open_cube(run).load()
    with pytest.warns(UserWarning, match="not part in the Zarr format 3 specification"):
        zarr.consolidate_metadata(run / CUBE)
    assert b"consolidated_metadata" in (run / CUBE / "zarr.json").read_bytes()
    xr.testing.assert_identical(open_cube(run).load(), before)
    assert open_cube(run, group=VISION).sizes["token"] == 7

    zarr.open_group(run / CUBE, mode="r+", use_consolidated=True).update_attributes({"note": "mine"})
    with pytest.raises(CorruptError, match=r"zarr\.json: was changed"):
        open_cube(run)


@pytest.mark.parametrize(
    ("name", "shard", "chunk"),
    [
        # inner chunks are one layer, and as many samples as fit; here all four of a window
        ("residual", [3, 4, 6, 8], [1, 4, 6, 8]),
        ("attention", [3, 4, 6, 8], [1, 4, 6, 8]),
        ("mlp", [3, 4, 6, 8], [1, 4, 6, 8]),
        ("embedding", [4, 6, 8], [4, 6, 8]),
        ("norm", [3, 4, 6], [1, 4, 6]),
        ("pooled", [3, 4, 8], [1, 4, 8]),
        ("last", [3, 4, 8], [1, 4, 8]),
        ("nonfinite", [3, 4], [1, 4]),
        ("token_id", [4, 6], [4, 6]),
        ("token_kind", [4, 6], [4, 6]),
        ("position", [4, 6], [4, 6]),
        ("n_tokens", [4], [4]),
        # two layers, seven patches, four values
        ("vision/residual", [2, 4, 7, 4], [1, 4, 7, 4]),
        ("vision/norm", [2, 4, 7], [1, 4, 7]),
        ("vision/pooled", [2, 4, 4], [1, 4, 4]),
        ("vision/nonfinite", [2, 4], [1, 4]),
        ("vision/n_tokens", [4], [4]),
    ],
)
def test_a_window_of_a_variable_is_one_checksummed_shard(
    intact: Path, name: str, shard: list[int], chunk: list[int]
) -> None:
    described = metadata(intact, name)
    (sharding,) = described["codecs"]
    assert described["chunk_grid"]["configuration"]["chunk_shape"] == shard
    assert sharding["configuration"]["chunk_shape"] == chunk
    to_bytes = [codec["name"] for codec in sharding["configuration"]["codecs"]]
    assert to_bytes == ["bytes", "blosc", "crc32c"]
    item = np.dtype(VARIABLES[name].dtype).itemsize
    assert sharding["configuration"]["codecs"][1]["configuration"] == {**BLOSC, "typesize": item}
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]


def grid(run: Path, name: str) -> tuple[list[int], list[int]]:
    """Return the shapes of the shards and of the inner chunks of a variable."""
    described = metadata(run, name)
    (sharding,) = described["codecs"]
    return described["chunk_grid"]["configuration"]["chunk_shape"], sharding["configuration"]["chunk_shape"]


def test_inner_chunks_are_as_large_as_planned(tmp_path: Path) -> None:
    # 32 tokens × 512 values × 4 bytes: 64 kB a sample
    synthetic(n_layers=2, n_samples=32, n_tokens=64, hidden=512, window=32).create(tmp_path)
    samples = CHUNK_BYTES // 2**16
    assert grid(tmp_path, "residual") == ([2, 32, 64, 512], [1, samples, 32, 512])
    assert grid(tmp_path, "embedding") == ([32, 64, 512], [samples, 32, 512])


def test_a_patch_may_be_larger_than_a_chunk(tmp_path: Path) -> None:
    # 7 patches × 32768 values × 4 bytes: 896 kB a sample
    numbers = synthetic(n_layers=1, n_samples=4, n_tokens=2, hidden=2**16, window=4, everything=True)
    numbers.create(tmp_path)
    assert grid(tmp_path, "vision/residual") == ([2, 4, 7, 2**15], [1, 1, 7, 2**15])


def test_a_token_axis_that_is_no_multiple_of_its_tiles_is_rounded_up_in_shards_alone(tmp_path: Path) -> None:
    # three tiles of 23 hold 67 tokens; without the last two positions of the third
    synthetic(n_layers=2, n_samples=4, n_tokens=67, hidden=8, window=4).create(tmp_path)
    assert metadata(tmp_path, "residual")["shape"] == [2, 4, 67, 8]
    assert grid(tmp_path, "residual") == ([2, 4, 69, 8], [1, 4, 23, 8])
    # variables without hidden are not cut
    assert grid(tmp_path, "norm") == ([2, 4, 67], [1, 4, 67])


def test_every_chunk_that_is_no_shard_is_checksummed(intact: Path) -> None:
    whole = []
    for name in array_names(open_group(intact / CUBE)):
        codecs = [codec["name"] for codec in metadata(intact, name)["codecs"]]
        if codecs != ["sharding_indexed"]:
            assert codecs[-1] == "crc32c", name
            whole.append(name)
    of_windows = {name for name in VARIABLES if VARIABLES[name].by_window and VARIABLES[name].dtype != "str"}
    assert set(whole) == {*VARIABLES, "gender", "image_id"} - of_windows


def test_flags_are_one_chunk_a_window(intact: Path) -> None:
    assert metadata(intact, "committed")["chunk_grid"]["configuration"]["chunk_shape"] == [4]


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("sample_id", [10]),
        ("language", [10]),
        ("text", [10]),
        ("gender", [10]),
        ("image_id", [10]),
        # written with their window, which is one file
        ("token_text", [4, 6]),
        ("generated", [4]),
    ],
)
def test_strings_are_of_variable_length(intact: Path, name: str, chunk: list[int]) -> None:
    described = metadata(intact, name)
    assert described["data_type"] == "string"
    assert described["chunk_grid"]["configuration"]["chunk_shape"] == chunk
    assert [codec["name"] for codec in described["codecs"]] == ["vlen-utf8", "zstd", "crc32c"]


def test_rows_lie_in_files_of_their_own_length_whatever_the_window(tmp_path: Path) -> None:
    synthetic(n_layers=1, n_samples=9000, n_tokens=2, hidden=1, window=64).create(tmp_path)
    for name in ("sample_id", "text", "gender", "sample", "prompt_tokens", "truncated", "batch"):
        assert metadata(tmp_path, name)["chunk_grid"]["configuration"]["chunk_shape"] == [4096], name
        assert sorted(path.name for path in (tmp_path / CUBE / name).glob("c.*")) == ["c.0", "c.1", "c.2"]


def test_arrays_name_their_dimensions_and_say_what_they_mean(intact: Path) -> None:
    for name, variable in VARIABLES.items():
        described = metadata(intact, name)
        assert tuple(described["dimension_names"]) == variable.dims
        assert described["attributes"]["long_name"] == variable.meaning


def test_the_names_of_the_arrays_are_those_that_were_declared(intact: Path) -> None:
    group = open_group(intact / CUBE)
    names = array_names(group)
    assert sorted(names) == sorted([*VARIABLES, "gender", "image_id"])
    members = {path.removeprefix("/") for path, _ in group.members(max_depth=None)}
    assert {path for path in members if path != VISION} == set(names)


def test_a_cube_without_a_vision_tower_has_no_group(tmp_path: Path) -> None:
    synthetic(n_samples=4).create(tmp_path)
    group = open_group(tmp_path / CUBE)
    assert list(group.group_keys()) == []
    assert not [name for name in array_names(group) if "/" in name]


def test_attributes_are_scalars(intact: Path) -> None:
    for file in (intact / CUBE).rglob("zarr.json"):
        for value in json.loads(file.read_text())["attributes"].values():
            assert isinstance(value, str | int | float | bool)


def test_the_files_of_an_array(intact: Path) -> None:
    array = array_of(open_group(intact / CUBE), "norm")
    files = list(shards(intact / CUBE, array))
    assert [str(shard) for shard in files] == ["norm/c.0.0.0", "norm/c.0.1.0", "norm/c.0.2.0"]
    assert all(shard.path.is_file() for shard in files)
    of_group = list(shards(intact / CUBE, array_of(open_group(intact / CUBE), "vision/norm")))
    assert [str(shard) for shard in of_group] == [f"vision/{shard}" for shard in files]
    assert all(shard.path == intact / CUBE / str(shard) for shard in of_group)
    assert [shard_region(array, shard.window)[1] for shard in files] == [
        slice(0, 4),
        slice(4, 8),
        slice(8, 10),
    ]


def test_nothing_else_lies_in_a_cube(intact: Path) -> None:
    group = open_group(intact / CUBE)
    expected = {"zarr.json", "vision/zarr.json", *(f"{name}/zarr.json" for name in array_names(group))}
    for name in array_names(group):
        expected |= {str(shard) for shard in shards(intact / CUBE, array_of(group, name))}
    expected |= {receipt_name(window) for window in (None, 0, 1, 2)}
    assert set(contents(intact / CUBE)) == expected


@pytest.mark.slow
def test_a_cube_depends_on_neither_time_nor_host_nor_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # chunks of a megabyte: blosc cuts them into blocks, which several threads could put in any order
    numbers = synthetic(n_layers=2, n_samples=8, n_tokens=64, hidden=512, window=8, everything=True)
    trees = []
    for host, clock in (("here", 1e9), ("elsewhere", 2e9)):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        (tmp_path / host).mkdir()
        numbers.create(tmp_path / host).write(0, numbers.part(0))
        trees.append(contents(tmp_path / host))
    assert trees[0] == trees[1]


def test_pads_cost_nothing(tmp_path: Path) -> None:
    numbers = synthetic(n_layers=1, n_samples=4, n_tokens=200, hidden=64)
    sizes = {}
    for longest in (20, 200):
        lengths = np.array([20, 20, 20, longest])
        residual = np.zeros((1, 4, 200, 64), dtype=np.float32)
        residual[:] = np.random.default_rng(0).standard_normal(residual.shape)
        (tmp_path / str(longest)).mkdir()
        writer = numbers.create(tmp_path / str(longest))
        writer.write(0, {**numbers.part(0), "residual": Ragged.of(residual, lengths)})
        sizes[longest] = (tmp_path / str(longest) / CUBE / "residual" / "c.0.0.0.0").stat().st_size
    token = 64 * 4
    assert sizes[20] < 4 * 20 * token
    assert sizes[200] - sizes[20] < 180 * token * 1.05


def test_layers_at_which_a_component_is_absent_cost_nothing(tmp_path: Path) -> None:
    numbers = synthetic(n_layers=16, n_samples=4, n_tokens=16, hidden=64, everything=True)
    part = numbers.part(0)
    mlp = Ragged.of(numbers.values["mlp"], numbers.plan.lengths, [7])
    numbers.create(tmp_path).write(0, {**part, "mlp": mlp})
    sizes = {name: (tmp_path / CUBE / name / "c.0.0.0.0").stat().st_size for name in ("mlp", "residual")}
    index = 16 * 16 + 4
    assert (sizes["mlp"] - index) * 16 == pytest.approx(sizes["residual"] - index, rel=0.05)
