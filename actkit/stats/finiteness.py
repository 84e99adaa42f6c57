"""Exclude samples with NaN or Inf values from every analysis, at all layers."""

import json
import warnings
from functools import partial

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube
from ..errors import NonfiniteError
from ..layer_spec import describe


def finite_cube(cube: Cube) -> xr.Dataset:
    """Return the samples of a cube whose values are finite at all of its layers.

    Every statistic calls this first. It reads only `nonfinite`, the counts recorded during capture. Values
    that a run with ``on_nonfinite="zero"`` set to 0 count as finite.

    Parameters
    ----------
    cube
        As for :func:`~actkit.canonical.as_cube`.

    Returns
    -------
    xarray.Dataset
        The canonical form of the cube, with the finite samples.

    Raises
    ------
    NonfiniteError
        If no sample remains.

    Warns
    -----
    UserWarning
        If samples are excluded; the warning gives their number and the affected layers.
    """
    whole = as_cube(cube)
    if "nonfinite" not in whole or set(whole.nonfinite.dims) != {"layer", "sample"}:
        return whole
    counts = whole.nonfinite.transpose("layer", "sample").values
    is_excluded, is_affected = ~finite_samples(counts, _on_nonfinite(whole)), (counts > 0).any(axis=1)
    if not is_excluded.any():
        return whole
    layers = whole.layer.values if "layer" in whole.coords else np.arange(len(is_affected))
    problem = f"NaN or Inf values at layers {describe(layers[is_affected].tolist())}"
    remedy = "extract it again in bfloat16 or float32"
    if not is_affected.all():
        remedy = f"cube.sel(layer={layers[~is_affected].tolist()}) keeps all samples"
    if is_excluded.all():
        raise NonfiniteError(f"all {len(is_excluded):,} samples contain {problem}; {remedy}")
    warnings.warn(
        f"{is_excluded.sum():,} of {len(is_excluded):,} samples contain {problem} and are excluded; {remedy}",
        stacklevel=3,
    )
    return whole.isel(sample=np.flatnonzero(~is_excluded))


def finite_samples(nonfinite: np.ndarray, on_nonfinite: str) -> np.ndarray:
    """Return which samples are finite at all layers, dims ``(sample,)``.

    Parameters
    ----------
    nonfinite
        Number of non-finite values, dims ``(layer, sample)``.
    on_nonfinite
        The run's option of that name; with ``zero``, all values are finite.
    """
    if on_nonfinite == "zero":
        return np.ones(nonfinite.shape[1], dtype=bool)
    return np.asarray((nonfinite <= 0).all(axis=0))


def checked(array: xr.DataArray, mask: xr.DataArray | None = None) -> xr.DataArray:
    """Return an array that raises an error if an included value is NaN or Inf.

    This covers values that `nonfinite` does not count, such as those of a modified cube. A lazy array is
    checked when it is computed.

    Parameters
    ----------
    array
        Any dims.
    mask
        Boolean: the values included, with some of the dims of the array; all by default.

    Raises
    ------
    NonfiniteError
        If an included value is NaN or Inf; the message names the array and a layer.
    """
    layers = array.layer.variable if "layer" in array.coords else xr.Variable((), "?")
    included = xr.Variable((), True) if mask is None else mask.variable
    result: xr.DataArray = xr.apply_ufunc(
        partial(_check, name=str(array.name)),
        array,
        layers,
        included,
        dask="parallelized",
        output_dtypes=[array.dtype],
        keep_attrs="override",
    )
    return result.transpose(*array.dims)


def check_values(values: np.ndarray, name: str, where: str = "") -> None:
    """Raise an error if a value is NaN or Inf.

    Parameters
    ----------
    values
        Any dims.
    name
        Name of the variable.
    where
        Description of the layer, as ``" at layer 3"``.

    Raises
    ------
    NonfiniteError
        If a value is NaN or Inf; the message names the variable.
    """
    if not np.isfinite(values).all():
        raise NonfiniteError(
            f"`{name}` contains NaN or Inf values{where} that `nonfinite` does not count; exclude "
            "these samples with cube.isel(sample=...)"
        )


def _check(values: np.ndarray, layers: np.ndarray, included: np.ndarray, *, name: str) -> np.ndarray:
    bad = ~np.isfinite(values) & included
    if bad.any():
        layer = np.broadcast_to(layers, bad.shape)[bad][0]
        check_values(values[bad], name, f" at layer {layer}")
    return values


def _on_nonfinite(cube: xr.Dataset) -> str:
    """Return the run's option ``on_nonfinite``; "" if the attributes lack it."""
    try:
        options = json.loads(str(cube.attrs.get("options", "{}")))
    except ValueError:
        return ""
    return str(options.get("on_nonfinite", "")) if isinstance(options, dict) else ""
