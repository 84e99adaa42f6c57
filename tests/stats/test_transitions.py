"""transitions: a break is found, confirmed in halves, and none is found where there is none."""

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.testing import write_cube


def layered(breaks: tuple[int, ...], n_layers: int = 12) -> xr.Dataset:
    """Make layers that change a little from one to the next, and much after some."""
    rng = np.random.default_rng(0)
    cube = actkit.open_cube(write_cube(n_layers=n_layers, n_samples=160, hidden=10, window=160)).load()
    vectors = rng.standard_normal((160, 10))
    for layer in range(n_layers):
        cube["pooled"][layer] = vectors
        step = 0.9 if layer in breaks else 0.12 + 0.02 * rng.random()
        vectors = vectors + step * rng.standard_normal((160, 10))
        vectors /= vectors.std()
    return cube


def test_a_break_is_found_and_confirmed() -> None:
    found = actkit.transitions(layered((6,)))
    assert found.distance.dims == ("language", "layer")
    for language in ("english", "arabic"):
        own = found.sel(language=language)
        assert own.layer.values[own.transition.values].tolist() == [6]
        assert own.layer.values[own.confirmed.values].tolist() == [6]
        assert float(own.stability.sel(layer=6)) >= 0.9
    neighbours = actkit.adjacent_cka(layered((6,)))
    np.testing.assert_allclose(found.distance, 1 - neighbours.cka, atol=1e-12)
    np.testing.assert_allclose(found.low, 1 - neighbours.high, atol=1e-9)


def test_no_break_is_none() -> None:
    found = actkit.transitions(layered(()))
    assert not found.transition.any()
    assert not found.confirmed.any()
    assert found.stability.isnull().all()


def test_it_is_lazy_and_order_changes_nothing(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    lazy = actkit.transitions(cube, pairs="image_id")
    assert dask.is_dask_collection(lazy)
    xr.testing.assert_allclose(
        lazy.compute(), actkit.transitions(shuffled, pairs="image_id"), rtol=1e-9, atol=1e-9
    )


def test_few_layers_show_nothing(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="3 layers show no change that stands out"):
        actkit.transitions(cube.isel(layer=slice(0, 3)))
