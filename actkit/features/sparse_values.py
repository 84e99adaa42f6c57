"""Values of sparse cubes: as dense vectors, and how much of the whole they are."""

import numpy as np
import xarray as xr

from ..canonical import Cube, as_cube, require
from ..errors import Fault, InputError, MissingError
from ..schema import FEATURE_INDEX, FEATURE_VALUE, SPARSABLE, WIDTH, K, sparse_names
from ..stats import selection
from ..stats.token_selection import select_tokens

_FEATURES = "features"


def dense_vectors(cube: Cube, *, component: str | None = None) -> xr.DataArray:
    """Return the entries of a sparse cube as dense vectors, 0 where there is no entry.

    Parameters
    ----------
    cube
        From :func:`actkit.encode`, or of an extraction with `sparse`, or a part of either.
    component
        ``features``, or the component of which the largest entries were kept; by default the one that the
        cube has.

    Returns
    -------
    xarray.DataArray
        Dims ``([layer,] sample, token, feature)`` or ``([layer,] sample, token, hidden)``, lazy as the cube.
        Positions without a token are NaN, but 0 for features.

    Raises
    ------
    InputError, MissingError
        If the cube has no such entries, or they lack their number along the dense dimension.

    Examples
    --------
    >>> import actkit
    >>> from actkit.testing import write_features
    >>> features = actkit.open_cube(write_features(n_features=64))
    >>> dense_vectors(features.sel(layer=[1])).sizes["feature"]
    64
    """
    whole = as_cube(cube)
    index, value = _names(whole, component)
    is_features = value == FEATURE_VALUE
    length = whole.attrs.get("n_features" if is_features else WIDTH, whole.sizes.get("hidden"))
    if length is None:
        raise MissingError(
            "the cube lacks the attribute that gives the length of dense vectors; restore it with "
            "cube.assign_attrs(original.attrs)"
        )
    dense: xr.DataArray = xr.apply_ufunc(
        lambda indices, values: scatter(indices, values, int(length)),
        whole[index],
        whole[value],
        input_core_dims=[[K], [K]],
        output_core_dims=[["feature" if is_features else "hidden"]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"feature" if is_features else "hidden": int(length)}},
    )
    return dense.rename(_FEATURES if is_features else value.removesuffix("_value"))


def scatter(index: np.ndarray, value: np.ndarray, length: int) -> np.ndarray:
    """Return vectors with the given entries, and 0 elsewhere.

    Parameters
    ----------
    index, value
        Indices and values, dims ``(…, k)``; entries of value 0 have any index.
    length
        Length of the vectors.

    Returns
    -------
    numpy.ndarray
        float32, dims ``(…, length)``; NaN throughout where all values are NaN.

    Examples
    --------
    >>> scatter(np.array([[2, 0]]), np.array([[1.5, 0.0]]), 3).tolist()
    [[0.0, 0.0, 1.5]]
    """
    rows = np.zeros((value[..., 0].size, length), dtype=np.float32)
    flat_index, flat_value = (array.reshape(len(rows), array.shape[-1]) for array in (index, value))
    row, entry = np.nonzero(flat_value)  # NaN is not 0
    rows[row, flat_index[row, entry]] = flat_value[row, entry]
    rows[np.isnan(flat_value).all(axis=1)] = np.nan
    return rows.reshape(*value.shape[:-1], length)


def cut_share(cube: Cube, *, tokens: selection.TokenSelection = "content") -> xr.DataArray:
    """Return the share of the activation of features that `top` cut off, of each layer.

    Parameters
    ----------
    cube
        From :func:`actkit.encode`.
    tokens
        Tokens to include, as for :func:`actkit.layer_norms`.

    Returns
    -------
    xarray.DataArray
        Dims ``(layer,)``: 1 − (sum of the values kept) / (sum of the values of all active features). It is 0
        if all are kept, and NaN if no feature is active.

    Examples
    --------
    >>> import actkit
    >>> from actkit.testing import write_features
    >>> cut_share(actkit.open_cube(write_features())).round(6).values.tolist()
    [0.0, 0.0, 0.0]
    """
    whole = as_cube(cube)
    require(whole, FEATURE_VALUE, "feature_sum")
    mask = selection.token_mask(select_tokens(whole, tokens))
    kept = whole[FEATURE_VALUE].astype(np.float64).sum(K).where(mask, 0.0).sum(["sample", "token"])
    total = whole["feature_sum"].astype(np.float64).where(mask, 0.0).sum(["sample", "token"])
    share: xr.DataArray = (1 - kept / total.where(total > 0)).compute()
    # float32 sums of values that are all kept differ in the last bits
    return share.where(abs(share) > 1e-6, abs(0.0 * share)).rename("cut_share")


def _names(cube: xr.Dataset, component: str | None) -> tuple[str, str]:
    """Return the names of the indices and values of a component, by default of the only one."""
    every = {_FEATURES: (FEATURE_INDEX, FEATURE_VALUE), **{name: sparse_names(name) for name in SPARSABLE}}
    held = [name for name, (index, value) in every.items() if index in cube and value in cube]
    if component is not None and component not in held:
        hint = f"one of {', '.join(held)}" if held else "encode it, or extract it with `sparse`"
        raise InputError([Fault("component", f"the cube has no entries of {component!r}", hint)])
    if not held:
        raise MissingError(
            "the cube has no entries; it comes from actkit.encode, or an extraction with `sparse`"
        )
    if component is None and len(held) > 1 and _FEATURES not in held:
        raise InputError([Fault("component", "the cube has several", f"one of {', '.join(held)}")])
    return every[component or held[0]]
