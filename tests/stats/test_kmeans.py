"""k-means of samples and tokens: scikit-learn's numbers, planted clusters, and the level of the test."""

import numpy as np
import pytest
import xarray as xr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, silhouette_score

import actkit
from actkit import TokenFilter
from actkit.errors import InputError
from actkit.stats.kernels.kmeans import (
    adjusted_mutual_information,
    adjusted_rand,
    contingency,
)
from actkit.testing import write_cube

QUICK = {"resamples": 3, "permutations": 39}


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    """Three planted clusters at layer 1, two of which agree with `topic`; noise at layer 0."""
    found = actkit.open_cube(write_cube(n_samples=120, n_layers=2, hidden=8, n_tokens=5, window=60)).load()
    rng = np.random.default_rng(0)
    planted = rng.choice(3, 120, p=[0.5, 0.3, 0.2])
    pooled = found.pooled.values.copy()
    pooled[1] += 20 * np.eye(8)[planted]
    found = found.assign(pooled=(found.pooled.dims, pooled))
    topic = np.array(["a", "b", "b"], dtype=object)[planted]
    return found.assign_coords(
        planted=("sample", planted), topic=("sample", topic, {"label": True})
    )  # fmt: skip


def test_planted_clusters_are_recovered(cube: xr.Dataset) -> None:
    result = actkit.cluster_samples(cube, k=range(2, 6), by=["topic", "gender"], **QUICK)
    assert result.k.sel(layer=1).values.tolist() == [3, 3]
    english = (cube.language == "english").values
    assignment = result.assignment.sel(layer=1).values
    for language in (english, ~english):
        assert adjusted_rand_score(cube.planted[language], assignment[language]) == 1
        counts = np.bincount(assignment[language])
        assert (np.diff(counts) <= 0).all()  # numbered from the largest
    assert (result.stability.sel(layer=1, candidate=3) == 1).all()
    assert (result.silhouette.sel(layer=1, candidate=3) > 0.7).all()
    first = result.sel(language="english", layer=1, label="topic")
    topic = cube.topic.values[english].astype(str)
    assert first.adjusted_rand == pytest.approx(adjusted_rand_score(topic, assignment[english]))
    mutual = adjusted_mutual_info_score(topic, assignment[english])
    assert first.adjusted_mutual_information == pytest.approx(mutual)
    assert first.adjusted_rand_p == 1 / 40
    assert abs(first.adjusted_rand_null_mean) < 0.1
    assert result.sel(language="english", layer=0, label="topic").adjusted_rand < 0.3
    assert result.text.values.tolist() == cube.text.values.tolist()
    assert result.sample_language.values.tolist() == cube.language.values.tolist()
    assert result.attrs["cluster"] == "image_id"


def test_measures_equal_scikit_learn(cube: xr.Dataset) -> None:
    result = actkit.cluster_samples(cube, k=3, layers=[1], n_components=8, **QUICK)
    x = cube.pooled.sel(layer=1).values[(cube.language == "arabic").values].astype(float)
    model = KMeans(3, n_init=5, random_state=0).fit(x)
    found = result.sel(language="arabic", layer=1, candidate=3)
    assert found.inertia == pytest.approx(model.inertia_, rel=1e-6)
    assert found.silhouette == pytest.approx(silhouette_score(x, model.labels_), rel=1e-6)
    assert "adjusted_rand" not in result
    assert "label" not in result.dims
    assert "criterion" not in result.attrs


def test_agreement_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    pairs = [(rng.integers(0, k, 60), rng.integers(0, 4, 60)) for k in (2, 5, 30)]
    pairs += [(pairs[0][1], pairs[0][1]), (np.arange(60) % 3, (np.arange(60) + 7) % 3)]
    for first, second in pairs:
        table = contingency(first, second)[None]
        assert adjusted_rand(table)[0] == pytest.approx(adjusted_rand_score(first, second))
        mutual = adjusted_mutual_info_score(first, second)
        assert adjusted_mutual_information(table)[0] == pytest.approx(mutual, abs=1e-9)


def test_noise_is_unstable_and_the_order_of_samples_does_not_matter(cube: xr.Dataset) -> None:
    noise = actkit.cluster_samples(cube, k=[5], layers=[0], **QUICK)
    assert (noise.stability < 0.6).all()
    lazy = actkit.cluster_samples(cube.chunk(), k=[5], layers=[0], **QUICK)
    assert lazy.assignment.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), noise)
    chosen = actkit.cluster_samples(cube, k=[4, 3], layers=[1], criterion="stability", **QUICK)
    assert (chosen.k == 3).all()


