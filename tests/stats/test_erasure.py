"""Eraser: its cubes feed other statistics, a probe of held-out clusters is at chance, files and errors."""

from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError, MissingError
from actkit.stats.kernels.erasure import erasure
from actkit.testing import synthetic

N_LAYERS = 5


def english(cube: xr.Dataset) -> xr.Dataset:
    return cube.isel(sample=(cube.language == "english").values)


def mean_gap(cube: xr.Dataset, name: str = "pooled") -> float:
    """Return the largest difference between the means of the genders in any language and layer."""
    gaps = []
    for language in ("english", "arabic"):
        is_male = (cube.gender == "male").values & (cube.language == language).values
        is_female = (cube.gender == "female").values & (cube.language == language).values
        gaps.append(
            abs(
                cube[name].isel(sample=is_male).mean("sample")
                - cube[name].isel(sample=is_female).mean("sample")
            )
        )
    return float(max(gap.max() for gap in gaps))


def test_means_of_the_groups_are_equal_and_the_rest_is_unchanged(cube: xr.Dataset) -> None:
    eraser = actkit.Eraser.fit(cube, by="gender")
    assert eraser.maps.left.shape == (2, N_LAYERS, 12, 1)
    result = eraser.transform(cube)
    assert dask.is_dask_collection(result.pooled)
    assert result.pooled.dims == cube.pooled.dims
    assert mean_gap(cube) > 2
    assert mean_gap(result) < 1e-12
    for name in ("residual", "last", "norm", "embedding", "text"):
        assert result[name].identical(cube[name]), name
    assert (result.attrs["erased"], result.attrs["erased_variables"]) == ("gender", "pooled")
    assert result.attrs["metadata_sha256"] != cube.attrs["metadata_sha256"]
    # each language has a map of its own
    alone = actkit.Eraser.fit(english(cube), by="gender").transform(english(cube))
    np.testing.assert_allclose(alone.pooled, english(result).pooled, atol=1e-12)


def test_the_mean_of_erased_tokens_is_the_erased_mean(cube: xr.Dataset) -> None:
    eraser = actkit.Eraser.fit(cube, by="gender")
    result = eraser.transform(cube, residual=True).compute()
    is_content = (cube.token_kind == 3).compute()
    means = result.residual.where(is_content).mean("token")
    np.testing.assert_allclose(means, result.pooled, atol=1e-6)  # stored vectors are float32
    assert mean_gap(result) < 1e-12
    assert result.residual.isnull().equals(cube.residual.isnull().compute())
    np.testing.assert_allclose(
        result.norm, np.linalg.norm(result.residual.values, axis=-1), rtol=1e-12, equal_nan=True
    )
    assert result.attrs["erased_variables"] == "residual, pooled, last"
    # norms follow the erased tokens
    before, after = (actkit.layer_norms(each, resamples=5) for each in (cube, result))
    assert float((after["mean"] - before["mean"]).sel(layer=4).max()) < -0.05


def test_last_tokens_have_maps_of_their_own(cube: xr.Dataset) -> None:
    result = actkit.Eraser.fit(cube, by="gender", vectors="last").transform(cube)
    assert mean_gap(result, "last") < 1e-12
    assert mean_gap(result, "pooled") > 2


