"""Finite values of any magnitude: no statistic overflows or underflows silently."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import actkit
from actkit.errors import NonfiniteError
from actkit.stats.kernels.cka import align, minibatch_cka, top_share, unit_rms, without_top, z_scored
from actkit.stats.kernels.norms import largest
from tests.stats.test_finiteness import ANALYSES

VALUES = ("residual", "pooled", "last", "norm")  # up to 42 in the planted cube; norms up to 60
ALIGNMENTS = [name for name in ANALYSES if "cka" in name or name == "transitions"]
CASES = [
    *[(name, "float16", 2.0**10) for name in ANALYSES],
    *[(name, "float32", 2.0**122) for name in ANALYSES],  # up to 2.2e38
    *[(name, "float32", 2.0**-140) for name in ANALYSES],  # subnormal
    *[(name, "float64", 2.0**332) for name in ALIGNMENTS],
    *[(name, "float64", 2.0**-332) for name in ALIGNMENTS],
]
# what has the unit of the values; the transformation of a whitener has its inverse
WITH_UNIT = {
    "layer_norms": {"mean", "sample_mean", "median", "p5", "p95", "p99", "max", "low", "high", "rms"},
    "layer_updates": {"update_norm", "update_norm_low", "update_norm_high"},
    "massive_activations": {"max", "median"},
    "top_activating": {"value"},
    "Eraser": {"mean"},
    "Whitener": {"mean", "inverse_matrix"},
    "projection": {"points"},
}


def scaled(cube: xr.Dataset, factor: float, dtype: str) -> xr.Dataset:
    values = {name: cube[name].astype(np.float64) * factor for name in VALUES}
    return cube.assign({name: array.astype(dtype) for name, array in values.items()})


def numbers(result: Any) -> dict[str, np.ndarray]:
    """Return the results of a statistic by name."""
    if isinstance(result, xr.Dataset):
        numeric = {str(name): array for name, array in result.data_vars.items() if array.dtype.kind in "bfi"}
        return {name: array.values.astype(np.float64) for name, array in numeric.items()}
    if isinstance(result, actkit.Whitener):
        names = ("mean", "transform_matrix", "inverse_matrix", "rank", "condition")
        return {name: np.asarray(getattr(result, name), dtype=np.float64) for name in names}
    if isinstance(result, pd.DataFrame):
        return {"value": result.value.to_numpy(), "sample": result["sample"].to_numpy()}
    return {"points": np.concatenate([points.dframe()[["first", "second"]] for points in result])}


# the arithmetic of these is that of other cases
ALIKE = ("layer_norms by", "cka of last", "cka of two", "layer_subset", "Whitener of last")


def is_rare(name: str, dtype: str) -> bool:
    """Return whether a case is left to the night."""
    if dtype == "float64":
        return name not in ("cka", "transitions")
    is_even = list(ANALYSES).index(name) % 2 == 0
    return name in ALIKE or is_even != (dtype == "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "factor"),
    [pytest.param(*case, marks=pytest.mark.nightly if is_rare(*case[:2]) else ()) for case in CASES],
)
def test_a_statistic_is_that_of_the_same_values_near_1(
    cube: xr.Dataset, name: str, dtype: str, factor: float
) -> None:
    extreme = scaled(cube.compute(), factor, dtype)
    ordinary = scaled(extreme, 1 / factor, "float64")
    found, wanted = numbers(ANALYSES[name](extreme)), numbers(ANALYSES[name](ordinary))
    has_unit = WITH_UNIT.get(name.removesuffix(" by").removesuffix(" of last"), set())
    for variable, values in wanted.items():
        unit = factor if variable in has_unit else 1 / factor if variable == "transform_matrix" else 1.0
        np.testing.assert_allclose(found[variable] / unit, values, rtol=1e-7, atol=1e-9, err_msg=variable)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
def test_norms_beyond_float32_are_an_error(cube: xr.Dataset) -> None:
    extreme = scaled(cube.compute(), 2.0**125, "float32")
    with pytest.raises(NonfiniteError) as caught:
        actkit.layer_norms(extreme)
    assert str(caught.value) == (
        "`norm` contains NaN or Inf values at layer 0 that `nonfinite` does not count; exclude these samples "
        "with cube.isel(sample=...)"
    )


def test_alignment_of_wide_tokens_does_not_overflow(cube: xr.Dataset) -> None:
    """Repeating dimensions leaves CKA unchanged, although the product of two HSIC values exceeds float64."""
    few = cube.isel(layer=[0, 1], sample=cube.language == "english").compute()
    tiled = few.residual.isel(hidden=np.tile(np.arange(few.sizes["hidden"]), 256))
    wide = few.drop_dims("hidden").assign(residual=tiled * np.float32(2**122))
    found, wanted = (actkit.adjacent_cka(each, vectors="tokens") for each in (wide, few))
    xr.testing.assert_allclose(found, wanted, rtol=1e-9)


def exact_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Return debiased CKA by its definition, computed with 80-bit floats."""

    def hsic(k: np.ndarray, m: np.ndarray) -> np.longdouble:
        n = len(k)
        means = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / np.longdouble(n - 2) * (k @ m).sum()
        return np.longdouble(((k * m).sum() + means) / (n * (n - 3)))

    grams = [vectors @ vectors.T for vectors in (x.astype(np.longdouble), y.astype(np.longdouble))]
    for gram in grams:
        np.fill_diagonal(gram, 0)
    k, m = grams
    return float(hsic(k, m) / np.sqrt(hsic(k, k)) / np.sqrt(hsic(m, m)))


@pytest.mark.parametrize(
    ("dtype", "factors"),
    [
        ("float16", (1e4, 1e-3)),
        ("float32", (7e37, 7e37)),
        ("float32", (7e37, 1e-44)),
        ("float32", (1e-30, 1e-30)),
        ("float64", (1e300, 1e-300)),
        ("float64", (1e307, 1e307)),
    ],
)
def test_alignment_is_that_of_80_bit_numbers(dtype: str, factors: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((2, 12, 5))
    base[1] += base[0]
    vectors = (base * np.array(factors)[:, None, None]).astype(dtype)
    wanted = exact_cka(*vectors)
    found = align(vectors)
    assert found.cka[0, 1] == pytest.approx(wanted, rel=1e-9)
    assert np.isfinite(found.se).all()
    assert np.isfinite(found.participation).all()
    # a single batch of all samples gives the same sum
    assert minibatch_cka(vectors, batch=12)[0, 1] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("change", [z_scored, unit_rms, without_top, top_share])
@pytest.mark.parametrize("power", [-1000, 1000])
def test_dominant_dimensions_are_found_at_any_scale(change: Any, power: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 12, 5))
    factor = 2.0**power if change is without_top else 1.0
    np.testing.assert_array_equal(change(vectors * 2.0**power), change(vectors) * factor)


def test_dimensions_of_other_magnitudes_are_scaled_alike() -> None:
    vectors = np.random.default_rng(0).standard_normal((2, 12, 5))
    np.testing.assert_array_equal(z_scored(vectors * 2.0 ** np.arange(-1000, 1001, 500)), z_scored(vectors))


def test_the_median_of_large_values_is_finite() -> None:
    vectors = np.full((1, 1, 1, 2), 3e38, dtype=np.float32)
    most, median, *_ = largest(vectors, np.ones((1, 1), dtype=bool))
    assert most.item() == median.item() == np.float32(3e38)
