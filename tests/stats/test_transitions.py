"""transitions: a planted change point is found and confirmed, and none is found without one."""

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.testing import write_cube


def layered(breaks: tuple[int, ...], n_layers: int = 12) -> xr.Dataset:
    """Return layers with small updates, and large ones after some layers."""
    rng = np.random.default_rng(0)
    cube = actkit.open_cube(write_cube(n_layers=n_layers, n_samples=160, hidden=10, window=160)).load()
    vectors = rng.standard_normal((160, 10))
    for layer in range(n_layers):
        cube["pooled"][layer] = vectors
        step = 0.9 if layer in breaks else 0.12 + 0.02 * rng.random()
        vectors = vectors + step * rng.standard_normal((160, 10))
        vectors /= vectors.std()
    return cube


@pytest.mark.slow
def test_change_point_is_found_and_confirmed() -> None:
    result = actkit.transitions(layered((6,)))
    assert result.distance.dims == ("language", "layer")
    for language in ("english", "arabic"):
        own = result.sel(language=language)
        assert own.layer.values[own.change_point.values].tolist() == [6]
        assert own.layer.values[own.confirmed.values].tolist() == [6]
        assert float(own.stability.sel(layer=6)) >= 0.9
    neighbours = actkit.adjacent_cka(layered((6,)))
    np.testing.assert_allclose(result.distance, 1 - neighbours.cka, atol=1e-12)
    np.testing.assert_allclose(result.low, 1 - neighbours.high, atol=1e-9)


def test_no_change_point_without_a_break() -> None:
    result = actkit.transitions(layered(()))
    assert not result.change_point.any()
    assert not result.confirmed.any()
    assert result.stability.isnull().all()


def test_it_is_lazy_and_order_changes_nothing(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    lazy = actkit.transitions(cube, cluster="image_id")
    assert dask.is_dask_collection(lazy)
    xr.testing.assert_allclose(
        lazy.compute(), actkit.transitions(shuffled, cluster="image_id"), rtol=1e-9, atol=1e-9
    )


def test_too_few_layers_are_an_error(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="3 layers are too few to detect change points"):
        actkit.transitions(cube.isel(layer=slice(0, 3)))
