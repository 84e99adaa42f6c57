"""Find the tokens with the largest activation along a dimension or direction."""

import dask.base
import numpy as np
import pandas as pd
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from ..schema import TokenKind
from . import selection
from .finiteness import check_values, finite_cube
from .token_selection import select_tokens

_CONTEXT = 8  # number of tokens shown before and after
_AT_ONCE = 64  # number of samples per block
_COLUMNS = ("value", "sample", "language", "sample_id", "position", "token", "context", "text")


def top_activating(
    cube: Cube,
    *,
    layer: int,
    hidden: int | None = None,
    direction: np.ndarray | xr.DataArray | None = None,
    count: int = 20,
    lowest: bool = False,
    tokens: selection.TokenSelection = "content",
) -> pd.DataFrame:
    """Find the tokens with the largest activation along a dimension of the residual stream or a direction.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    layer
        The block.
    hidden, direction
        Either the index of a dimension, or a vector with dims ``(hidden,)``, which is scaled to length 1.
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
        If the cube lacks the layer, the dimension or `residual`.

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
    selection.require(cube, "residual", "sample_id", "text", "token_kind")
    available = selection.captured(cube)
    weights = _weights(available, layer, hidden, direction)
    mask = selection.token_mask(available).values
    residual = available.residual.sel(layer=layer).transpose("sample", "token", "hidden")
    if not dask.base.is_dask_collection(residual):
        residual = residual.chunk(sample=_AT_ONCE)
    values = (residual.data.astype(np.float64) @ weights).compute()
    check_values(values[mask], "residual", f" at layer {layer}")
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


def _weights(
    cube: xr.Dataset, layer: int, hidden: int | None, direction: np.ndarray | xr.DataArray | None
) -> np.ndarray:
    width, faults = cube.sizes["hidden"], []
    if layer not in cube.layer.values:
        faults.append(Fault("layer", f"the cube lacks {layer}", f"it has {cube.layer.values.tolist()}"))
    if (hidden is None) == (direction is None):
        faults.append(Fault("hidden, direction", "exactly one of them is required"))
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
    return np.asarray(vector / np.linalg.norm(vector))


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
