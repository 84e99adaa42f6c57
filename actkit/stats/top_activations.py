"""Find the tokens with the largest activation along a dimension or direction, or of a sparse feature."""

import dask.base
import numpy as np
import pandas as pd
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from ..schema import TokenKind
from . import selection
from .finiteness import check_values, finite_cube
from .sparse_features import require_features
from .token_selection import select_tokens

_CONTEXT = 8  # number of tokens shown before and after
_AT_ONCE = 64  # number of samples per block
_EXACTLY_ONE = Fault("hidden, direction, feature", "exactly one of them is required")
_COLUMNS = ("value", "sample", "language", "sample_id", "position", "token", "context", "text")


def top_activating(
    cube: Cube,
    *,
    layer: int,
    hidden: int | None = None,
    direction: np.ndarray | xr.DataArray | None = None,
    feature: int | None = None,
    count: int = 20,
    lowest: bool = False,
    tokens: selection.TokenSelection = "content",
) -> pd.DataFrame:
    """Find the tokens with the largest activation along a dimension or direction, or of a sparse feature.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`; for a feature, from :func:`actkit.encode`.
    layer
        The block.
    hidden, direction, feature
        One of: the index of a dimension of the residual stream; a vector with dims ``(hidden,)``, which is
        scaled to length 1; the index of a feature of a sparse autoencoder, of which only tokens with the
        feature are returned.
    count
        Number of tokens to return.
    lowest
        Whether to return the smallest values instead.
    tokens
        Tokens included, as for :func:`actkit.layer_norms`.

    Returns
    -------
    pandas.DataFrame
        One row per token, the largest first: ``value``, ``sample``, ``language``, ``sample_id``, ``position``
        on the token axis, ``token`` (its characters), ``context`` with the token between ⟦ and ⟧, ``text``,
        and the labels; a label with the name of another column is called ``<name>_label``.

    Raises
    ------
    InputError, MissingError
        If the cube lacks the layer, the dimension or `residual`, or the features.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> table = top_activating(open_cube(write_cube()), layer=1, hidden=3, count=2)
    >>> table.value.is_monotonic_decreasing
    True
    """
    selection.check_counts(count=count)
    cube = select_tokens(finite_cube(cube), tokens)
    selection.require(cube, "sample_id", "text", "token_kind")
    if feature is None:
        selection.require(cube, "residual")
        available = selection.captured(cube)
        values = _projections(available, layer, hidden, direction)
        mask = selection.token_mask(available).values
        check_values(values[mask], "residual", f" at layer {layer}")
    else:
        available = cube
        values = _feature_values(available, layer, feature, hidden is None and direction is None)
        mask = selection.token_mask(available).values
        check_values(values[mask], "feature_value", f" at layer {layer}")
        mask &= values != 0
    values = np.where(mask, values, -np.inf if not lowest else np.inf)
    order = np.argsort(values if lowest else -values, axis=None, kind="stable")[:count]
    order = order[np.isfinite(values.reshape(-1)[order])]
    samples, positions = np.unravel_index(order, values.shape)
    rows = [
        _row(available.isel(sample=sample), int(position), float(values[sample, position]))
        for sample, position in zip(samples.tolist(), positions.tolist(), strict=True)
    ]
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    for name in selection.label_names(available):
        table[selection.free_name(name, _COLUMNS)] = selection.column(available, name, "label").series(
            samples
        )
    return table


def _projections(
    cube: xr.Dataset, layer: int, hidden: int | None, direction: np.ndarray | xr.DataArray | None
) -> np.ndarray:
    """Return the activations along a dimension or direction, dims ``(sample, token)``."""
    width, faults = cube.sizes["hidden"], _layer_faults(cube, layer)
    if (hidden is None) == (direction is None):
        faults.append(_EXACTLY_ONE)
    elif hidden is not None and not 0 <= hidden < width:
        faults.append(Fault("hidden", f"{hidden} is not a dimension of the cube", f"0 to {width - 1}"))
    vector = np.zeros(width)
    if direction is not None:
        vector = np.asarray(direction, dtype=np.float64)
        if vector.shape != (width,) or not np.linalg.norm(vector) > 0:
            faults.append(
                Fault("direction", f"has shape {vector.shape}", f"give a nonzero vector of length {width}")
            )
    if faults:
        raise InputError(faults, "cannot find tokens")
    if hidden is not None:
        vector[hidden] = 1
    residual = _in_blocks(cube.residual.sel(layer=layer).transpose("sample", "token", "hidden"))
    products = residual.data.astype(np.float64) @ (vector / np.linalg.norm(vector))
    return np.asarray(products.compute())


def _feature_values(cube: xr.Dataset, layer: int, feature: int, is_alone: bool) -> np.ndarray:
    """Return the values of a feature, 0 where it is not active, dims ``(sample, token)``."""
    require_features(cube)
    n_features, faults = int(cube.attrs["n_features"]), _layer_faults(cube, layer)
    if not is_alone:
        faults.append(_EXACTLY_ONE)
    if not 0 <= feature < n_features:
        faults.append(Fault("feature", f"the cube lacks {feature}", f"0 to {n_features - 1}"))
    if faults:
        raise InputError(faults, "cannot find tokens")
    index, value = (
        _in_blocks(cube[name].sel(layer=layer).transpose("sample", "token", "k"))
        for name in ("feature_index", "feature_value")
    )
    return np.asarray(value.where(index == feature, 0).sum("k", skipna=False).compute())


def _layer_faults(cube: xr.Dataset, layer: int) -> list[Fault]:
    if layer in cube.layer.values:
        return []
    return [Fault("layer", f"the cube lacks {layer}", f"it has {cube.layer.values.tolist()}")]


def _in_blocks(array: xr.DataArray) -> xr.DataArray:
    return array if dask.base.is_dask_collection(array) else array.chunk(sample=_AT_ONCE)


def _row(sample: xr.Dataset, position: int, value: float) -> list[object]:
    token = context = ""
    if "token_text" in sample.coords:
        kinds = sample.token_kind.values
        texts = [
            str(text) if kind != TokenKind.PAD else ""
            for text, kind in zip(sample.token_text.values, kinds, strict=True)
        ]
        token = texts[position]
        before, after = (
            texts[max(position - _CONTEXT, 0) : position],
            texts[position + 1 : position + 1 + _CONTEXT],
        )
        context = f"{''.join(before)}⟦{token}⟧{''.join(after)}"
    identity = [sample[name].item() for name in ("sample", "language", "sample_id")]
    return [
        value,
        *identity,
        sample.token.values[position].item(),
        token,
        context,
        sample.text.item(),
    ]
