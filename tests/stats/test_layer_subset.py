"""layer_subset: a few layers compared with all."""

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError


def test_deviation_from_interpolation_between_few_layers(cube: xr.Dataset) -> None:
    part = cube.compute().copy(deep=True)
    part["norm"] = xr.ones_like(part.norm) * xr.DataArray([1.0, 2, 9, 4, 5], dims="layer")
    result = actkit.layer_subset(actkit.layer_norms, part, layers=(0, 1, 3, 4)).compute()
    mean = actkit.layer_norms(part)["mean"].sel(language="english").values
    own = result.sel(language="english")
    np.testing.assert_allclose(own["mean"], mean)
    assert np.isnan(own["mean_few"].sel(layer=2))
    np.testing.assert_allclose(own["mean_few"].sel(layer=[0, 1, 3, 4]), mean[[0, 1, 3, 4]])
    assert float(own["mean_missed"]) == pytest.approx(mean[2] - (mean[1] + mean[3]) / 2)
    assert (int(own["mean_missed_at"]), int(own["mean_peak"]), int(own["mean_peak_few"])) == (2, 2, 4)


@pytest.mark.slow
def test_adjacent_layers_among_the_few_differ(cube: xr.Dataset) -> None:
    result = actkit.layer_subset(actkit.adjacent_cka, cube, layers=(0, 2, 4), variants=False).compute()
    own = result.sel(language="english")
    whole = actkit.cka(cube).sel(language="english").compute()
    np.testing.assert_allclose(own.cka_few.sel(layer=[0, 2]), [whole.cka[0, 2], whole.cka[2, 4]], atol=1e-12)
    assert own.cka_few.isnull().sum() == 2


def test_layers_must_be_there(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match=r"the cube lacks \[10, 14, 18, 22\]"):
        actkit.layer_subset(actkit.layer_norms, cube)
    with pytest.raises(InputError, match="at least two"):
        actkit.layer_subset(actkit.layer_norms, cube, layers=(1, 1))
