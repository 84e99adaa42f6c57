"""Share of false discoveries of feature_differential, with dependent samples."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from tests.stats.sparse_cubes import sparse_cube

pytestmark = pytest.mark.slow

LEVEL = 0.05
N_FEATURES, N_TOKENS, N_LAYERS = 20, 3, 2
FOREVER = (pytest.mark.nightly, pytest.mark.timeout(7200))


def margin(n_trials: int) -> float:
    """Two standard errors of a share of 5%."""
    return float(2 * np.sqrt(LEVEL * (1 - LEVEL) / n_trials))


def features(rng: np.random.Generator, n_clusters: int, per_cluster: int) -> np.ndarray:
    """Return features that the samples of a cluster share in part, and that layers share in part.

    Dims ``(layer, sample, token, feature)``. Features differ in how often they are active, and are skewed.
    """
    density = np.geomspace(0.03, 0.6, N_FEATURES)
    shape = (n_clusters, 1, N_TOKENS, N_FEATURES)
    common = rng.exponential(size=shape) * (rng.random(shape) < density)
    layers = []
    for _ in range(N_LAYERS):
        size = (n_clusters, per_cluster, N_TOKENS, N_FEATURES)
        fresh = rng.exponential(size=size) * (rng.random(size) < density)
        layers.append(np.where(rng.random(size) < 0.6, common, fresh))
    return np.stack(layers).reshape(N_LAYERS, n_clusters * per_cluster, N_TOKENS, N_FEATURES)


def test_of(dense: np.ndarray, trial: np.ndarray, permutations: int, **labels: Any) -> xr.Dataset:
    """Return the result of data sets that are the languages of one cube."""
    cube = sparse_cube(dense.astype(np.float32), language=trial, **labels)
    names = {"by": "gender", "between": ("male", "female"), "cluster": "scene"}
    return actkit.feature_differential(cube, **names, permutations=permutations, splits=0)


test_of.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(("n_flips", "permutations"), [(200, 199), pytest.param(4000, 499, marks=FOREVER)])
def test_flipped_pairs_have_no_discoveries(n_flips: int, permutations: int) -> None:
    """The labels of whole clusters of four are flipped at random, so that no feature differs."""
    rng = np.random.default_rng(0)
    n_clusters = 30
    one = features(rng, n_clusters, 4)
    one[:, ::2, :, :5] += (rng.random((N_LAYERS, 2 * n_clusters, N_TOKENS, 5)) < 0.5) * 1.0  # flipped below
    scene = np.repeat(np.arange(n_clusters), 4)
    first_is_male = rng.random((n_flips, n_clusters)) < 0.5
    is_male = (np.arange(4 * n_clusters) % 2 == 0) == first_is_male[:, scene]
    result = test_of(
        np.tile(one, (1, n_flips, 1, 1)),
        np.repeat([f"flip {at}" for at in range(n_flips)], len(scene)).astype(object),
        permutations,
        gender=np.where(is_male, "male", "female").astype(object).ravel(),
        scene=np.tile(scene, n_flips),
    )
    assert result.is_paired.all()
    assert float(result.n_live.min()) > 20
    for corrected in ("q", "p_max"):
        found = (result[corrected] <= LEVEL).any(["layer", "feature"])
        assert float(found.mean()) <= LEVEL + margin(n_flips), corrected
    rejected = (result["p"] <= LEVEL).where(result.live).mean(["layer", "feature"])
    assert float(rejected.mean()) <= LEVEL + 0.01
    assert float(rejected.mean()) > 0.02  # the level is used


@pytest.mark.parametrize(("n_trials", "permutations"), [(40, 999), pytest.param(2000, 499, marks=FOREVER)])
def test_clusters_with_one_label_keep_their_level(n_trials: int, permutations: int) -> None:
    """Four samples of each scene share the label and most features; as independent samples, they differ."""
    rng = np.random.default_rng(1)
    n_clusters = 30
    dense = np.concatenate([features(rng, n_clusters, 4) for _ in range(n_trials)], axis=1)
    scene = np.tile(np.repeat(np.arange(n_clusters), 4), n_trials)
    gender = np.concatenate([rng.permuted(np.arange(n_clusters) % 2) for _ in range(n_trials)]).repeat(4)
    labels = {"gender": np.where(gender == 0, "male", "female").astype(object)}
    trial = np.repeat([f"trial {at}" for at in range(n_trials)], 4 * n_clusters).astype(object)
    result = test_of(dense, trial, permutations, scene=scene, **labels)
    assert not result.is_paired.any()
    found = (result["q"] <= LEVEL).any(["layer", "feature"])
    assert float(found.mean()) <= LEVEL + margin(n_trials)
    first = slice(0, 10 * 4 * n_clusters)
    each = np.arange(len(scene))  # what would happen without the clusters
    naive = test_of(
        dense[:, first], trial[first], permutations, scene=each[first], gender=labels["gender"][first]
    )
    assert float((naive["q"] <= LEVEL).any(["layer", "feature"]).mean()) > 0.3


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_discoveries_beside_real_differences_are_mostly_true() -> None:
    """Five of twenty features differ; of the discoveries, 5% may be others."""
    rng = np.random.default_rng(2)
    n_trials, n_clusters = 1000, 40
    parts = []
    for _ in range(n_trials):
        dense = features(rng, n_clusters, 2)
        dense[:, ::2, :, -5:] += (rng.random((N_LAYERS, n_clusters, N_TOKENS, 5)) < 0.3) * 1.0
        parts.append(dense)
    gender = np.tile(np.array(["male", "female"], dtype=object), n_trials * n_clusters)
    scene = np.tile(np.repeat(np.arange(n_clusters), 2), n_trials)
    trial = np.repeat([f"trial {at}" for at in range(n_trials)], 2 * n_clusters).astype(object)
    result = test_of(np.concatenate(parts, axis=1), trial, 999, gender=gender, scene=scene)
    found = result["q"] <= LEVEL
    is_false = found.isel(feature=slice(0, -5)).sum(["layer", "feature"])
    share = (is_false / found.sum(["layer", "feature"]).clip(min=1)).mean()
    assert float(share) <= LEVEL
    assert float(found.isel(feature=slice(-5, None)).mean()) > 0.8
