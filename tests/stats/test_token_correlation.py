"""Correlations of tokens between layers: the numbers of NumPy and SciPy, and the coverage of intervals."""

from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy.stats import pearsonr, spearmanr

import actkit
from actkit import TokenFilter
from actkit.errors import InputError, MissingError
from actkit.stats import lazy_blocks
from actkit.stats.kernels.token_correlation import pearson_correlations, spearman_correlations
from actkit.store.shard_reader import ShardReader
from actkit.testing import write_cube

token_correlation = import_module("actkit.stats.token_correlation")


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return actkit.open_cube(write_cube(n_samples=24, window=24, n_tokens=6, n_layers=3, hidden=9))


def test_vectors_equal_numpy(cube: xr.Dataset) -> None:
    result = actkit.token_correlation(cube)
    assert result.cosine.chunks is not None
    result = result.compute()
    arabic = (cube.language == "arabic").values
    mask = (cube.token_kind == 3).values & arabic[:, None]
    first, second = (cube.residual.sel(layer=layer).values[mask].astype(float) for layer in (0, 2))
    pairs = list(zip(first, second, strict=True))
    found = result.sel(language="arabic", layer=0, layer_2=2)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    np.testing.assert_allclose(found.cosine, np.mean(cosines), rtol=1e-12)
    np.testing.assert_allclose(
        found.pearson, np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]), rtol=1e-12
    )
    assert int(found.n_tokens) == mask.sum()
    assert found.n_clusters == 12
    np.testing.assert_allclose(result.cosine.values[:, range(3), range(3)], 1)
    adjacent = actkit.layer_updates(cube, resamples=5).cosine.sel(language="arabic", layer=1)
    np.testing.assert_allclose(result.cosine.sel(language="arabic", layer=1, layer_2=2), adjacent, rtol=1e-6)


def test_vectors_are_read_once_at_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    many = actkit.open_cube(write_cube(n_samples=24, window=12, n_tokens=6, n_layers=3, hidden=9))
    expected = actkit.token_correlation(many).compute()
    decoded: Counter[tuple[str, int]] = Counter()
    decode = ShardReader._decode

    def counted(self: ShardReader, key: str, stored: np.ndarray, chunk: Any, out: np.ndarray) -> None:
        decoded[key, chunk.start] += key.startswith("residual")
        decode(self, key, stored, chunk, out)

    monkeypatch.setattr(ShardReader, "_decode", counted)
    monkeypatch.setattr(lazy_blocks, "READ", 1)  # a chunk at a time
    xr.testing.assert_identical(actkit.token_correlation(many).compute(), expected)
    assert sum(decoded.values()) >= 6
    assert max(decoded.values()) == 1


def test_few_samples_are_held_if_layers_are_large(cube: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, held = actkit.token_correlation(cube).compute(), []
    monkeypatch.setattr(lazy_blocks, "HELD", 3 * 2 * 6 * 9 * 4)  # two samples of six tokens at three layers
    sums = token_correlation._vector_sums

    def counted(layers: Iterator[np.ndarray], mask: np.ndarray) -> np.ndarray:
        held.append(int(mask.sum()))
        return sums(layers, mask)

    monkeypatch.setattr(token_correlation, "_vector_sums", counted)
    xr.testing.assert_identical(actkit.token_correlation(cube).compute(), expected)
    assert max(held) <= 4 * 6
    assert len(held) >= 6


def test_norms_equal_scipy(cube: xr.Dataset) -> None:
    result = actkit.token_correlation(cube, of="norm").compute()
    mask = (cube.token_kind == 3).values & (cube.language == "english").values[:, None]
    first, second = (cube.norm.sel(layer=layer).values[mask].astype(float) for layer in (1, 2))
    found = result.sel(language="english", layer=2, layer_2=1)
    np.testing.assert_allclose(found.pearson, pearsonr(first, second).statistic, rtol=1e-10)
    np.testing.assert_allclose(found.spearman, spearmanr(first, second).statistic, rtol=1e-10)
    assert found.pearson_low < found.pearson < found.pearson_high
    assert result.attrs["of"] == "norm"
    assert result.attrs["interval"] == "95%, by image_id"


def test_ties_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4, (3, 60)) + np.arange(3)[:, None] * rng.integers(0, 2, 60)
    found, low, high = spearman_correlations(values, np.arange(60))
    np.testing.assert_allclose(found, spearmanr(values.T).statistic, rtol=1e-12)
    assert (low <= found + 1e-12).all()
    assert (found <= high + 1e-12).all()


