"""feature_rates and feature_map: shares, means, intervals, and views in two dimensions."""

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

import actkit
from actkit.errors import InputError, MissingError
from tests.stats.sparse_cubes import means, sparse_cube, twins


@pytest.fixture(scope="module")
def pairs() -> tuple[xr.Dataset, np.ndarray]:
    return twins(n_features=40)


def test_rates_are_shares_of_tokens_and_samples(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, dense = pairs
    rates = actkit.feature_rates(cube, by="gender")
    assert rates.token_rate.dims == ("language", "gender", "layer", "feature")
    count = cube.n_tokens.values - 1
    for gender in ("male", "female"):
        part = rates.sel(language="english", gender=gender)
        of = np.flatnonzero(cube.gender.values == gender)
        x = dense[:, of]
        np.testing.assert_allclose(part.token_rate, (x > 0).sum((1, 2)) / count[of].sum())
        np.testing.assert_allclose(part.sample_rate, (x > 0).any(2).mean(1))
        np.testing.assert_allclose(part["mean"], x.sum((1, 2)) / count[of].sum())
        np.testing.assert_allclose(part.active_mean, x.sum((1, 2)) / (x > 0).sum((1, 2)))
        assert (part.n_tokens, part.n_samples, part.n_clusters) == (count[of].sum(), 40, 40)
        assert (part.token_rate_low < part.token_rate).all()
        assert (part.token_rate < part.token_rate_high).all()
    assert rates.attrs["group_dim"] == "gender"
    lazy = actkit.feature_rates(cube.chunk(sample=30), by="gender")
    assert lazy["mean"].chunks
    xr.testing.assert_allclose(lazy.compute(), rates)


def test_dependent_samples_widen_intervals(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    twice = xr.concat([pairs[0]] * 3, "sample", data_vars="minimal")
    twice = twice.assign_coords(sample=np.arange(240))
    once, naive, honest = (
        actkit.feature_rates(cube, cluster=cluster)
        for cube, cluster in ((pairs[0], "pair"), (twice, None), (twice, "pair"))
    )
    for name in ("token_rate", "sample_rate", "mean"):
        width = {
            at: cube[f"{name}_high"] - cube[f"{name}_low"] for at, cube in enumerate((once, naive, honest))
        }
        np.testing.assert_allclose(width[2], width[0])
        assert float((width[1] / width[0]).mean()) < 0.75
    assert (honest.attrs["cluster"], naive.attrs["cluster"]) == ("pair", "")


@pytest.mark.slow
def test_intervals_cover_the_rate() -> None:
    """Each language is a data set of clusters of four samples that share much."""
    rng = np.random.default_rng(0)
    n_trials, n_clusters, density = 60, 30, np.linspace(0.05, 0.5, 10)
    shape = (1, n_trials * n_clusters, 1, 10)
    shared = np.repeat(rng.random(shape) < density, 4, axis=1)
    own = rng.random((1, shared.shape[1], 3, 10)) < density
    dense = np.where(rng.random((1, shared.shape[1], 1, 1)) < 0.6, shared, own).astype(np.float32)
    trial = np.repeat([f"{at}" for at in range(n_trials)], 4 * n_clusters).astype(object)
    scene = np.tile(np.repeat(np.arange(n_clusters), 4), n_trials)
    cube = sparse_cube(dense, language=trial, scene=scene)
    for cluster, least, most in (("scene", 0.92, 0.98), (None, 0.4, 0.85)):
        rates = actkit.feature_rates(cube, cluster=cluster).isel(layer=0)
        for name in ("token_rate", "mean"):
            covered = (rates[f"{name}_low"] <= density) & (density <= rates[f"{name}_high"])
            covered = covered.where(rates[f"{name}_low"].notnull())
            assert least < float(covered.mean()) < most, (cluster, name)


def test_rare_means_have_no_interval() -> None:
    dense = np.zeros((1, 40, 3, 3), dtype=np.float32)
    dense[0, :9, 1, 0], dense[0, :10, 1, 1] = 1, 1
    rates = actkit.feature_rates(sparse_cube(dense)).isel(layer=0, language=0)
    assert np.isnan(rates.mean_low.values).tolist() == [True, False, True]
    assert float(rates.sample_rate_high[2]) > 0.05  # no sample of 40 has it
    assert np.isnan(rates.active_mean[2])


def test_groups_without_a_language_have_no_rates(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, _ = pairs
    only = np.where(np.arange(80) < 40, "arabic", "english").astype(object)
    mixed = cube.assign_coords(language=("sample", only), tone=("sample", only, {"label": True}))
    rates = actkit.feature_rates(mixed, by="tone", cluster="pair")
    assert rates["mean"].sel(language="arabic", tone="english").isnull().all()
    assert int(rates.n_samples.sel(language="arabic", tone="english")) == 0
    with pytest.raises(InputError, match="by: the cube has no label `age`"):
        actkit.feature_rates(cube, by="age")


def test_a_map_is_that_of_scikit_learn(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    cube, dense = pairs
    found = actkit.feature_map(cube, layer=1, k=3)
    x = means(dense, cube)[1].T
    live = (x > 0).sum(axis=1) >= 10
    assert found.feature.values.tolist() == np.flatnonzero(live).tolist()
    np.testing.assert_allclose(found.sample_rate, (x[live] > 0).mean(axis=1))
    scaled = x[live] / np.linalg.norm(x[live], axis=1, keepdims=True)
    pca = PCA(20, svd_solver="full")
    scores = pca.fit_transform(scaled)
    np.testing.assert_allclose(np.abs(found.position), np.abs(scores[:, :2]), atol=1e-5)
    np.testing.assert_allclose(found.explained, pca.explained_variance_ratio_[:2], rtol=1e-4)
    assert np.bincount(found.k_means_cluster).tolist() == sorted(np.bincount(found.k_means_cluster))[::-1]


def test_a_map_finds_planted_directions(pairs: tuple[xr.Dataset, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    planted = np.arange(40) % 3
    directions = np.eye(3, 12)[planted] * 5 + 0.3 * rng.standard_normal((40, 12))
    found = actkit.feature_map(pairs[0], layer=0, directions=directions, k=3)
    assert adjusted_rand_score(planted[found.feature], found.k_means_cluster) == 1
    assert float(found.silhouette) > 0.7
    scaled = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    wanted = KMeans(3, n_init=5, random_state=0).fit_predict(scaled[found.feature.values])
    assert adjusted_rand_score(wanted, found.k_means_cluster) == 1
    assert found.attrs["of"] == "directions"


def test_invalid_maps_are_errors(pairs: tuple[xr.Dataset, np.ndarray], cube: xr.Dataset) -> None:
    with pytest.raises(MissingError, match="no `feature_index`"):
        actkit.feature_map(cube, layer=0)
    with pytest.raises(InputError, match="layer: the cube lacks 7"):
        actkit.feature_map(pairs[0], layer=7)
    with pytest.raises(InputError, match="give one vector for each of 40 features"):
        actkit.feature_map(pairs[0], layer=0, directions=np.ones((3, 4)))
    with pytest.raises(InputError, match="40 features of layer 0 are active in 10 samples or more"):
        actkit.feature_map(pairs[0], layer=0, k=40)
    with pytest.raises(InputError, match="k: is 1"):
        actkit.feature_map(pairs[0], layer=0, k=1)
