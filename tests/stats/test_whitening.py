"""Whitener: against scikit-learn, there and back, merged, resumed, saved, refused."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA

import actkit
from actkit.errors import InputError


def content(cube: xr.Dataset, layer: int) -> np.ndarray:
    mask = cube.token_kind.values == 3
    return cube.residual.sel(layer=layer).values[mask].astype(np.float64)


def test_what_it_gives_has_mean_0_and_covariance_1(cube: xr.Dataset) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, eps_rel=0)
    white = whitener.transform(cube)
    assert dask.is_dask_collection(white)
    assert white.dims == ("sample", "token", "hidden")
    own = white.values[cube.token_kind.values == 3]
    np.testing.assert_allclose(own.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(own.T), np.eye(12), atol=1e-9)
    assert whitener.rank == 12
    # of all whitening maps, ZCA stays closest: it is symmetric and positive
    np.testing.assert_allclose(whitener.transform_matrix, whitener.transform_matrix.T, atol=1e-12)
    assert (np.linalg.eigvalsh(whitener.transform_matrix) > 0).all()


@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize("eps_rel", [0.0, 1e-2])
def test_there_and_back_is_exact(cube: xr.Dataset, method: str, eps_rel: float) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, method=method, eps_rel=eps_rel)
    back = whitener.inverse(whitener.transform(cube))
    np.testing.assert_allclose(back, cube.residual.sel(layer=1), rtol=1e-9, atol=1e-9)


def test_pca_is_scikit_learns(cube: xr.Dataset) -> None:
    vectors = content(cube, 2)
    wanted = PCA(4, whiten=True, svd_solver="full").fit(vectors)
    whitener = actkit.Whitener.fit(cube, layer=2, method="pca", components=4, eps_rel=0)
    found = whitener.transform(cube)
    assert found.dims == ("sample", "token", "component")
    own = found.values[cube.token_kind.values == 3]
    signs = np.sign((own * wanted.transform(vectors)).sum(axis=0))
    np.testing.assert_allclose(own * signs, wanted.transform(vectors), atol=1e-6)
    np.testing.assert_allclose(
        whitener.inverse(found).values[cube.token_kind.values == 3],
        wanted.inverse_transform(wanted.transform(vectors)),
        atol=1e-6,
    )


def test_shrinkage_is_scikit_learns(cube: xr.Dataset) -> None:
    part = cube.isel(sample=slice(0, 8))
    vectors = content(part, 0)
    with pytest.raises(
        InputError, match=r"vectors are too few for 12 dimensions; 60 would do \(ask for shrinkage"
    ):
        actkit.Whitener.fit(part, layer=0)
    wanted = LedoitWolf().fit(vectors)
    found = actkit.Whitener.fit(part, layer=0, shrinkage="ledoit-wolf", eps_rel=0)
    assert found.settings["shrunk"] == pytest.approx(wanted.shrinkage_, abs=1e-9)
    # ours divides by n - 1
    n = len(vectors)
    precision = found.transform_matrix @ found.transform_matrix * n / (n - 1)
    np.testing.assert_allclose(precision, np.linalg.inv(wanted.covariance_), rtol=1e-6, atol=1e-9)
    assert actkit.Whitener.fit(part, layer=0, components=2).transform_matrix.shape == (12, 12)


@pytest.mark.parametrize("values", ["tokens", "pooled"])
def test_blocks_order_and_languages(
    cube: xr.Dataset, shuffled: xr.Dataset, values: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("actkit.stats.blocks.READ", 5000)
        patch.setattr("actkit.stats.blocks.SLAB", 1000)
        one = actkit.Whitener.fit(
            cube.chunk(sample=7), layer=1, language="arabic", values=values, components=5
        )
    two = actkit.Whitener.fit(shuffled, layer=1, language="arabic", values=values, components=5)
    np.testing.assert_allclose(one.transform_matrix, two.transform_matrix, atol=1e-9)
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-12)
    part = cube.where(cube.language == "arabic", drop=True)
    alone = content(part, 1) if values == "tokens" else part.pooled.sel(layer=1).values
    np.testing.assert_allclose(one.mean, alone.mean(axis=0, dtype=np.float64), atol=1e-6)
    assert one.moments.n == len(alone)


def test_it_goes_on_with_what_it_has_not_seen(cube: xr.Dataset) -> None:
    whole = actkit.Whitener.fit(cube, layer=1)
    part = actkit.Whitener.fit(cube.isel(sample=slice(0, 50)), layer=1)
    assert part.moments.n < whole.moments.n
    resumed = actkit.Whitener.fit(cube, layer=1, resume=part)
    assert resumed.moments.n == whole.moments.n
    np.testing.assert_allclose(resumed.transform_matrix, whole.transform_matrix, atol=1e-9)
    again = actkit.Whitener.fit(cube, layer=1, resume=resumed)
    assert again.moments.n == whole.moments.n
    with pytest.raises(InputError, match=r"resume: was fitted to .*'layer': 1"):
        actkit.Whitener.fit(cube, layer=2, resume=part)


def test_it_is_kept_in_a_file(cube: xr.Dataset, tmp_path: Path) -> None:
    whitener = actkit.Whitener.fit(cube, layer=1, method="pca", components=6)
    whitener.save(tmp_path / "w.safetensors")
    loaded = actkit.Whitener.load(tmp_path / "w.safetensors")
    xr.testing.assert_identical(loaded.transform(cube).compute(), whitener.transform(cube).compute())
    assert loaded.settings == whitener.settings
    assert (loaded.rank, loaded.condition) == (whitener.rank, whitener.condition)
    assert (
        actkit.Whitener.fit(cube, layer=1, method="pca", components=6, resume=loaded).moments.n
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
        ("x.safetensors", "is no whitener"),
        ("none.safetensors", "is no whitener"),
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
    ({"components": 13}, "components: 13 is not between 1 and 12"),
    ({"eps_rel": -1}, "eps_rel: -1 is negative"),
    ({"values": "first"}, "values: 'first' is not one of tokens, pooled, last"),
]


@pytest.mark.parametrize(("options", "said"), BAD)
def test_what_cannot_be_fitted(cube: xr.Dataset, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        actkit.Whitener.fit(cube, **{"layer": 1, **options})  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_refused(cube: xr.Dataset) -> None:
    broken = cube.compute().copy(deep=True)
    broken["residual"][1, 3, 1, 0] = np.inf
    with pytest.raises(InputError, match="not finite"), np.errstate(invalid="ignore"):
        actkit.Whitener.fit(broken, layer=1)
