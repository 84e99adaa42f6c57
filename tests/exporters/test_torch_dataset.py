"""Each content token is in one batch, in another order each epoch, by however many workers."""

import multiprocessing
from pathlib import Path
from typing import Any

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


def content(cube: xr.Dataset, layer: int | list[int] = 1) -> np.ndarray:
    """Return the content tokens of one layer, or of several, dims ``(token, layer, hidden)``."""
    mask = token_mask(cube).transpose("sample", "token").values
    values = cube.residual.sel(layer=layer).transpose("sample", "token", ..., "hidden").values
    return np.asarray(values[mask])


def loader(tokens: LayerTokens, **options: Any) -> DataLoader[torch.Tensor]:
    return DataLoader(tokens, batch_size=None, **options)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_each_token_is_met_once(run: Path, cube: xr.Dataset, workers: int) -> None:
    tokens = LayerTokens(run, layer=1, batch_size=50)
    epochs = []
    for epoch in (0, 1):
        tokens.set_epoch(epoch)
        vectors = torch.cat(list(loader(tokens, num_workers=workers, timeout=240 if workers else 0)))
        assert vectors.dtype == torch.float32
        np.testing.assert_array_equal(ordered(vectors.numpy()), ordered(content(cube)))
        epochs.append(vectors)
    assert not torch.equal(*epochs)
    assert not np.array_equal(epochs[0].numpy(), content(cube))


@pytest.mark.slow
@pytest.mark.parametrize("start", multiprocessing.get_all_start_methods())
def test_workers_read_however_they_are_started(run: Path, cube: xr.Dataset, start: str) -> None:
    """Also where their parent has read before; `timeout` makes an error of a hang."""
    tokens = LayerTokens(run, layer=1, batch_size=50)
    actkit.open_cube(run).residual.load()
    next(iter(tokens))
    vectors = torch.cat(list(loader(tokens, num_workers=1, multiprocessing_context=start, timeout=240)))
    np.testing.assert_array_equal(ordered(vectors.numpy()), ordered(content(cube)))


@pytest.mark.parametrize("opened", [False, True], ids=["run", "cube"])
def test_unshuffled_they_are_as_the_cube_has_them(run: Path, cube: xr.Dataset, opened: bool) -> None:
    source = actkit.open_cube(run) if opened else run
    batches = list(LayerTokens(source, layer=1, shuffle=False, batch_size=100, buffer_bytes=6000))
    assert [len(batch) for batch in batches[:-1]] == [100] * (len(batches) - 1)
    np.testing.assert_array_equal(torch.cat(batches).numpy(), content(cube))


def test_several_layers_of_a_token_stay_together(run: Path, cube: xr.Dataset) -> None:
    vectors = torch.cat(list(LayerTokens(run, layer=[2, 0], batch_size=64, buffer_bytes=40_000))).numpy()
    expected = content(cube, [2, 0])
    assert vectors.shape == expected.shape
    flat = [values.reshape(len(values), -1) for values in (vectors, expected)]
    np.testing.assert_array_equal(*map(ordered, flat))
    assert not np.array_equal(*flat)


def test_the_buffer_bounds_what_is_held(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    batch = LayerTokens._batch

    def watched(tokens: LayerTokens, buffer: np.ndarray, *arguments: Any) -> torch.Tensor:
        held.append(buffer.nbytes)
        return batch(tokens, buffer, *arguments)

    monkeypatch.setattr(LayerTokens, "_batch", watched)
    list(LayerTokens(run, layer=1, batch_size=64, buffer_bytes=12_000))
    assert 6_000 < max(held) <= 12_000


def test_a_sample_that_exceeds_the_buffer_is_read_all_the_same(run: Path, cube: xr.Dataset) -> None:
    vectors = torch.cat(list(LayerTokens(run, layer=1, shuffle=False, batch_size=1, buffer_bytes=1)))
    np.testing.assert_array_equal(vectors.numpy(), content(cube))


@pytest.mark.slow
def test_the_same_seed_is_the_same_order(run: Path) -> None:
    one, same, other = (torch.cat(list(LayerTokens(run, layer=1, seed=seed))) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_labels_choose_samples(run: Path, cube: xr.Dataset) -> None:
    where = {"gender": "female", "language": "arabic"}
    tokens = torch.cat(list(LayerTokens(run, layer=1, where=where)))
    selected = cube.isel(sample=(cube.gender.values == "female") & (cube.language.values == "arabic"))
    np.testing.assert_array_equal(ordered(tokens.numpy()), ordered(content(selected)))


@pytest.mark.parametrize("opened", [False, True], ids=["run", "cube"])
def test_a_kind_of_token_is_chosen(run: Path, cube: xr.Dataset, opened: bool) -> None:
    source = actkit.open_cube(run) if opened else run
    vectors = torch.cat(list(LayerTokens(source, layer=1, tokens="special", shuffle=False))).numpy()
    mask = token_mask(cube, "special").transpose("sample", "token").values
    np.testing.assert_array_equal(vectors, cube.residual.sel(layer=1).values[mask])


def test_what_is_not_there_is_said(run: Path) -> None:
    with pytest.raises(MissingError, match="layer 9"):
        LayerTokens(run, layer=9)
    with pytest.raises(MissingError, match="mlp"):
        LayerTokens(run, layer=1, component="mlp")
    with pytest.raises(InputError, match="no sample has"):
        LayerTokens(run, layer=1, where={"gender": "nobody"})
    with pytest.raises(InputError, match="colour"):
        LayerTokens(run, layer=1, where={"colour": "red"})
    with pytest.raises(InputError, match="layer: names no layer"):
        LayerTokens(run, layer=[])
    with pytest.raises(InputError, match="batch_size: is 0"):
        LayerTokens(run, layer=1, batch_size=0)
