"""transitions: labels, a planted change point, the level on profiles without one, and what is not tested."""

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import MissingError
from actkit.testing import write_cube

N_STEPS, N_SAMPLES, HIDDEN = 13, 120, 60


@pytest.fixture(scope="module")
def template() -> xr.Dataset:
    """A cube whose vectors are replaced by simulated ones."""
    run = write_cube(
        n_layers=N_STEPS + 1, n_samples=N_SAMPLES, hidden=HIDDEN, window=N_SAMPLES, languages=("english",)
    )
    return actkit.open_cube(run).load()


def simulated(template: xr.Dataset, steps: np.ndarray, rng: np.random.Generator) -> xr.Dataset:
    """Return layers whose adjacent CKA is 1 minus the steps, up to the sampling error.

    Each layer keeps a share of the one before and gets an independent part; isotropic vectors with the
    correlation r have a CKA of r squared. Twins share most of their vectors.
    """
    scenes = np.arange(N_SAMPLES) // 2

    def draw() -> np.ndarray:
        shared = rng.standard_normal((N_SAMPLES // 2, HIDDEN))[scenes]
        return np.sqrt(0.8) * shared + np.sqrt(0.2) * rng.standard_normal((N_SAMPLES, HIDDEN))

    vectors = draw()
    pooled = np.empty((len(steps) + 1, N_SAMPLES, HIDDEN))
    pooled[0] = vectors
    for layer, step in enumerate(steps):
        kept = 1 - step
        vectors = np.sqrt(kept) * vectors + np.sqrt(1 - kept) * draw()
        pooled[layer + 1] = vectors
    labels = ("sample", [f"s{scene}" for scene in scenes], {"label": True})
    cube = template.isel(layer=slice(0, len(steps) + 1)).assign_coords(scene=labels)
    return cube.assign(pooled=cube.pooled.copy(data=pooled))


X = np.linspace(-1, 1, N_STEPS)
PROFILES = {
    "equal": np.ones(N_STEPS),
    "uneven": np.ones(N_STEPS),
    "rising at both ends": 1 + 4 * X**4,
    "decaying": 2 * np.exp(-np.arange(N_STEPS) / 5),
}


def profile(name: str, rng: np.random.Generator) -> np.ndarray:
    unevenness = 0.2 if name == "uneven" else 0
    return 0.04 * PROFILES[name] * np.exp(unevenness * rng.standard_normal(N_STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("trials", [25, pytest.param(400, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", PROFILES)
def test_profiles_without_a_change_point_have_none(template: xr.Dataset, name: str, trials: int) -> None:
    rng = np.random.default_rng(0)
    cubes = (simulated(template, profile(name, rng), rng) for _ in range(trials))
    flagged = [bool(actkit.transitions(cube, cluster="scene").change_point.any()) for cube in cubes]
    # 5%, and the sampling error of the simulation
    assert np.mean(flagged) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / trials)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [25, pytest.param(400, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["equal", "uneven"])
def test_a_step_of_three_times_the_median_is_a_change_point(
    template: xr.Dataset, name: str, trials: int
) -> None:
    rng = np.random.default_rng(1)
    hits = []
    for _ in range(trials):
        steps, at = profile(name, rng), int(rng.integers(1, N_STEPS - 1))
        steps[at] = 3 * np.median(steps)
        result = actkit.transitions(simulated(template, steps, rng), cluster="scene")
        hits.append(bool(result.change_point.isel(language=0, layer=at)))
    assert np.mean(hits) >= 0.9 - 2 * np.sqrt(0.9 * 0.1 / trials)


def test_a_change_point_has_its_labels(template: xr.Dataset) -> None:
    rng = np.random.default_rng(0)
    steps = np.full(N_STEPS, 0.04)
    steps[6] = 0.3
    cube = simulated(template, steps, rng)
    result = actkit.transitions(cube, cluster="scene")
    assert result.distance.dims == ("language", "layer")
    language = result.isel(language=0)
    assert language.layer.values[language.change_point.values].tolist() == [6]
    assert float(language.ratio_low.sel(layer=6)) > 1
    np.testing.assert_allclose(language.ratio * language.trend, language.distance.where(language.ratio > 0))
    adjacent = actkit.adjacent_cka(cube, cluster="scene")
    np.testing.assert_allclose(result.distance, 1 - adjacent.cka, atol=1e-12)
    np.testing.assert_allclose(result.low, 1 - adjacent.high, atol=1e-9)
    assert result.attrs["untested"] == "the first and the last step: a trend needs steps on both sides"
    assert language.layer.values[np.isnan(language.ratio)].tolist() == [0, N_STEPS - 1]


def test_it_is_lazy_and_order_changes_nothing(template: xr.Dataset) -> None:
    cube = simulated(template, np.full(N_STEPS, 0.04), np.random.default_rng(0))
    lazy = actkit.transitions(cube.chunk(), cluster="scene")
    assert dask.is_dask_collection(lazy)
    order = np.random.default_rng(0).permutation(N_SAMPLES)
    shuffled = actkit.transitions(cube.isel(sample=order), cluster="scene")
    xr.testing.assert_allclose(lazy.compute(), shuffled, rtol=1e-9, atol=1e-9)


def test_few_or_unequally_spaced_layers_are_descriptive(cube: xr.Dataset, template: xr.Dataset) -> None:
    few = actkit.transitions(cube)
    assert few.attrs["untested"] == (
        "all steps: 5 layers are too few to estimate how uneven steps are, which takes 6"
    )
    assert np.isfinite(few.distance).all()
    assert not few.change_point.any()
    assert few.ratio.isnull().all()
    spaced = actkit.transitions(template.isel(layer=[0, 1, 2, 3, 4, 6, 8, 12]))
    assert "not equally spaced" in spaced.attrs["untested"]
    assert spaced.ratio.isnull().all()
    with pytest.raises(MissingError, match="one layer"):
        actkit.transitions(cube.isel(layer=[0]))
