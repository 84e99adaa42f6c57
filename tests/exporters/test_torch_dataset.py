"""Each content token is met once, in another order each epoch, by however many workers."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch.utils.data import DataLoader

import actkit
from actkit.errors import InputError, MissingError
from actkit.exporters.torch_dataset import LayerTokens
from actkit.stats.selection import token_mask
from actkit.testing import write_cube


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(
        tmp_path_factory.mktemp("training") / "run", n_samples=700, n_tokens=5, hidden=6, window=128
    )


@pytest.fixture(scope="module")
def cube(run: Path) -> xr.Dataset:
    return actkit.open_cube(run).load()


def ordered(vectors: np.ndarray) -> np.ndarray:
    return vectors[np.lexsort(vectors.T)]


def content(cube: xr.Dataset) -> np.ndarray:
    mask = token_mask(cube).transpose("sample", "token").values
    return np.asarray(cube.residual.sel(layer=1).transpose("sample", "token", "hidden").values[mask])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_each_token_is_met_once(run: Path, cube: xr.Dataset, workers: int) -> None:
    tokens = LayerTokens(run, layer=1)
    loader = DataLoader(tokens, batch_size=50, num_workers=workers, timeout=240 if workers else 0)
    epochs = []
    for epoch in (0, 1):
        tokens.set_epoch(epoch)
        vectors = torch.cat(list(loader))
        assert vectors.dtype == torch.float32
        np.testing.assert_array_equal(ordered(vectors.numpy()), ordered(content(cube)))
        epochs.append(vectors)
    assert not torch.equal(*epochs)
    assert not np.array_equal(epochs[0].numpy(), content(cube))


@pytest.mark.slow
@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_workers_read_however_they_are_started(run: Path, cube: xr.Dataset, start: str) -> None:
    """Also where their parent has read before; `timeout` makes an error of a hang."""
    tokens = LayerTokens(run, layer=1)
    actkit.open_cube(run).residual.load()
    loader = DataLoader(tokens, batch_size=50, num_workers=1, multiprocessing_context=start, timeout=240)
    np.testing.assert_array_equal(ordered(torch.cat(list(loader)).numpy()), ordered(content(cube)))


def test_unshuffled_they_are_as_the_cube_has_them(run: Path, cube: xr.Dataset) -> None:
    tokens = torch.stack(list(LayerTokens(run, layer=1, shuffle=False)))
    np.testing.assert_array_equal(tokens.numpy(), content(cube))


@pytest.mark.slow
def test_the_same_seed_is_the_same_order(run: Path) -> None:
    one, same, other = (torch.stack(list(LayerTokens(run, layer=1, seed=seed))) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_labels_choose_samples(run: Path, cube: xr.Dataset) -> None:
    where = {"gender": "female", "language": "arabic"}
    tokens = torch.stack(list(LayerTokens(run, layer=1, where=where)))
    selected = cube.isel(sample=(cube.gender.values == "female") & (cube.language.values == "arabic"))
    np.testing.assert_array_equal(ordered(tokens.numpy()), ordered(content(selected)))


def test_what_is_not_there_is_said(run: Path) -> None:
    with pytest.raises(MissingError, match="layer 9"):
        LayerTokens(run, layer=9)
    with pytest.raises(MissingError, match="mlp"):
        LayerTokens(run, layer=1, component="mlp")
    with pytest.raises(InputError, match="no sample has"):
        LayerTokens(run, layer=1, where={"gender": "nobody"})
    with pytest.raises(InputError, match="colour"):
        LayerTokens(run, layer=1, where={"colour": "red"})
