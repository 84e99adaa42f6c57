"""What a few layers would have shown, beside all of them."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ..errors import Fault, InputError


def multi_resolution(
    statistic: Callable[..., xr.Dataset],
    cube: xr.Dataset,
    *,
    layers: Sequence[int] = (10, 14, 18, 22),
    **options: Any,
) -> xr.Dataset:
    """Compute a statistic of all layers and of a few, and say what the few missed.

    Parameters
    ----------
    statistic
        Such as :func:`actkit.layer_norms` or :func:`actkit.adjacent_cka`.
    cube
        From :func:`actkit.open_cube`.
    layers
        The few.
    **options
        Of the statistic.

    Returns
    -------
    xarray.Dataset
        Of each variable ``x`` with a dimension ``layer``: ``x``; ``x_few``, computed from the few alone (NaN
        at other layers); ``x_missed``, by how much all of them differ from a straight line between the few,
        at most, and ``x_missed_at``, the layer where that is; ``x_peak`` and ``x_peak_few``, the layers of
        the largest value.

    Raises
    ------
    InputError
        Where the cube lacks one of the layers, or there are fewer than two.

    Examples
    --------
    >>> from actkit import layer_norms, open_cube
    >>> from actkit.testing import write_cube
    >>> found = multi_resolution(layer_norms, open_cube(write_cube(n_layers=6)), layers=(0, 2, 5))
    >>> found.mean_few.isel(language=0).notnull().values.tolist()
    [True, False, True, False, False, True]
    """
    missing = sorted(set(layers) - set(cube.layer.values.tolist()))
    if missing or len(set(layers)) < 2:
        what = f"the cube lacks {missing}" if missing else "two at least are needed"
        raise InputError([Fault("layers", what, f"it has {cube.layer.values.tolist()}")])
    few = np.array(sorted(set(layers)))
    whole, part = statistic(cube, **options), statistic(cube.sel(layer=few), **options)
    result = xr.Dataset(attrs={**whole.attrs, "few_layers": str(few.tolist())})
    for name, values in whole.data_vars.items():
        if "layer" not in values.dims or "hidden" in values.dims or "layer_2" in values.dims:
            continue
        own = part[name].reindex(layer=whole.layer)
        result[str(name)], result[f"{name}_few"] = values, own
        if values.dtype == bool:
            continue
        known = (
            values.sel(layer=part.layer).chunk(layer=-1) if values.chunks else values.sel(layer=part.layer)
        )
        line = known.astype(np.float64).interp(layer=whole.layer)
        gap = abs(values - line)
        result[f"{name}_missed"] = gap.max("layer")
        for what, peak in (("missed_at", gap), ("peak", values), ("peak_few", own)):
            # one that is NaN everywhere has none
            filled = peak.fillna(-np.inf)
            found = whole.layer[filled.argmax("layer").compute()].drop_vars("layer")
            result[f"{name}_{what}"] = found.where(peak.notnull().any("layer"))
    return result
