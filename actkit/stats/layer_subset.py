"""Compare a statistic on a few layers with the same statistic on all layers."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError, MissingError
from .finiteness import finite_cube
from .selection import free_name

_SUFFIXES = ("few", "missed", "missed_at", "peak", "peak_few")


def layer_subset(
    statistic: Callable[..., xr.Dataset],
    cube: Cube,
    *,
    layers: Sequence[int] = (10, 14, 18, 22),
    **options: Any,
) -> xr.Dataset:
    """Compute a statistic on all layers and on a few, and report what the few layers miss.

    Parameters
    ----------
    statistic
        Such as :func:`actkit.layer_norms` or :func:`actkit.adjacent_cka`.
    cube
        From :func:`actkit.open_cube`.
    layers
        The few layers.
    **options
        Options of the statistic.

    Returns
    -------
    xarray.Dataset
        For each variable ``x`` with the dimension ``layer``: ``x``; ``x_few``, computed from the few layers
        (NaN at others); ``x_missed``, the largest deviation of all layers from linear interpolation between
        the few, and ``x_missed_at``, its layer; ``x_peak`` and ``x_peak_few``, the layers of the largest
        value.

    Raises
    ------
    InputError
        If the cube lacks one of the layers, or fewer than two are given.

    Examples
    --------
    >>> from actkit import layer_norms, open_cube
    >>> from actkit.testing import write_cube
    >>> result = layer_subset(layer_norms, open_cube(write_cube(n_layers=6)), layers=(0, 2, 5))
    >>> result.mean_few.isel(language=0).notnull().values.tolist()
    [True, False, True, False, False, True]
    """
    cube = finite_cube(cube)  # the few layers use the same samples as all layers
    if "layer" not in cube.coords:
        raise MissingError("the cube has no `layer`; keep it when selecting, as cube.sel(layer=[3]) does")
    missing = sorted(set(layers) - set(cube.layer.values.tolist()))
    if missing or len(set(layers)) < 2:
        problem = f"the cube lacks {missing}" if missing else "at least two are needed"
        raise InputError([Fault("layers", problem, f"it has {cube.layer.values.tolist()}")])
    few = np.array(sorted(set(layers)))
    whole, part = statistic(cube, **options), statistic(cube.sel(layer=few), **options)
    group_dim = whole.attrs.get("group_dim")
    if group_dim is not None:
        taken = [f"{name}_{suffix}" for name in whole.data_vars for suffix in _SUFFIXES]
        free_dim = free_name(group_dim, taken)
        whole = whole.rename({group_dim: free_dim}).assign_attrs(group_dim=free_dim)
        part = part.rename({group_dim: free_dim})
    result = xr.Dataset(attrs={**whole.attrs, "few_layers": str(few.tolist())})
    for name, values in whole.data_vars.items():
        if "layer" not in values.dims or "hidden" in values.dims or "layer_2" in values.dims:
            continue
        few_values = part[name].reindex(layer=whole.layer)
        result[str(name)], result[f"{name}_few"] = values, few_values
        if values.dtype == bool:
            continue
        known = (
            values.sel(layer=part.layer).chunk(layer=-1) if values.chunks else values.sel(layer=part.layer)
        )
        interpolated = known.astype(np.float64).interp(layer=whole.layer)
        deviation = abs(values - interpolated)
        result[f"{name}_missed"] = deviation.max("layer")
        for column, peak in (("missed_at", deviation), ("peak", values), ("peak_few", few_values)):
            # a profile that is NaN everywhere has no peak
            filled = peak.fillna(-np.inf)
            layer_of_peak = whole.layer[filled.argmax("layer").compute()].drop_vars("layer")
            result[f"{name}_{column}"] = layer_of_peak.where(peak.notnull().any("layer"))
    return result
