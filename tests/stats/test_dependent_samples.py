"""Level and coverage with dependent samples, whose clusters are detected, held out and resampled as wholes.

Each layer of a simulated cube is a replicate of the same experiment.
"""

import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.demo.captions import captions
from actkit.schema import TokenKind
from actkit.stats import selection
from actkit.stats.group_comparison import contrasts_of, cut_folds
from actkit.testing import write_cube

LONG = [pytest.param(3000, marks=[pytest.mark.nightly, pytest.mark.timeout(3600)])]
QUICK: dict[str, Any] = {"folds": 2, "seeds": 1, "permutations": 1}


def cube_of(pooled: np.ndarray, labels: dict[str, Any], languages: Any = "english") -> xr.Dataset:
    """A cube of one token per sample, whose norm is its first dimension, from (layer, sample, hidden)."""
    n_layers, n_samples, hidden = pooled.shape
    vectors = pooled[:, :, None].astype(np.float32)
    return xr.Dataset(
        {
            "residual": (("layer", "sample", "token", "hidden"), vectors),
            "pooled": (("layer", "sample", "hidden"), vectors[:, :, 0]),
            "norm": (("layer", "sample", "token"), vectors[..., 0]),
        },
        {
            **{name: ("sample", _texts(name, values), {"label": True}) for name, values in labels.items()},
            "layer": np.arange(n_layers),
            "has_residual": ("layer", np.ones(n_layers, dtype=bool)),
            "sample": np.arange(n_samples),
            "sample_id": ("sample", _texts("id", np.arange(n_samples))),
            "language": ("sample", np.broadcast_to(np.array(languages, dtype=object), n_samples)),
            "text": ("sample", np.full(n_samples, "text", dtype=object)),
            "n_tokens": ("sample", np.ones(n_samples, dtype=np.int32)),
            "token": [0],
            "token_kind": (("sample", "token"), np.full((n_samples, 1), TokenKind.TEXT, dtype=np.int8)),
        },
        {"first_is_content": True, "hidden_size": hidden},
    )


def _texts(name: str, values: Any) -> np.ndarray:
    return np.array(
        [value if isinstance(value, str) else f"{name}{value:04d}" for value in values], dtype=object
    )


def dependent(
    rng: np.random.Generator, shape: tuple[int, int], clusters: np.ndarray, rho: float
) -> np.ndarray:
    """Standard normal vectors, dims (layer, sample, hidden), correlated by `rho` within a cluster."""
    n_layers, hidden = shape
    between = rng.standard_normal((n_layers, clusters.max() + 1, hidden))[:, clusters]
    within = rng.standard_normal((n_layers, len(clusters), hidden))
    return np.asarray(np.sqrt(rho) * between + np.sqrt(1 - rho) * within)


def coverage(table: xr.Dataset, truth: float, name: str = "") -> float:
    """Share of the intervals of a variable, by default `low` to `high`, that contain the truth."""
    low, high = (f"{name}_{end}" if name else end for end in ("low", "high"))
    return float(((table[low] <= truth) & (truth <= table[high])).mean())


# norms and updates


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [400, *LONG])
def test_intervals_of_norms_cover_the_mean_of_clusters_of_four(n_replicates: int) -> None:
    clusters = np.repeat(np.arange(100), 4)
    values = 20 + dependent(np.random.default_rng(0), (n_replicates, 1), clusters, 0.7)
    cube = cube_of(values, {"scene": clusters})
    norms = actkit.layer_norms(cube, resamples=400)
    assert norms.attrs["cluster"] == "scene"
    assert norms.attrs["interval"] == "95%, bootstrap over scene"
    assert 0.92 <= coverage(norms, 20) <= 0.98
    # samples treated as independent: about 0.74
    assert coverage(actkit.layer_norms(cube, cluster=None, resamples=400), 20) < 0.85


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [400, *LONG])
def test_intervals_of_few_unequal_clusters_cover_too(n_replicates: int) -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(12), rng.integers(2, 6, 12))
    values = 20 + dependent(rng, (n_replicates, 1), clusters, 0.7)
    norms = actkit.layer_norms(cube_of(values, {"scene": clusters}), resamples=400)
    assert 0.91 <= coverage(norms, 20) <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [300, *LONG])
def test_intervals_of_updates_cover_the_mean_of_clusters_of_four(n_replicates: int) -> None:
    clusters = np.repeat(np.arange(100), 4)
    steps = 5 + dependent(np.random.default_rng(0), (n_replicates, 1), clusters, 0.7)
    # the first dimension grows by the step, the second not at all
    values = np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, axis=0)]) + 100.0
    updates = actkit.layer_updates(cube_of(values.astype(np.float64), {"scene": clusters}), resamples=300)
    assert updates.attrs["cluster"] == "scene"
    assert 0.92 <= coverage(updates, 5, "update_norm") <= 0.98