def test_order_and_chunks_of_samples_change_nothing(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    options = {"by": "gender", "cluster": "image_id", "shrinkage": "ledoit-wolf"}
    first = actkit.Eraser.fit(cube, **options).transform(cube.chunk(sample=7, layer=2, hidden=5))
    second = actkit.Eraser.fit(shuffled, **options).transform(shuffled)
    xr.testing.assert_allclose(
        first.pooled.compute().sortby("sample"), second.pooled.sortby("sample"), atol=1e-10
    )


def test_layers_without_the_component_are_left_alone(cube: xr.Dataset) -> None:
    has = cube.has_residual.compute().copy(data=np.arange(N_LAYERS) != 1)
    part = cube.compute().assign_coords(has_residual=has)
    part["pooled"][1] = np.nan
    eraser = actkit.Eraser.fit(part, by="gender")
    assert eraser.maps.layer.values.tolist() == [0, 2, 3, 4]
    result = eraser.transform(part)
    assert result.pooled.sel(layer=1).isnull().all()
    assert mean_gap(result.sel(layer=[0, 2, 3, 4])) < 1e-12


def gaussian_cube(n_images: int, hidden: int, gap: float, seed: int) -> xr.Dataset:
    """Return a cube of independent normal vectors whose genders differ by a gap in the first dimension."""
    made = synthetic(
        n_layers=1, n_samples=n_images, n_tokens=2, hidden=hidden, languages=("english",), seed=seed
    )
    rng = np.random.default_rng(seed)
    pooled = rng.standard_normal((1, n_images, hidden))
    pooled[0, :, 0] += np.where(made.labels["gender"] == "male", gap, 0)
    text = np.array([f"text {rng.integers(9)}" for _ in range(n_images)], dtype=object)
    return xr.Dataset(
        {"pooled": (("layer", "sample", "hidden"), pooled @ np.linspace(0.5, 2, hidden) ** np.eye(hidden))},
        coords={
            "layer": [0],
            "sample": np.arange(n_images),
            **{name: ("sample", made.labels[name], {"label": True}) for name in ("gender", "image_id")},
            "sample_id": ("sample", made.labels["image_id"]),
            "language": ("sample", np.full(n_images, "english", dtype=object)),
            "text": ("sample", text),
            "n_tokens": ("sample", np.full(n_images, 2)),
        },
        attrs={"first_is_content": True, "ids": "data"},
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, pytest.param(12, marks=pytest.mark.nightly)])
def test_a_probe_of_held_out_clusters_is_at_chance(seeds: int) -> None:
    """Fitted on one half and probed on the other: AUROC 0.5 and a valid p. In-sample, it is below chance."""
    held, within = [], []
    options = {"by": "gender", "seeds": 1, "permutations": 40, "folds": 5}
    for seed in range(seeds):
        cube = gaussian_cube(4000, 4, gap=1.5, seed=seed)
        is_fitted = np.random.default_rng(seed).permutation(4000) < 2000
        first, second = cube.isel(sample=is_fitted), cube.isel(sample=~is_fitted)
        eraser = actkit.Eraser.fit(first, by="gender")
        before = actkit.group_differential(second, **options)
        after = actkit.group_differential(eraser.transform(second), **options)
        assert float(before.auroc.max()) > 0.8
        assert float(before.p.max()) < 0.03
        held.append(float(after.auroc.item()))
        small = cube.isel(sample=slice(100))
        in_sample = actkit.Eraser.fit(small, by="gender").transform(small)
        within.append(float(actkit.group_differential(in_sample, **options).auroc.item()))
    # standard error of the AUROC of 1,000 and 1,000 independent samples
    assert abs(np.mean(held) - 0.5) < 0.004 + 3 * np.sqrt(2001 / (12 * 1000**2) / seeds)
    assert np.mean(within) < 0.4


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [12, pytest.param(200, marks=pytest.mark.nightly)])
@pytest.mark.parametrize(("n", "hidden"), [(200, 10), (600, 60), (60, 90)])
@pytest.mark.parametrize("shrink", [False, True])
def test_what_remains_for_new_samples_is_what_the_notes_say(
    n: int, hidden: int, shrink: bool, seeds: int
) -> None:
    rng = np.random.default_rng(n)
    shift, labels = np.zeros(hidden), np.arange(n) % 2
    shift[:5] = 0.7
    remaining = []
    for _ in range(seeds):
        found = erasure(rng.standard_normal((n, hidden)) + labels[:, None] * shift, labels, shrink=shrink)
        projection = np.eye(hidden) - found.left @ found.right.T
        gap = projection @ shift
        remaining.append(gap @ np.linalg.pinv(projection @ projection.T, rcond=1e-9) @ gap)
    before, chance = shift @ shift, hidden * 4 / n
    wanted = before * chance / (before + chance)
    assert np.mean(remaining) == pytest.approx(wanted, rel=0.15)


def test_save_and_load(cube: xr.Dataset, tmp_path: Path) -> None:
    eraser = actkit.Eraser.fit(cube, by="gender", shrinkage="ledoit-wolf", cluster="image_id")
    eraser.save(tmp_path / "e.safetensors")
    loaded = actkit.Eraser.load(tmp_path / "e.safetensors")
    assert loaded.settings == eraser.settings
    assert (loaded.settings["cluster"], loaded.settings["cluster_origin"]) == ("image_id", "chosen")
    xr.testing.assert_identical(loaded.maps, eraser.maps)
    xr.testing.assert_identical(loaded.transform(cube).compute(), eraser.transform(cube).compute())
    (tmp_path / "x.safetensors").write_bytes(b"nonsense")
    actkit.Whitener.fit(cube, layer=1).save(tmp_path / "w.safetensors")
    for name, message in (
        ("x.safetensors", "is not an eraser"),
        ("w.safetensors", "is not an eraser"),
        ("none.safetensors", "is not an eraser"),
        ("e.npz", "ends in"),
    ):
        with pytest.raises(InputError, match=message):
            actkit.Eraser.load(tmp_path / name)
    with pytest.raises(InputError, match="ends in"):
        eraser.save(tmp_path / "e.npz")


BAD = [
    ({"by": "height"}, "by: the cube has no label `height`"),
    ({"shrinkage": "oas"}, "shrinkage: 'oas' is unknown"),
    ({"vectors": "tokens"}, "vectors: 'tokens' is not one of pooled, last"),
    ({"cluster": "height"}, "cluster: the cube has no label `height`"),
    ({"by": "image_id"}, "english: `image-0000` has 1 samples but needs 10"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_invalid_fits_are_errors(cube: xr.Dataset, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        actkit.Eraser.fit(cube, **{"by": "gender", **options})  # type: ignore[arg-type]


def test_a_language_of_one_class_is_an_error(cube: xr.Dataset) -> None:
    part = cube.isel(sample=((cube.language == "english") | (cube.gender == "male")).values)
    with pytest.raises(InputError, match=r"(?s)cannot erase gender.*arabic: has fewer than two classes"):
        actkit.Eraser.fit(part, by="gender")


def test_cubes_that_were_not_fitted_are_errors(cube: xr.Dataset) -> None:
    eraser = actkit.Eraser.fit(english(cube).sel(layer=[0, 2]), by="gender")
    assert eraser.transform(english(cube).sel(layer=[2])).sizes["layer"] == 1
    with pytest.raises(
        InputError, match=r"(?s)no map was fitted for arabic.*no map was fitted for \[1, 3, 4\]"
    ):
        eraser.transform(cube)
    with pytest.raises(InputError, match="hidden: has length 4, but 12 was fitted"):
        eraser.transform(english(cube).sel(layer=[0, 2]).isel(hidden=slice(4)))
    with pytest.raises(MissingError, match="no `pooled`"):
        eraser.transform(english(cube).sel(layer=[0, 2]).drop_vars("pooled"))
