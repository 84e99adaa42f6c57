"""A cube with planted effects: languages that share samples, and groups that separate at a known layer."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actkit import open_cube
from actkit.testing import synthetic

N_LAYERS, N_IMAGES, HIDDEN = 5, 60, 12
PARTS_AT = 2  # first layer at which genders differ


def planted(run: Path) -> Path:
    """Write a cube whose adjacent layers are similar except after layer 3; genders separate at layer 2."""
    cube = synthetic(
        n_layers=N_LAYERS,
        n_samples=2 * N_IMAGES,
        n_tokens=6,
        hidden=HIDDEN,
        window=16,
        languages=("english", "arabic"),
    )
    rng = np.random.default_rng(1)
    image = np.arange(2 * N_IMAGES) // 2
    base = rng.standard_normal((N_IMAGES, HIDDEN))[image][:, None] * 3
    base[..., 3] /= 10
    male = (cube.labels["gender"] == "male")[:, None]
    direction = np.zeros(HIDDEN)
    direction[3] = 1
    residual = cube.values["residual"]
    for layer in range(N_LAYERS):
        own = base + 0.3 * rng.standard_normal((2 * N_IMAGES, 6, HIDDEN))
        if layer == N_LAYERS - 1:
            own = own @ rng.standard_normal((HIDDEN, HIDDEN)) + 3 * rng.standard_normal(
                (2 * N_IMAGES, 1, HIDDEN)
            )
        if layer >= PARTS_AT:
            own = own + np.where(male[..., None], 2.5 * direction, 0)
        residual[layer] = np.where(np.isnan(residual[layer]), np.nan, own)
    content = cube.values["token_kind"] == 3
    summed = np.where(content[..., None], residual, 0).sum(axis=2, dtype=np.float64)
    cube.values["pooled"] = (summed / content.sum(axis=1)[:, None]).astype(np.float32)
    cube.values["norm"] = np.linalg.norm(residual.astype(np.float64), axis=-1).astype(np.float32)
    last = cube.values["n_tokens"] - 1
    cube.values["last"] = residual[:, np.arange(2 * N_IMAGES), last]
    run.mkdir(parents=True, exist_ok=True)
    writer = cube.create(run)
    for window in range(cube.plan.n_windows):
        writer.write(window, cube.part(window))
    return run


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "run")


@pytest.fixture(scope="session")
def cube(planted_run: Path) -> xr.Dataset:
    return open_cube(planted_run)


@pytest.fixture(scope="session")
def shuffled(cube: xr.Dataset) -> xr.Dataset:
    """The same samples in memory, in another order."""
    order = np.random.default_rng(0).permutation(cube.sizes["sample"])
    found = cube.compute().isel(sample=order)
    # the order of languages is unchanged
    first = np.flatnonzero(found.language.values == "english")[0]
    return found.isel(sample=[first, *[at for at in range(len(order)) if at != first]])