def test_an_interval_needs_two_clusters() -> None:
    values = 20 + np.random.default_rng(0).standard_normal((2, 8, 1))
    norms = actkit.layer_norms(
        cube_of(values, {"scene": np.zeros(8, dtype=int)}), cluster="scene", resamples=9
    )
    assert norms.low.isnull().all()
    assert norms["mean"].notnull().all()


# folds and effects


@pytest.mark.slow
def test_twins_of_the_bundled_captions_do_not_leak() -> None:
    """A model that sees the scene and not the gender is at chance: with leaking twins, far below it."""
    rows = captions(80)
    columns = {name: [row[name] for row in rows] for name in ("image_id", "scene", "gender", "occupation")}
    scenes = np.unique(columns["scene"], return_inverse=True)[1]
    rng = np.random.default_rng(0)
    scene_vectors = rng.standard_normal((3, 80, 20))[:, scenes]
    pooled = scene_vectors + 0.05 * rng.standard_normal(scene_vectors.shape)
    cube = cube_of(pooled, columns, [row["language"] for row in rows])
    cube["sample_id"] = ("sample", np.array([row["sample_id"] for row in rows], dtype=object))

    choice = selection.cluster_choice(cube, by="gender")
    _, contrasts = contrasts_of(cube.pooled, by="gender", cluster=choice.name, between=None, folds=5)
    for language, contrast in contrasts.items():
        scene_of = scenes[contrast.places]
        for train, test in cut_folds(language, contrast.labels, contrast.groups, 5, 2):
            assert not set(scene_of[train]) & set(scene_of[test])

    result = actkit.group_differential(cube, by="gender", folds=5, seeds=1, permutations=1)
    assert result.attrs["cluster"] == "scene"
    assert result.attrs["cluster_origin"] == "detected"
    assert abs(float(result.auroc.mean()) - 0.5) < 0.1
    leaking = actkit.group_differential(
        cube, by="gender", cluster="image_id", folds=5, seeds=1, permutations=1
    )
    assert float(leaking.auroc.mean()) < 0.3
    transferred = actkit.transfer(cube, by="gender", folds=5)
    assert transferred.attrs["cluster"] == "scene"
    assert (abs(transferred.auroc.mean("layer") - 0.5) < 0.15).all()


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [60, *LONG])
@pytest.mark.parametrize("kind", ["one label per cluster", "twins and triplets"])
def test_the_effect_is_0_on_average_where_there_is_none(kind: str, n_replicates: int) -> None:
    rng = np.random.default_rng(1)
    sizes = np.concatenate([rng.integers(1, 4, 40), rng.integers(1, 9, 8)])
    clusters = np.repeat(np.arange(48), sizes)
    second = clusters >= 40 if kind == "one label per cluster" else rng.random(len(clusters)) < 0.3
    pooled = dependent(rng, (n_replicates, 12), clusters, 0.7)
    labels = {"scene": clusters, "gender": np.where(second, "m", "f").tolist()}
    result = actkit.group_differential(cube_of(pooled, labels), by="gender", **QUICK)
    assert result.attrs["cluster"] == "scene"
    effect = result.squared_smd.values.ravel()
    assert abs(effect.mean()) < 3 * effect.std(ddof=1) / np.sqrt(len(effect))


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [100, *LONG])
def test_intervals_cover_a_true_effect(n_replicates: int) -> None:
    clusters = np.repeat(np.arange(150), 2)
    second = np.arange(300) % 2 == 1
    pooled = dependent(np.random.default_rng(0), (n_replicates, 8), clusters, 0.5)
    pooled[:, second, 0] += 1.5
    labels = {"scene": clusters, "gender": np.where(second, "m", "f").tolist()}
    result = actkit.group_differential(cube_of(pooled, labels), by="gender", **QUICK)
    truth = 1.5**2 / 8
    assert float(result.squared_smd.mean()) == pytest.approx(truth, rel=0.03)
    covered = coverage(result, truth, "squared_smd")
    margin = 3 * np.sqrt(0.05 * 0.95 / n_replicates)
    assert 0.92 - margin <= covered <= 0.98 + margin


# directions


