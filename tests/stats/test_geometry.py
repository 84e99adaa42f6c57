"""Intrinsic dimension and anisotropy: labels, clusters, and the coverage of their intervals."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from tests.stats.kernels.test_geometry import sphere
from tests.stats.test_similarity import made


def test_results_by_language_and_layer(cube: xr.Dataset) -> None:
    dimension, cosines = actkit.intrinsic_dimension(cube), actkit.anisotropy(cube, cluster="image_id")
    assert dimension.chunks
    assert cosines.chunks
    for result, name in ((dimension, "dimension"), (cosines, "between")):
        assert result[name].dims == ("language", "layer")
        assert result.layer.values.tolist() == [0, 1, 2, 3, 4]
        assert result[name].notnull().all()
    assert (dimension.n == 60).all()
    assert (dimension.low < dimension.dimension).all()
    assert cosines.within.isnull().all()  # one sample of each image in a language
    assert cosines.n_clusters.values.tolist() == [60, 60]
    assert dimension.attrs["interval"] == "95%, random groups"
    assert cosines.attrs["interval"] == "95%, jackknife over image_id"


@pytest.mark.parametrize("name", ["intrinsic_dimension", "anisotropy"])
def test_order_and_chunks_of_samples_change_nothing(
    cube: xr.Dataset, shuffled: xr.Dataset, name: str
) -> None:
    statistic = getattr(actkit, name)
    found = statistic(cube.chunk(sample=7, layer=2), cluster="gender" if name == "anisotropy" else "image_id")
    wanted = statistic(shuffled, cluster="gender" if name == "anisotropy" else "image_id")
    xr.testing.assert_allclose(found.compute(), wanted, atol=1e-9)


def twins(n: int, rng: np.random.Generator) -> xr.Dataset:
    """Return pairs of nearly equal points on a sphere of dimension 2, with some noise in all dimensions."""
    scene = np.repeat(np.arange(n), 2)
    points = sphere(n, 2, rng)[scene] + 1e-3 * rng.standard_normal((2 * n, 12))
    return made([points], scene=scene.astype(str).astype(object))


def test_twins_hide_the_dimension_unless_one_of_each_enters() -> None:
    cube = twins(300, np.random.default_rng(0))
    naive = actkit.intrinsic_dimension(cube, cluster=None).squeeze()
    found = actkit.intrinsic_dimension(cube, cluster="scene").squeeze()
    assert float(naive.dimension) < 0.7
    assert float(naive.high) < 1
    assert float(found.low) < 2 < float(found.high)
    assert found.n.item() == 300
    detected = actkit.intrinsic_dimension(cube)
    assert (detected.attrs["cluster"], detected.attrs["cluster_origin"]) == ("scene", "detected")
    assert detected.dimension.item() == found.dimension.item()
    assert found.attrs["independence"] == "one sample of each scene, drawn with seed 0"


@pytest.mark.slow
@pytest.mark.parametrize("trials", [120, pytest.param(2000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("n", [100, 300])
def test_the_interval_covers_the_dimension(n: int, trials: int) -> None:
    """Of spheres of dimension 2, by one of two twins: a nominal 95%, as 0.92 to 0.98 and what chance adds."""
    rng = np.random.default_rng(n)
    covered = []
    for trial in range(trials):
        found = actkit.intrinsic_dimension(twins(n, rng), cluster="scene", seed=trial).squeeze()
        covered.append(float(found.low) <= 2 <= float(found.high))
    margin = 2 * np.sqrt(0.05 * 0.95 / trials)
    assert 0.92 - margin < np.mean(covered) < min(0.98 + margin, 0.9999)


def dependent(n_clusters: int, rng: np.random.Generator) -> xr.Dataset:
    """Return clusters of 1 to 4 correlated vectors about a common direction."""
    sizes = rng.integers(1, 5, n_clusters)
    scene = np.repeat(np.arange(n_clusters), sizes)
    points = rng.standard_normal((n_clusters, 6))[scene] + rng.standard_normal((len(scene), 6)) + 0.8
    return made([points], scene=scene.astype(str).astype(object))


@pytest.mark.slow
@pytest.mark.parametrize("trials", [150, pytest.param(3000, marks=pytest.mark.nightly)])
def test_the_intervals_cover_the_mean_cosines(trials: int) -> None:
    rng = np.random.default_rng(3)
    truth = actkit.anisotropy(dependent(40_000, rng), cluster="scene").squeeze()
    names = ("between", "within", "corrected")
    covered: dict[str, list[bool]] = {name: [] for name in names}
    for _ in range(trials):
        found = actkit.anisotropy(dependent(120, rng), cluster="scene").squeeze()
        for name in names:
            low, high = float(found[f"{name}_low"]), float(found[f"{name}_high"])
            covered[name].append(low <= float(truth[name]) <= high)
    margin = 2 * np.sqrt(0.05 * 0.95 / trials)
    for name in names:
        assert 0.92 - margin < np.mean(covered[name]) < 0.98 + margin, name


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("intrinsic_dimension", {"fraction": 1.0}, "fraction: is 1.0"),
    ("intrinsic_dimension", {"splits": 0}, "splits: is 0"),
    ("intrinsic_dimension", {"vectors": "tokens"}, "vectors: 'tokens' is not one of pooled, last"),
    ("anisotropy", {"cluster": "height"}, "cluster: the cube has no label `height`"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_invalid_options_are_errors(
    cube: xr.Dataset, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        getattr(actkit, name)(cube, **options)
