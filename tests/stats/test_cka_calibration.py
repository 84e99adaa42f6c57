"""CKA of dependent samples: unrelated representations are near 0, related ones keep their value and coverage.

Layers serve as repetitions: layers 0 and 1 are one pair of representations, 2 and 3 the next, and so on.
"""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.stats.kernels.cka import align
from actkit.testing import write_cube

HIDDEN = 40
Draw = Callable[[np.random.Generator, np.ndarray], tuple[np.ndarray, np.ndarray]]


def clustered(rng: np.random.Generator, clusters: np.ndarray, shared: float) -> np.ndarray:
    """Draw vectors that share a part of their variance within clusters."""
    common = rng.standard_normal((clusters.max() + 1, HIDDEN))[clusters]
    return np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal((len(clusters), HIDDEN))


def unrelated(rng: np.random.Generator, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return clustered(rng, clusters, 0.9), clustered(rng, clusters, 0.9)


def related(rng: np.random.Generator, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw isotropic representations whose true CKA is 0.49."""
    x = clustered(rng, clusters, 0.9)
    return x, 0.7 * x + np.sqrt(1 - 0.49) * clustered(rng, clusters, 0.9)


def pooled_cube(pairs: list[tuple[np.ndarray, np.ndarray]], clusters: np.ndarray) -> xr.Dataset:
    n, values = len(clusters), np.stack([layer for pair in pairs for layer in pair])
    run = write_cube(
        n_layers=len(values), n_samples=n, n_tokens=3, hidden=HIDDEN, window=n, languages=("english",)
    )
    cube = actkit.open_cube(run).load()
    scene = ("sample", [f"s{cluster}" for cluster in clusters], {"label": True})
    return cube.assign(pooled=cube.pooled.copy(data=values)).assign_coords(scene=scene)


def estimates(draw: Draw, clusters: np.ndarray, trials: int) -> xr.Dataset:
    """Return the CKA of independent pairs of representations, from the public function."""
    rng, results = np.random.default_rng(trials), []
    for start in range(0, trials, 10):  # all pairs of layers are computed, so many calls are faster
        pairs = [draw(rng, clusters) for _ in range(min(10, trials - start))]
        cube = pooled_cube(pairs, clusters)
        result = actkit.adjacent_cka(cube, cluster="scene", variants=False)
        results.append(result[["cka", "low", "high"]].isel(language=0, layer=slice(0, None, 2)))
    return xr.concat(results, "layer", data_vars="all")


def is_near(values: xr.DataArray | np.ndarray, truth: float) -> bool:
    values = np.asarray(values)
    return bool(abs(values.mean() - truth) < 3 * values.std(ddof=1) / np.sqrt(values.size))


@pytest.mark.slow
@pytest.mark.parametrize("trials", [40, pytest.param(1000, marks=pytest.mark.nightly)])
def test_unrelated_representations_of_twins_are_near_zero(trials: int) -> None:
    twins = np.arange(60) // 2
    result = estimates(unrelated, twins, trials)
    assert is_near(result.cka, 0)
    # pairs of twins alone give a value far above
    pairs = [unrelated(np.random.default_rng(seed), twins) for seed in range(20)]
    assert np.mean([align(np.stack(pair)).cka[0, 1] for pair in pairs]) > 0.3


@pytest.mark.slow
@pytest.mark.parametrize("trials", [120, pytest.param(2000, marks=pytest.mark.nightly)])
def test_related_representations_keep_their_value_and_coverage(trials: int) -> None:
    """Clusters have 1 to 5 samples."""
    clusters = np.repeat(np.arange(100), np.random.default_rng(1).integers(1, 6, 100))
    result = estimates(related, clusters, trials)
    assert abs(float(result.cka.mean()) - 0.49) < 0.02
    coverage = float(((result.low < 0.49) & (result.high > 0.49)).mean())
    error = 2 * np.sqrt(0.05 * 0.95 / trials)
    assert 0.92 - error / 2 <= coverage <= min(0.98 + error / 2, 0.999)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [12, pytest.param(200, marks=pytest.mark.nightly)])
def test_unrelated_tokens_of_texts_are_near_zero(trials: int) -> None:
    """Tokens of a text are similar to each other, and each text is a cluster."""
    rng, values = np.random.default_rng(0), []
    run = write_cube(
        n_layers=2 * trials, n_samples=60, n_tokens=11, hidden=HIDDEN, window=60, languages=("english",)
    )
    cube = actkit.open_cube(run).load()
    for _ in range(2 * trials):
        text = rng.standard_normal((60, 1, HIDDEN))
        tokens = rng.standard_normal((60, cube.sizes["token"], HIDDEN))
        values.append(np.sqrt(0.5) * text + np.sqrt(0.5) * tokens)
    cube = cube.assign(residual=cube.residual.copy(data=np.where(cube.residual.isnull(), np.nan, values)))
    adjacent = actkit.adjacent_cka(cube, vectors="tokens").isel(language=0, layer=slice(0, None, 2))
    assert is_near(adjacent.cka, 0)
    sampled = actkit.cka(cube, vectors="tokens").isel(language=0)
    np.testing.assert_allclose(np.diagonal(sampled.cka, 1)[::2], adjacent.cka, atol=1e-9)
    plain = actkit.cka(cube, vectors="tokens", batch=10**6).isel(language=0)
    assert is_near(np.diagonal(plain.cka, 1)[::2], 0)


@pytest.mark.slow
def test_several_translations_of_a_cluster_are_not_compared() -> None:
    """Each scene has two captions in each language, and languages are unrelated."""
    run = write_cube(n_layers=24, n_samples=120, n_tokens=3, hidden=HIDDEN, window=120)
    cube = actkit.open_cube(run).load()
    ids = cube.sample_id.values.astype(str)
    _, caption = np.unique(ids, return_inverse=True)
    scene = caption // 2
    rng, pooled = np.random.default_rng(0), np.empty(cube.pooled.shape)
    for layer in range(24):
        for language in ("english", "arabic"):
            rows = np.flatnonzero(cube.language.values == language)
            pooled[layer, rows] = clustered(rng, scene, 0.9)[rows]
    cube = cube.assign(pooled=cube.pooled.copy(data=pooled))
    cube = cube.assign_coords(scene=("sample", [f"s{name}" for name in scene], {"label": True}))
    pair = {"language": "english", "language_2": "arabic"}
    assert is_near(actkit.language_cka(cube, cluster="scene").cka.sel(pair), 0)
    assert float(actkit.language_cka(cube, cluster=None).cka.sel(pair).mean()) > 0.3
    assert actkit.language_cka(cube).attrs["cluster"] == "scene"  # detected
    # an entry in one language is enough
    is_english = cube.language.values == "english"
    one_sided = np.where(is_english, cube.scene.values.astype(object), [f"a{at}" for at in range(120)])
    partial = cube.assign_coords(scene=("sample", one_sided.astype(str), {"label": True}))
    results = [actkit.language_cka(each, cluster="scene").cka.sel(pair) for each in (cube, partial)]
    np.testing.assert_allclose(*results, atol=1e-12)