def translated(
    n_clusters: int, n_replicates: int, english: float, arabic: tuple[float, float], seed: int = 0
) -> xr.Dataset:
    """Twins in two languages whose noise is that of the image, with directions of known cosine."""
    clusters = np.repeat(np.arange(n_clusters), 4)
    second = np.arange(4 * n_clusters) % 2 == 1
    is_english = np.arange(4 * n_clusters) % 4 < 2
    rng = np.random.default_rng(seed)
    pooled = dependent(rng, (n_replicates, 20), 2 * clusters + second, 0.8)
    pooled[:, second & is_english, 0] += english
    pooled[:, second & ~is_english, 0] += arabic[0]
    pooled[:, second & ~is_english, 1] += arabic[1]
    labels = {"scene": clusters, "gender": np.where(second, "m", "f").tolist()}
    cube = cube_of(pooled, labels, np.where(is_english, "english", "arabic").tolist())
    return cube.assign_coords(sample_id=("sample", _texts("image", 2 * clusters + second)))


def between(cube: xr.Dataset, **options: Any) -> xr.Dataset:
    result = actkit.direction_cosines(cube, by="gender", splits=8, **options)
    for name in ("languages", "disattenuated", "layers", "layers_disattenuated"):
        assert not (abs(result[name]) > 1 + 1e-12).any()
    return result.sel(language="english", language_2="arabic")


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [200, *LONG])
@pytest.mark.parametrize(("n_clusters", "size"), [(60, 0.0), (60, 1.5), (100, 3.0)])
def test_unrelated_directions_have_a_cosine_of_0(n_clusters: int, size: float, n_replicates: int) -> None:
    """Translations share their noise: directions of the same samples had a cosine of 0.68."""
    pair = between(translated(n_clusters, n_replicates, size, (0.0, size)))
    assert pair.attrs["cluster"] == "scene"
    cosines = pair.languages.values
    assert abs(cosines.mean()) < 3 * cosines.std(ddof=1) / np.sqrt(n_replicates)
    if size == 0:  # no direction at all
        assert pair.disattenuated.isnull().mean() > 0.95
        assert "cannot be told from sampling noise" in pair.attrs["undefined"]
    if size == 3:
        true = pair.disattenuated.values
        assert np.isfinite(true).all()
        assert abs(true.mean()) < 3 * true.std(ddof=1) / np.sqrt(n_replicates)
        assert 0.92 <= coverage(pair, 0, "disattenuated") <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("n_replicates", [300, *LONG])
def test_intervals_of_disattenuated_cosines_cover_the_cosine(n_replicates: int) -> None:
    pair = between(translated(120, n_replicates, 3.0, (1.5, 3 * np.sqrt(0.75))))
    assert float(pair.disattenuated.mean()) == pytest.approx(0.5, abs=0.03)
    assert 0.92 <= coverage(pair, 0.5, "disattenuated") <= 0.98


@pytest.mark.slow
def test_translations_never_meet_in_both_halves_without_a_cluster_label() -> None:
    for cluster in (None, "scene"):
        cosines = between(translated(60, 200, 0.0, (0.0, 0.0)), cluster=cluster).languages.values
        assert abs(cosines.mean()) < 3 * cosines.std(ddof=1) / np.sqrt(200)


@pytest.mark.slow
def test_adjacent_layers_do_not_share_noise_either() -> None:
    """Without any direction, the same noise at two layers gave a cosine of 1."""
    cosines = []
    for seed in range(60):
        part = translated(60, 1, 0.0, (0.0, 0.0), seed)
        twice = xr.concat([part, part.assign_coords(layer=[1])], "layer", data_vars="minimal")
        result = actkit.direction_cosines(twice, by="gender", splits=4)
        cosines.append(result.layers.sel(layer=0, layer_2=1, language="english").item())
    assert abs(np.mean(cosines)) < 3 * np.std(cosines, ddof=1) / np.sqrt(len(cosines))


def test_an_uncertain_choice_warns_once() -> None:
    clusters = np.arange(120) // 2
    authors = (np.arange(120) * 7 + np.arange(120) // 60) % 60
    values = 20 + np.random.default_rng(0).standard_normal((2, 120, 1))
    cube = cube_of(values, {"story": clusters, "author": authors})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        norms = actkit.layer_updates(cube, resamples=9)
    assert norms.attrs["cluster"] == "story"
    assert [str(entry.filename) for entry in caught] == [__file__]


def test_directions_of_many_layers_are_compared_lazily() -> None:
    """One chunk per layer would be multiplied with every other; dask warns of that."""
    cube = actkit.open_cube(write_cube(n_layers=16, n_samples=40, n_tokens=2, hidden=4))
    result = actkit.direction_cosines(cube, by="gender", splits=2)
    assert result.layers_disattenuated.chunks is not None
    assert result.compute().layers.shape == (2, 16, 16)
