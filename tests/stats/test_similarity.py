"""Similarity: labels, clusters, cubes and languages; its p-value and calibration for unrelated vectors."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError

MEASURES = ["cka", "mutual_knn", "rsa", "procrustes"]


def made(layers: list[np.ndarray], language: str = "english", **labels: np.ndarray) -> xr.Dataset:
    """Return a cube in memory with one vector per sample; narrower layers are padded with zeros."""
    width, n = max(layer.shape[1] for layer in layers), len(layers[0])
    pooled = np.stack([np.pad(layer, ((0, 0), (0, width - layer.shape[1]))) for layer in layers])
    coords: dict[str, Any] = {name: ("sample", values, {"label": True}) for name, values in labels.items()}
    return xr.Dataset(
        {"pooled": (("layer", "sample", "hidden"), pooled)},
        coords={
            "layer": np.arange(len(layers)),
            "sample": np.arange(n),
            "sample_id": ("sample", np.array([f"{at:05d}" for at in range(n)], dtype=object)),
            "language": ("sample", np.full(n, language, dtype=object)),
            **coords,
        },
        attrs={"ids": "data", "first_is_content": True},
    )


@pytest.mark.parametrize("measure", MEASURES)
def test_layers_of_a_cube(cube: xr.Dataset, measure: str) -> None:
    result = actkit.similarity(cube, measure=measure, cluster=None, permutations=19).compute()
    assert result.similarity.dims == ("language", "layer", "layer_2")
    assert result.n.values.tolist() == [60, 60]
    for language in ("english", "arabic"):
        table = result.sel(language=language)
        np.testing.assert_allclose(np.diagonal(table.similarity), 1, atol=1e-9)
        np.testing.assert_allclose(np.diagonal(table.calibrated), 1, atol=1e-9)
        np.testing.assert_allclose(table.calibrated, table.calibrated.T, atol=1e-12)
        assert (np.diagonal(table.p) == 1 / 20).all()
        # the planted cube is similar except after layer 3
        assert float(table.calibrated[0, 1]) > float(table.calibrated[0, 4])
    assert result.attrs["measure"] == measure
    assert result.attrs["independence"] == "samples are taken to be independent"


def test_cka_is_that_of_cka(cube: xr.Dataset) -> None:
    found, wanted = actkit.similarity(cube, permutations=2), actkit.cka(cube)
    np.testing.assert_allclose(found.similarity, wanted.cka, atol=1e-9)
    fewer = actkit.similarity(cube, layers=[3, 1], max_samples=20, permutations=2).compute()
    assert fewer.layer.values.tolist() == fewer.layer_2.values.tolist() == [1, 3]
    assert fewer.n.values.tolist() == [20, 20]
    np.testing.assert_allclose(fewer.similarity, wanted.cka.sel(layer=[1, 3], layer_2=[1, 3]), atol=0.2)


@pytest.mark.parametrize("measure", MEASURES)
def test_layers_of_two_cubes_are_matched(cube: xr.Dataset, measure: str) -> None:
    options: dict[str, Any] = {"measure": measure, "permutations": 9, "n_components": None}
    wanted = actkit.similarity(cube, **options).compute()
    other = cube.isel(sample=slice(None, None, -1), layer=[1, 4]).compute()
    wider = xr.concat([other.pooled, xr.zeros_like(other.pooled)], "hidden")
    found = actkit.similarity(cube, other.drop_dims("hidden").assign(pooled=wider), **options).compute()
    assert found.layer_2.values.tolist() == [1, 4]
    wanted = wanted.sel(layer_2=[1, 4], language=found.language)
    np.testing.assert_allclose(found.similarity, wanted.similarity, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_languages_are_compared_at_each_layer(cube: xr.Dataset, measure: str) -> None:
    result = actkit.similarity(cube, across="language", measure=measure, permutations=19).compute()
    assert result.similarity.dims == ("language", "language_2", "layer")
    assert result.n.values.tolist() == [[0, 60], [60, 0]]
    pair = result.sel(language="english", language_2="arabic")
    mirrored = result.sel(language="arabic", language_2="english")
    np.testing.assert_array_equal(pair.calibrated.values, mirrored.calibrated.values)
    assert result.similarity.sel(language="english", language_2="english").isnull().all()
    assert (pair.p == 1 / 20).all()
    english, arabic = (cube.isel(sample=(cube.language == name).values) for name in ("english", "arabic"))
    renamed = arabic.assign_coords(language=english.language.variable)
    wanted = actkit.similarity(english, renamed, measure=measure, permutations=2).compute()
    np.testing.assert_allclose(pair.similarity, np.diagonal(wanted.similarity[0]), atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_order_and_chunks_of_samples_change_nothing(
    cube: xr.Dataset, shuffled: xr.Dataset, measure: str
) -> None:
    options: dict[str, Any] = {"measure": measure, "permutations": 5, "cluster": "image_id"}
    first = actkit.similarity(cube.chunk(sample=7, layer=2), **options)
    assert first.chunks
    xr.testing.assert_allclose(first.compute(), actkit.similarity(shuffled, **options), atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES)
def test_one_sample_of_each_cluster_enters(measure: str) -> None:
    """Dependent samples are similar in every representation, so unrelated ones would seem related."""
    rng = np.random.default_rng(0)
    scenes = np.arange(120) // 4
    layers = [rng.standard_normal((30, 8))[scenes] + 0.1 * rng.standard_normal((120, 8)) for _ in range(2)]
    cube = made(layers, scene=np.array([f"s{at}" for at in scenes], dtype=object))
    options: dict[str, Any] = {"measure": measure, "permutations": 99}
    naive = actkit.similarity(cube, cluster=None, **options).isel(language=0, layer=0, layer_2=1)
    assert float(naive.p) == 0.01
    found = actkit.similarity(cube, cluster="scene", **options)
    assert found.n.item() == 30
    detected = actkit.similarity(cube, **options)
    assert (detected.attrs["cluster"], detected.attrs["cluster_origin"]) == ("scene", "detected")
    xr.testing.assert_equal(detected, found)
    assert found.attrs["independence"] == "one sample of each scene, drawn with seed 0"
    pair = found.isel(language=0, layer=0, layer_2=1)
    assert float(pair.p) > 0.05
    assert abs(float(pair.calibrated)) < 3 * float(pair.null_sd)


@pytest.mark.slow
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("trials", [60, pytest.param(1000, marks=pytest.mark.nightly)])
def test_unrelated_representations_of_any_dimension_are_calibrated(measure: str, trials: int) -> None:
    """Twin clusters, 5 and 80 dimensions: a calibrated value of 0 within 3 standard errors, and a valid p."""
    rng = np.random.default_rng(1)
    twins = np.repeat(np.arange(40), 2)
    raw, calibrated, p = [], [], []
    for trial in range(trials):
        layers = [rng.standard_normal((40, hidden)) for hidden in (5, 80)]
        layers = [layer[twins] + 0.2 * rng.standard_normal((80, layer.shape[1])) for layer in layers]
        cube = made(layers, scene=twins.astype(str).astype(object))
        found = actkit.similarity(
            cube, measure=measure, cluster="scene", permutations=19, seed=trial, n_components=None
        )
        pair = found.isel(language=0, layer=0, layer_2=1)
        raw.append(float(pair.similarity))
        calibrated.append(float(pair.calibrated))
        p.append(float(pair.p))
    error = np.std(calibrated, ddof=1) / np.sqrt(trials)
    assert abs(np.mean(calibrated)) < 3 * error
    level, expected = np.mean(np.array(p) <= 0.1), 0.1  # two of 20 orders
    assert abs(level - expected) < 3 * np.sqrt(expected * (1 - expected) / trials)
    if measure == "procrustes":  # the floor that dimension and sample size alone give
        assert np.mean(raw) > 0.3


def test_few_samples_are_nan_and_many_neighbours_an_error(cube: xr.Dataset) -> None:
    part = cube.isel(sample=[0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 14])  # eight in English, three in Arabic
    result = actkit.similarity(part, permutations=3).compute()
    assert result.n.values.tolist() == [8, 3]
    assert result.similarity.sel(language="arabic").isnull().all()
    assert result.similarity.sel(language="english").notnull().all()
    with pytest.raises(InputError, match="k: is 10, but english has 8 independent samples"):
        actkit.similarity(part, measure="mutual_knn")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"measure": "svcca"}, "measure: 'svcca' is unknown .one of cka, mutual_knn, rsa, procrustes"),
    ({"across": "token"}, "across: 'token' is unknown"),
    ({"vectors": "tokens"}, "vectors: 'tokens' is not one of pooled, last"),
    ({"cluster": "height"}, "cluster: the cube has no label `height`"),
    ({"n_components": 0}, "n_components: is 0"),
    ({"permutations": 0}, "permutations: is 0"),
    ({"max_samples": 0}, "max_samples: is 0"),
    ({"layers": [9]}, "layers: the cube lacks .9."),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_invalid_options_are_errors(cube: xr.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        actkit.similarity(cube, **options)


def test_languages_need_shared_samples(cube: xr.Dataset) -> None:
    with pytest.raises(InputError, match="across: languages are compared within one cube"):
        actkit.similarity(cube, cube, across="language")
    with pytest.raises(InputError, match="no sample has the same id in two languages"):
        actkit.similarity(cube.isel(sample=(cube.language == "english").values), across="language")
