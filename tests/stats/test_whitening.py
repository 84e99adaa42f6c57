"""Whitener: agreement with scikit-learn, inversion, merging, resuming, saving and errors."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

import actkit
from actkit.errors import InputError, NonfiniteError
from actkit.testing import write_cube


def content(cube: xr.Dataset, layer: int) -> np.ndarray:
    mask = cube.token_kind.values == 3
    return cube.residual.sel(layer=layer).values[mask].astype(np.float64)


def test_whitened_vectors_have_mean_0_and_covariance_1(cube: xr.Dataset) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, eps_rel=0)
    white = whitener.transform(cube)
    assert dask.is_dask_collection(white)
    assert white.dims == ("sample", "token", "hidden")
    own = white.values[cube.token_kind.values == 3]
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(own.T), np.eye(12), atol=1e-9)
    assert whitener.rank == 12
    # ZCA, the whitening map closest to the identity, is symmetric and positive
    np.testing.assert_allclose(whitener.transform_matrix, whitener.transform_matrix.T, atol=1e-12)
    assert (np.linalg.eigvalsh(whitener.transform_matrix) > 0).all()


@pytest.mark.parametrize("shrinkage", [None, "ledoit-wolf"])
def test_rank_is_that_of_the_data(cube: xr.Dataset, shrinkage: str | None) -> None:
    """Shrinkage makes the estimated covariance regular, but adds no information."""
    few = cube.isel(sample=slice(0, 8))
    options = {"vectors": "pooled", "shrinkage": shrinkage, "n_components": None if shrinkage else 1}
    assert actkit.Whitener.fit(few, layer=1, **options).rank == 7
    copied = cube.compute().copy(deep=True)
    copied.pooled[..., 5] = copied.pooled[..., 3]
    assert actkit.Whitener.fit(copied, layer=1, **options).rank == 11


@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize("eps_rel", [0.0, 1e-2])
def test_round_trip_is_exact(cube: xr.Dataset, method: str, eps_rel: float) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, method=method, eps_rel=eps_rel)
    back = whitener.inverse(whitener.transform(cube))
    np.testing.assert_allclose(back, cube.residual.sel(layer=1), rtol=1e-9, atol=1e-9)


def test_pca_is_scikit_learns(cube: xr.Dataset) -> None:
    vectors = content(cube, 2)
    wanted = PCA(4, whiten=True, svd_solver="full").fit(vectors)
    whitener = actkit.Whitener.fit(cube, layer=2, method="pca", n_components=4, eps_rel=0)
    result = whitener.transform(cube)
    assert result.dims == ("sample", "token", "component")
    own = result.values[cube.token_kind.values == 3]
    signs = np.sign((own * wanted.transform(vectors)).sum(axis=0))
    np.testing.assert_allclose(own * signs, wanted.transform(vectors), atol=1e-6)
    np.testing.assert_allclose(
        whitener.inverse(result).values[cube.token_kind.values == 3],
        wanted.inverse_transform(wanted.transform(vectors)),
        atol=1e-6,
    )


def test_shrinkage_is_scikit_learns(cube: xr.Dataset) -> None:
    part = cube.isel(sample=slice(0, 8))
    vectors = content(part, 0)
    with pytest.raises(
        InputError, match=r"vectors are too few for 12 dimensions, which need 60 \(use shrinkage"
    ):
        actkit.Whitener.fit(part, layer=0)
    wanted = LedoitWolf().fit(vectors)
    result = actkit.Whitener.fit(part, layer=0, shrinkage="ledoit-wolf", eps_rel=0)
    assert result.settings["shrunk"] == pytest.approx(wanted.shrinkage_, abs=1e-9)
    # actkit divides by n - 1
    n = len(vectors)
    precision = result.transform_matrix @ result.transform_matrix * n / (n - 1)
    np.testing.assert_allclose(precision, np.linalg.inv(wanted.covariance_), rtol=1e-6, atol=1e-9)
    assert actkit.Whitener.fit(part, layer=0, n_components=2).transform_matrix.shape == (12, 12)


@pytest.mark.parametrize("vectors", ["tokens", "pooled"])
def test_blocks_order_and_languages(
    cube: xr.Dataset, shuffled: xr.Dataset, vectors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("actkit.stats.lazy_blocks.READ", 5000)
        patch.setattr("actkit.stats.lazy_blocks.SLAB", 1000)
        one = actkit.Whitener.fit(
            cube.chunk(sample=7), layer=1, language="arabic", vectors=vectors, n_components=5
        )
    two = actkit.Whitener.fit(shuffled, layer=1, language="arabic", vectors=vectors, n_components=5)
    np.testing.assert_allclose(one.transform_matrix, two.transform_matrix, atol=1e-9)
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-12)
    part = cube.where(cube.language == "arabic", drop=True)
    alone = content(part, 1) if vectors == "tokens" else part.pooled.sel(layer=1).values
    np.testing.assert_allclose(one.mean, alone.mean(axis=0, dtype=np.float64), atol=1e-6)
    assert one.moments.n == len(alone)


@pytest.mark.slow
def test_resume_reads_only_new_samples(cube: xr.Dataset, tmp_path: Path) -> None:
    whole = actkit.Whitener.fit(cube, layer=1)
    part = actkit.Whitener.fit(cube.isel(sample=slice(0, 50)), layer=1)
    assert part.moments.n < whole.moments.n
    resumed = actkit.Whitener.fit(cube, layer=1, resume=part)
    assert resumed.moments.n == whole.moments.n
    np.testing.assert_allclose(resumed.transform_matrix, whole.transform_matrix, atol=1e-9)
    again = actkit.Whitener.fit(cube, layer=1, resume=resumed)
    assert again.moments.n == whole.moments.n
    with pytest.raises(InputError, match=r"resume: was fitted with .*'layer': 1"):
        actkit.Whitener.fit(cube, layer=2, resume=part)
    other = actkit.open_cube(write_cube(tmp_path, n_samples=120, hidden=12))
    with pytest.raises(InputError, match=r"resume: was fitted with .*'cube': "):
        actkit.Whitener.fit(other, layer=1, resume=part)
    with pytest.raises(InputError, match="several samples of the cube have the same number"):
        actkit.Whitener.fit(xr.concat([cube, cube], "sample"), layer=1, resume=part)


def test_save_and_load(cube: xr.Dataset, tmp_path: Path) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, method="pca", n_components=6)
    whitener.save(tmp_path / "w.safetensors")
    loaded = actkit.Whitener.load(tmp_path / "w.safetensors")
    xr.testing.assert_identical(loaded.transform(cube).compute(), whitener.transform(cube).compute())
    assert loaded.settings == whitener.settings
    assert (loaded.rank, loaded.condition) == (whitener.rank, whitener.condition)
    assert (
        actkit.Whitener.fit(cube, layer=1, method="pca", n_components=6, resume=loaded).moments.n
        == whitener.moments.n
    )
    whitener.save(tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz", allow_pickle=False) as arrays:
        assert set(arrays) == {"mean", "transform", "reverse_transform", "n_samples"}
        vectors = content(cube, 1)
        white = (vectors - arrays["mean"]) @ arrays["transform"]
        np.testing.assert_allclose(
            white, whitener.transform(cube).values[cube.token_kind.values == 3], atol=1e-12
        )
        assert int(arrays["n_samples"]) == len(vectors)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    for path, said in (
        ("x.safetensors", "is not a whitener"),
        ("none.safetensors", "is not a whitener"),
        ("w.pkl", "ends in"),
    ):
        with pytest.raises(InputError, match=said):
            actkit.Whitener.load(tmp_path / path)


def test_float32_with_offsets_of_10000_survives(cube: xr.Dataset) -> None:
    far = cube.compute().copy(deep=True)
    far["residual"] = far.residual + 1e4
    white = actkit.Whitener.fit(far, layer=1, eps_rel=0).transform(far)
    np.testing.assert_allclose(np.cov(white.values[far.token_kind.values == 3].T), np.eye(12), atol=1e-8)


BAD = [
    ({"layer": 9}, "layer: the cube lacks 9"),
    ({"language": "klingon"}, "language: the cube has no klingon"),
    ({"method": "cholesky"}, "method: 'cholesky' is unknown"),
    ({"shrinkage": "oas"}, "shrinkage: 'oas' is unknown"),
    ({"n_components": 13}, "n_components: 13 is not between 1 and 12"),
    ({"eps_rel": -1}, "eps_rel: -1 is negative"),
    ({"vectors": "first"}, "vectors: 'first' is not one of tokens, pooled, last"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_invalid_fits_are_errors(cube: xr.Dataset, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        actkit.Whitener.fit(cube, **{"layer": 1, **options})  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_refused(cube: xr.Dataset) -> None:
    broken = cube.compute().copy(deep=True)
    broken["residual"][1, 3, 1, 0] = np.inf
    with pytest.raises(NonfiniteError, match="`residual` contains NaN or Inf values"):
        actkit.Whitener.fit(broken, layer=1)
