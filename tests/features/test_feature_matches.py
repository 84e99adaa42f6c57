from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import sparse

import actkit
from actkit.errors import InputError, MissingError
from actkit.features import nearest_rows as kernel
from actkit.features.sae import Sae
from actkit.features.sae_set import SaeSet
from tests.features.sae_samples import random_sae


def set_of(*saes: Sae) -> SaeSet:
    return SaeSet("residual", {sae.layer: lambda sae=sae: sae for sae in saes})


def shuffled(sae: Sae, seed: int = 0, noise: float = 0.0) -> tuple[Sae, np.ndarray]:
    """Return an autoencoder with its features in another order, and that order."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(sae.n_features, generator=rng)
    w_dec = sae.w_dec[order]
    w_dec = w_dec + noise * torch.randn(w_dec.shape, generator=rng)
    return replace(sae, w_dec=3 * w_dec), order.numpy()


@pytest.mark.parametrize("block", [1, 50, 2**22])
def test_cosine_matches_equal_those_of_all_pairs(monkeypatch, block):
    monkeypatch.setattr(kernel, "_BLOCK_VALUES", block)
    ours, theirs = torch.randn(13, 5), torch.randn(17, 5)
    theirs[3] = 0
    found = kernel.cosine_matches(ours, theirs)
    a, b = (rows.numpy() / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-9) for rows in (ours, theirs))
    products = a @ b.T
    products[:, 3] = -np.inf
    np.testing.assert_array_equal(found.best, products.argmax(axis=1))
    np.testing.assert_allclose(found.similarity, products.max(axis=1), atol=1e-6)
    others = np.delete(np.arange(17), 3)
    np.testing.assert_array_equal(found.other_best[others], products.argmax(axis=0)[others])
    assert found.other_best[3] == -1
    assert np.isnan(found.other_similarity[3])
    mutual = products.argmax(axis=0)[products.argmax(axis=1)] == np.arange(13)
    np.testing.assert_array_equal(found.mutual, mutual)


@pytest.mark.parametrize("block", [1, 2**22])
def test_correlation_matches_equal_those_of_numpy(monkeypatch, block):
    monkeypatch.setattr(kernel, "_BLOCK_VALUES", block)
    rng = np.random.default_rng(0)
    ours, theirs = (np.maximum(rng.normal(size=(60, n)) - 0.8, 0) for n in (7, 9))
    theirs[:, 2] = 4 * ours[:, 5]
    ours[:, 1], theirs[:, 4] = 0, 2.5  # constant features
    found = kernel.correlation_matches(sparse.csr_array(ours), sparse.csr_array(theirs))
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = np.corrcoef(ours.T, theirs.T)[:7, 7:]
    rows = np.delete(np.arange(7), 1)
    np.testing.assert_array_equal(found.best[rows], np.nanargmax(expected[rows], axis=1))
    np.testing.assert_allclose(found.similarity[rows], np.nanmax(expected[rows], axis=1), atol=1e-6)
    assert (found.best[5], found.best[1], found.other_best[4]) == (2, -1, -1)


def test_same_features_in_another_order_are_found():
    sae = random_sae(1, hidden=32)
    other, order = shuffled(sae)
    result = actkit.match_features(set_of(sae), set_of(other))
    np.testing.assert_array_equal(order[result.best.sel(layer=1)], np.arange(20))
    np.testing.assert_array_equal(result.other_best.sel(layer=1), order)
    assert result.mutual.all()
    np.testing.assert_allclose([result.cosine, result.other_cosine], 1, atol=1e-5)
    assert (result.matched.item(), result.matched_random.item()) == (1, 0)
    assert result.mean_cosine_random < 0.5


def test_random_directions_match_each_other_as_often_as_the_baseline_says():
    """Two unrelated dictionaries agree as often as random directions do: the baseline is calibrated."""
    shares = []
    for seed in range(20):
        ours, theirs = (random_sae(0, hidden=4, features=60, seed=2 * seed + i) for i in range(2))
        result = actkit.match_features(set_of(ours), set_of(theirs), threshold=0.9, seed=seed)
        shares.append((result.matched.item(), result.matched_random.item(), result.mean_cosine.item()))
        assert result.mean_cosine_random == pytest.approx(shares[-1][2], abs=0.05)
    found, baseline, _ = np.mean(shares, axis=0)
    assert 0.1 < found < 0.9
    assert found == pytest.approx(baseline, abs=0.05)


def test_neighbouring_layers_are_compared_by_default():
    first = random_sae(2, hidden=32)
    second, order = shuffled(first, noise=0.01)
    third = random_sae(9, hidden=32, features=25)
    saes = set_of(first, replace(second, layer=5), third)
    result = actkit.match_features(saes)
    assert (result.layer.values.tolist(), result.other_layer.values.tolist()) == ([2, 5], [5, 9])
    assert dict(result.sizes) == {"layer": 2, "feature": 20, "other_feature": 25}
    np.testing.assert_array_equal(order[result.best.sel(layer=2)], np.arange(20))
    assert (result.other_best.sel(layer=2, other_feature=slice(20, None)) == -1).all()
    assert result.other_cosine.sel(layer=2, other_feature=slice(20, None)).isnull().all()
    assert (result.matched > 0.9).values.tolist() == [True, False]
    assert result.attrs["component"] == "residual"


def test_layers_can_be_paired():
    sae = random_sae(1, hidden=32)
    other = replace(shuffled(sae)[0], layer=7)
    assert actkit.match_features(set_of(sae), set_of(other), layers={1: 7}).matched.item() == 1


def features_cube(values: np.ndarray, layers: tuple[int, ...] = (1,), n_features: int = 20) -> xr.Dataset:
    """Return a sparse cube of one sample and layers with the same values, dims ``(token, feature)``."""
    n_tokens = len(values)
    index = np.argsort(-values, axis=1)[:, :8]
    value = np.take_along_axis(values, index, axis=1)
    index = np.where(value > 0, index, 0)
    shape = (len(layers), 1, *index.shape)
    token = {"n_tokens": [n_tokens], "language": ["en"], "sample_id": ["a"], "text": ["t"]}
    coords: dict[str, Any] = {name: ("sample", entry) for name, entry in token.items()}
    coords |= {
        "token_kind": (("sample", "token"), np.full((1, n_tokens), 3, np.int8)),
        "layer": list(layers),
        "sample": [0],
        "token": np.arange(n_tokens),
    }
    dims = ("layer", "sample", "token", "k")
    data = {
        "feature_index": (dims, np.broadcast_to(index, shape).astype(np.uint16)),
        "feature_value": (dims, np.broadcast_to(value, shape).astype(np.float32)),
    }
    return xr.Dataset(data, coords, {"n_features": n_features, "first_is_content": True})


def sparse_values(seed: int = 0, n_tokens: int = 200) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.maximum(rng.normal(size=(n_tokens, 20)) - 1.5, 0).astype(np.float32)


def test_correlation_finds_features_that_decoders_cannot_compare():
    values = sparse_values()
    other, order = shuffled(random_sae(1, hidden=32))
    result = actkit.match_features(
        set_of(random_sae(1, hidden=16)),
        set_of(other),
        features=features_cube(values),
        other_features=features_cube(2 * values[:, order]),
    )
    np.testing.assert_array_equal(order[result.correlated.sel(layer=1)], np.arange(20))
    np.testing.assert_allclose(result.correlation, 1, atol=1e-6)
    assert result.random_correlation.max() < 0.6
    assert "cosine" not in result


def test_correlation_between_layers_needs_one_cube():
    values = sparse_values()
    saes = set_of(random_sae(1), random_sae(3))
    result = actkit.match_features(saes, features=features_cube(values, (1, 3)))
    np.testing.assert_array_equal(result.correlated.sel(layer=1), np.arange(20))
    assert {"best", "correlation"} <= set(result)


SAE, NARROW = random_sae(1), random_sae(1, hidden=3)
VALUES = sparse_values()
CUBE = features_cube(VALUES)
BAD: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "one layer": (
        lambda: actkit.match_features(set_of(SAE)),
        InputError,
        "layers: there are none to compare: they have layers [1] (load two layers or more, or give other=)",
    ),
    "no common layer": (
        lambda: actkit.match_features(set_of(SAE), set_of(random_sae(2))),
        InputError,
        "layers: there are none to compare: they have layers [1] and [2] (give layers={layer: other layer})",
    ),
    "unknown layer": (
        lambda: actkit.match_features(set_of(SAE), set_of(SAE), layers=[4]),
        InputError,
        "layers: there is no autoencoder of layer 4 (there are [1])",
    ),
    "width": (
        lambda: actkit.match_features(set_of(SAE), set_of(NARROW)),
        InputError,
        "autoencoders: have widths 6 at layer 1 and 3 at layer 1 (give the features of both, whose values",
    ),
    "threshold": (
        lambda: actkit.match_features(set_of(SAE), set_of(SAE), threshold=2),
        InputError,
        "threshold: is 2 (give a cosine between 0 and 1)",
    ),
    "features of one": (
        lambda: actkit.match_features(set_of(SAE), set_of(SAE), features=CUBE),
        InputError,
        "other_features: is missing (give the features of both autoencoders)",
    ),
    "features of the other": (
        lambda: actkit.match_features(set_of(SAE), set_of(SAE), other_features=CUBE),
        InputError,
        "features: is missing (give the features of both autoencoders)",
    ),
    "other samples": (
        lambda: actkit.match_features(
            set_of(SAE),
            set_of(SAE),
            features=CUBE,
            other_features=CUBE.assign_coords(sample_id=("sample", ["b"])),
        ),
        InputError,
        "other_features: are of other samples than `features` (encode the same cube with both)",
    ),
    "other tokens": (
        lambda: actkit.match_features(
            set_of(SAE), set_of(SAE), features=CUBE, other_features=features_cube(sparse_values(n_tokens=50))
        ),
        InputError,
        "other_features: have other numbers of tokens in a sample than `features` (encode cubes of the same",
    ),
    "features of others": (
        lambda: actkit.match_features(
            set_of(random_sae(1, features=4)), set_of(SAE), features=CUBE, other_features=CUBE
        ),
        InputError,
        "features: have a feature 19 at layer 1, but its autoencoder has 4 (give the features of these",
    ),
    "layer without features": (
        lambda: actkit.match_features(
            set_of(random_sae(2)), set_of(random_sae(2)), features=CUBE, other_features=CUBE
        ),
        MissingError,
        "the features have no layers [2]; encode them as well",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_request_that_cannot_be_met_is_refused(name):
    call, error, message = BAD[name]
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