def test_too_few_or_equal_vectors_are_undefined(cube: xr.Dataset) -> None:
    few = actkit.cluster_samples(cube.isel(sample=slice(8)), k=[2, 3, 6], cluster=None, **QUICK)
    assert few.silhouette.sel(candidate=6).isnull().all()
    same = cube.assign(pooled=cube.pooled * 0)
    result = actkit.cluster_samples(same, k=2, by="topic", **QUICK)
    assert (result.assignment == -1).all()
    assert result.k.isnull().all()
    assert result.adjusted_rand.isnull().all()


def test_tokens(cube: xr.Dataset) -> None:
    tokens = TokenFilter(kinds=["special", "text"])
    shift = 30 * (cube.token_kind == 1)
    moved = cube.assign(residual=(cube.residual + shift).transpose(*cube.residual.dims))
    result = actkit.cluster_tokens(
        moved, k=2, by=["token_kind", "topic"], tokens=tokens, max_sampled_tokens=150, **QUICK
    )
    assert result.adjusted_rand.sel(label="token_kind").values == pytest.approx(np.ones((2, 2)))
    assert (result.adjusted_rand_p.sel(label="token_kind") == 1 / 40).all()
    assert result.sizes["token"] == 300
    row, kinds = 5, moved.token_kind.sel(sample=result.sample.values[5]).values
    assert result.token_kind.values[row] == kinds[result.position.values[row]]
    special = result.assignment.values[
        0, (result.token_kind == 1).values & (result.sample_language == "arabic").values
    ]
    assert len(set(special.tolist())) == 1
    assert result.attrs["tokens"] == repr(tokens)


@pytest.mark.parametrize("cluster", ["auto", "theme"])
def test_a_label_is_not_permuted_between_clusters_of_its_own(cube: xr.Dataset, cluster: str) -> None:
    """Labels with many values qualify as clusters, between which permuting them changes nothing."""
    english = cube.isel(sample=(cube.language == "english").values).drop_vars("image_id")
    theme = np.arange(60) // 4
    shift = xr.DataArray(
        9 * np.random.default_rng(1).standard_normal((15, 8))[theme], dims=["sample", "hidden"]
    )
    moved = {name: (english[name] + shift).transpose(*english[name].dims) for name in ("pooled", "residual")}
    english = english.assign(moved).assign_coords(theme=("sample", theme, {"label": True}))
    result = actkit.cluster_samples(english, k=8, by=["theme", "gender"], cluster=cluster, **QUICK)
    assert result.attrs["cluster"] == "theme"
    assert (result.adjusted_rand_p.sel(label="theme") == 1 / 40).all()
    tokens = actkit.cluster_tokens(english, k=8, by="theme", cluster=cluster, **QUICK)
    assert (tokens.adjusted_rand_p == 1 / 40).all()


@pytest.mark.parametrize("n", [40, pytest.param(1000, marks=pytest.mark.nightly)])
def test_level_of_the_permutation_test(n: int) -> None:
    """Clusters of four dependent samples share their label, which has nothing to do with their vectors."""
    rng = np.random.default_rng(2)
    group = np.arange(40 * n) // 4
    centres = rng.standard_normal((10 * n, 3)) * [5, 1, 1]
    vectors = centres[group] + 0.3 * rng.standard_normal((40 * n, 3))
    cube = xr.Dataset(
        {"pooled": (("layer", "sample", "hidden"), vectors[None])},
        {
            "layer": [0],
            "sample": np.arange(40 * n),
            "language": ("sample", np.array([f"{at:04d}" for at in np.arange(40 * n) // 40], dtype=object)),
            "topic": ("sample", rng.integers(0, 2, 10 * n)[group], {"label": True}),
            "text_group": ("sample", group, {"label": True}),
        },
    )
    options = {"k": 2, "by": "topic", "resamples": 1, "permutations": 39}
    p = actkit.cluster_samples(cube, cluster="text_group", **options).adjusted_rand_p
    p = p.where(p.notnull(), 1)
    assert (p <= 0.05).mean() <= (0.07 if n > 500 else 0.15)
    if n < 500:
        naive = actkit.cluster_samples(cube, cluster=None, **options).adjusted_rand_p
        assert (naive <= 0.05).mean() > 0.2


def test_faults(cube: xr.Dataset) -> None:
    for options, message in (
        ({"k": 1}, "k: is 1"),
        ({"k": [3, 3]}, "k: is .* several different ones"),
        ({"criterion": "gap"}, "criterion: 'gap' is unknown"),
        ({"layers": [7]}, "layers: the cube lacks"),
        ({"layers": []}, "layers: is empty"),
        ({"by": "colour"}, "by: the cube has no label `colour`"),
    ):
        with pytest.raises(InputError, match=message):
            actkit.cluster_samples(cube, **options)