def jackknife(values: np.ndarray, clusters: np.ndarray, ranks: bool) -> float:
    """Return the standard error of a correlation when one cluster at a time is deleted."""
    correlate = spearmanr if ranks else pearsonr
    left_out = [correlate(*values[:, clusters != cluster]).statistic for cluster in range(clusters.max() + 1)]
    return float(np.sqrt((len(left_out) - 1) * np.var(left_out)))


@pytest.mark.parametrize("ranks", [False, True])
@pytest.mark.parametrize("is_tied", [False, True])
def test_errors_are_those_of_the_jackknife(ranks: bool, is_tied: bool) -> None:
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(120), rng.integers(1, 6, 120))
    shared = rng.standard_normal((2, 120))[:, clusters]
    values = shared + 0.5 * shared[::-1] + rng.standard_normal(shared.shape)
    values = np.round(2 * values) if is_tied else values
    correlate = spearman_correlations if ranks else pearson_correlations
    found, low, high = (table[0, 1] for table in correlate(values, clusters))
    error = (np.arctanh(high) - np.arctanh(low)) / 2 / 1.96 * (1 - found**2)
    assert error == pytest.approx(jackknife(values, clusters, ranks), rel=0.08 if ranks else 0.02)


def replicated(n: int, seed: int, n_clusters: int = 100) -> xr.Dataset:
    """Return a cube in memory of `n` independent languages, with dependent samples and tokens."""
    rng = np.random.default_rng(seed)
    n_samples = 2 * n_clusters * n
    cluster = np.arange(n_samples) // 2
    shape = (2, n_samples, 2, 6)
    common = rng.standard_normal((1, n_samples // 2, 1, 6))[:, cluster]
    own = 0.8 * rng.standard_normal((2, n_samples // 2, 1, 6))[:, cluster]
    residual = 1 + common + own + 0.7 * rng.standard_normal(shape)
    residual *= np.exp(0.3 * common[..., :1] + 0.3 * own[..., :1])
    return xr.Dataset(
        {
            "residual": (("layer", "sample", "token", "hidden"), residual),
            "norm": (("layer", "sample", "token"), np.linalg.norm(residual, axis=-1)),
        },
        {
            "layer": [0, 1],
            "sample": np.arange(n_samples),
            "token": [0, 1],
            "n_tokens": ("sample", np.full(n_samples, 2)),
            "token_kind": (("sample", "token"), np.full((n_samples, 2), 3, dtype=np.int8)),
            "language": ("sample", np.array([f"{at:04d}" for at in cluster // n_clusters], dtype=object)),
            "pair": ("sample", cluster, {"label": True}),
        },
        {"first_is_content": True},
    )


@pytest.mark.parametrize("n", [60, pytest.param(1000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("of", ["vector", "norm"])
def test_intervals_cover_the_truth(of: str, n: int) -> None:
    truth = actkit.token_correlation(replicated(1, 7, 20_000), of=of, cluster="pair")
    result = actkit.token_correlation(replicated(n, 8), of=of, cluster="pair")
    for name in ("cosine", "pearson") if of == "vector" else ("pearson", "spearman"):
        true = truth[name].sel(layer=0, layer_2=1).item()
        pair = result.sel(layer=0, layer_2=1)
        covered = ((pair[f"{name}_low"] <= true) & (true <= pair[f"{name}_high"])).mean()
        assert 0.95 - 3 * np.sqrt(0.05 * 0.95 / n) - 0.02 <= covered <= 0.99, name


def test_filters_and_faults(cube: xr.Dataset) -> None:
    tokens = ~TokenFilter(positions=-1)
    result = actkit.token_correlation(cube, of="norm", tokens=TokenFilter(positions=[1, 2]))
    assert result.attrs["tokens"] == "TokenFilter(positions=(1, 2))"
    one = actkit.token_correlation(cube, of="norm", tokens=TokenFilter(positions=[1, 2]), layers=[1])
    xr.testing.assert_allclose(one.pearson, result.pearson.sel(layer=[1], layer_2=[1]))
    with pytest.warns(UserWarning, match="have no selected token"):
        fewer = actkit.token_correlation(cube, tokens=tokens).n_tokens
    # one token fewer in each of the 12 samples of a language
    assert ((actkit.token_correlation(cube).n_tokens - fewer) == 12).all()
    with pytest.raises(InputError, match="`pooled` has the dims"):
        actkit.token_correlation(cube, of="pooled")
    with pytest.raises(MissingError, match="the cube has no `entropy`"):
        actkit.token_correlation(cube, of="entropy")
