"""A layer as a dataset gives what the cube holds, and what an export gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from datasets import Dataset
from torch.utils.data import DataLoader

import actkit
from actkit.errors import InputError, MissingError
from actkit.exporters.huggingface_dataset import layer_dataset
from actkit.exporters.run_export import export
from actkit.testing import write_cube


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(tmp_path_factory.mktemp("rows") / "run", n_samples=300, hidden=6, window=64)


@pytest.fixture(scope="module")
def cube(run: Path) -> xr.Dataset:
    return actkit.open_cube(run).load()


@pytest.mark.slow
def test_rows_are_those_of_the_cube_and_of_an_export(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    rows = list(layer_dataset(run, layer=1))
    export(run, tmp_path / "out", format="arrow", layers=1)
    table = Dataset.from_file(str(tmp_path / "out" / "layer_1.arrow"))
    assert len(rows) == len(table) == 300
    assert list(rows[0]) == table.column_names
    for sample in range(0, 300, 37):
        row, n_tokens = rows[sample], int(cube.n_tokens[sample])
        exact = cube.residual.sel(layer=1).values[sample, :n_tokens]
        np.testing.assert_array_equal(np.array(row["activations"], dtype=np.float32), exact)
        assert {name: np.array(value).tolist() for name, value in row.items()} == table[sample]


def test_labels_choose_samples(run: Path, cube: xr.Dataset) -> None:
    dataset = layer_dataset(run, layer=0, where={"gender": "female", "language": "arabic"})
    is_chosen = (cube.gender.values == "female") & (cube.language.values == "arabic")
    assert [row["text"] for row in dataset] == cube.text.values[is_chosen].tolist()


@pytest.mark.slow
def test_it_is_shuffled_and_formatted(run: Path, cube: xr.Dataset) -> None:
    rows = layer_dataset(run, layer=2).shuffle(seed=0, buffer_size=50).with_format("torch")
    order = []
    for row in rows:
        sample = int(row["text"].split()[1])
        order.append(sample)
        exact = cube.residual.sel(layer=2).values[sample, : int(cube.n_tokens[sample])]
        assert row["activations"].dtype == torch.float32
        np.testing.assert_array_equal(row["activations"].numpy(), exact)
    assert order != sorted(order)
    assert sorted(order) == list(range(300))


@pytest.mark.slow
def test_workers_divide_it(run: Path, cube: xr.Dataset) -> None:
    rows = layer_dataset(run, layer=2)
    assert rows.num_shards == 5
    loader = DataLoader(rows.with_format("torch"), batch_size=None, num_workers=2, timeout=240)
    assert sorted(row["text"] for row in loader) == sorted(cube.text.values)


def test_what_is_not_there_is_said(run: Path) -> None:
    with pytest.raises(InputError, match="9"):
        layer_dataset(run, layer=9)
    with pytest.raises(MissingError, match="mlp"):
        layer_dataset(run, layer=1, component="mlp")
    with pytest.raises(InputError, match="no sample has"):
        layer_dataset(run, layer=1, where={"gender": "nobody"})
