"""Sparse features are encoded and judged on a CUDA device as on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actkit import dense_vectors, encode, sae_quality
from actkit.testing import write_cube
from tests.features.autoencoders import random, set_of

pytestmark = pytest.mark.gpu


def test_features_are_encoded_on_the_device(device: str, tmp_path: Path) -> None:
    run = write_cube(tmp_path / "run", n_samples=10, n_tokens=7, window=4)
    saes = set_of({layer: random(16, layer=layer, model_name="synthetic") for layer in (0, 2)})
    cubes = [encode(run, saes, out=tmp_path / name, device=name) for name in dict.fromkeys((device, "cpu"))]
    assert cubes[0].attrs["encoded_device"] == device
    ours, theirs = (dense_vectors(cube.sel(layer=[2])).astype(np.float64) for cube in (cubes[0], cubes[-1]))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_quality_is_measured_on_the_device(device: str, tmp_path: Path) -> None:
    run = write_cube(tmp_path / "run", n_samples=12, n_tokens=7, window=4)
    saes = set_of({0: random(16)})
    ours, theirs = (sae_quality(run, saes, device=name) for name in (device, "cpu"))
    xr.testing.assert_allclose(ours.drop_attrs(), theirs.drop_attrs(), rtol=1e-3, atol=1e-4)
