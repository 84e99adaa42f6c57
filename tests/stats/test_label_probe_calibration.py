"""Level of the tests and coverage of the intervals of probes of classes and numbers.

Each language of a cube is one simulated data set.
"""

from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr

import actkit
from tests.stats.test_probe_calibration import simulate

Design = Literal["twins", "singles", "groups of one label"]
FOREVER = [pytest.mark.nightly, pytest.mark.timeout(7200)]
TRIALS = [40, pytest.param(1000, marks=FOREVER)]
DESIGNS = ["singles", *(pytest.param(name, marks=FOREVER) for name in ("twins", "groups of one label"))]
OPTIONS: dict[str, Any] = {"cluster": "scene", "seeds": 1, "permutations": 19}

pytestmark = pytest.mark.slow


def labelled(
    design: Design, trials: int, n_clusters: int, *, signal: float, by_length: float = 0.0
) -> xr.Dataset:
    """Return cubes with classes and ratings, which depend on the vectors, on length, or on nothing."""
    cube = simulate(design, trials, n_clusters, 0)
    rng = np.random.default_rng(1)
    scene = cube.scene.values
    n = len(scene)
    shared = 1.0 if design == "groups of one label" else 0.5**0.5
    draws = rng.standard_normal((2, scene.max() + 1))[:, scene] * shared
    draws += rng.standard_normal((2, n)) * (1 - shared**2) ** 0.5
    length = draws[0]
    vectors = cube.pooled.values + by_length * 2 * length[:, None]
    first = vectors[0, :, 1]
    if design == "groups of one label":
        first = (np.bincount(scene, first) / np.bincount(scene))[scene]
    latent = draws[1] + signal * first + by_length * length
    kind = np.array(["low", "middle", "high"], dtype=object)[np.digitize(latent, [-0.5, 0.5])]
    coords = {
        "kind": ("sample", kind, {"label": True}),
        "rating": ("sample", latent, {"label": True}),
        "n_tokens": ("sample", np.round(np.exp(2.5 + 0.5 * length)).astype(int).clip(1)),
    }
    cube = cube.assign_coords(coords).drop_vars("embedding")
    return cube.assign(pooled=(cube.pooled.dims, vectors))


def probe(name: str, cube: xr.Dataset, **options: Any) -> xr.Dataset:
    by = "kind" if name == "classification_probe" else "rating"
    return getattr(actkit, name)(cube, by=by, **OPTIONS, **options).squeeze("layer")


MEASURES = [
    ("classification_probe", "macro_auroc"),
    ("regression_probe", "r2"),
    ("regression_probe", "spearman"),
]


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("residualized_on", [(), "length"], ids=["plain", "residuals"])
def test_p_keeps_its_level(design: Design, trials: int, residualized_on: Any) -> None:
    """Labels depend on nothing, or on length alone, like the vectors."""
    cube = labelled(design, trials, 60, signal=0, by_length=1.0 if residualized_on else 0.0)
    for name in ("classification_probe", "regression_probe"):
        found = probe(name, cube, residualized_on=residualized_on)
        for measure in (measure for of, measure in MEASURES if of == name):
            level = float((found[f"{measure}_p"] <= 0.05).mean())
            assert level <= 0.07 + 2 * np.sqrt(0.05 * 0.95 / trials), measure
        if residualized_on and name == "classification_probe":
            spread = float(found.macro_auroc.std()) / np.sqrt(trials)
            assert abs(float(found.macro_auroc.mean()) - 0.5) < 0.01 + 3 * spread
            assert float(found.macro_auroc_length.mean()) > 0.65


@pytest.mark.parametrize("trials", TRIALS)
@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_the_mean(design: Design, trials: int) -> None:
    cube = labelled(design, trials, 100, signal=0.7)
    for name in ("classification_probe", "regression_probe"):
        found = probe(name, cube)
        for measure in (measure for of, measure in MEASURES if of == name):
            truth = found[measure].mean()
            covered = (found[f"{measure}_low"] <= truth) & (truth <= found[f"{measure}_high"])
            margin = 2 * np.sqrt(0.05 * 0.95 / trials)
            assert 0.92 - margin <= float(covered.mean()) <= 0.98 + margin, measure
