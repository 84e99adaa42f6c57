"""The tokens at which a dimension, or a direction, is largest."""

import dask.base
import numpy as np
import pandas as pd
import xarray as xr

from ..errors import Fault, InputError
from ..schema import TokenKind
from . import parts

_CONTEXT = 8  # tokens around the one that is shown
_AT_ONCE = 64


def top_activating(
    cube: xr.Dataset,
    *,
    layer: int,
    hidden: int | None = None,
    direction: np.ndarray | xr.DataArray | None = None,
    count: int = 20,
    lowest: bool = False,
    tokens: str = "content",
) -> pd.DataFrame:
    """Find the tokens at which a dimension of the residual stream, or a direction, is largest.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    layer
        The block.
    hidden, direction
        A dimension, or a vector with dims ``(hidden,)``, which is scaled to length 1; one of them.
    count
        How many tokens.
    lowest
        Whether to find the smallest values instead.
    tokens
        Which count, as for :func:`actkit.layer_norms`.

    Returns
    -------
    pandas.DataFrame
        A row a token, the largest first: ``value``, ``sample``, ``language``, ``sample_id``, ``position`` on
        the
        token axis, ``token`` (its characters), ``context`` with the token between ⟦ and ⟧, ``text``, and the
        labels.

    Raises
    ------
    InputError, MissingError
        Where the cube has no such layer or dimension, or lacks `residual`.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> found = top_activating(open_cube(write_cube()), layer=1, hidden=3, count=2)
    >>> found.value.is_monotonic_decreasing
    True
    """
    parts.require(cube, "residual")
    own = parts.captured(cube)
    weights = _weights(own, layer, hidden, direction)
    mask = parts.token_mask(own, tokens).values
    residual = own.residual.sel(layer=layer).transpose("sample", "token", "hidden")
    if not dask.base.is_dask_collection(residual):
        residual = residual.chunk(sample=_AT_ONCE)
    values = (residual.data.astype(np.float64) @ weights).compute()
    values = np.where(mask, values, -np.inf if not lowest else np.inf)
    order = np.argsort(values if lowest else -values, axis=None, kind="stable")[:count]
    order = order[np.isfinite(values.reshape(-1)[order])]
    samples, places = np.unravel_index(order, values.shape)
    labels = parts.label_names(own)
    rows = [
        _row(own.isel(sample=sample), int(place), float(values[sample, place]), labels)
        for sample, place in zip(samples.tolist(), places.tolist(), strict=True)
    ]
    columns = ["value", "sample", "language", "sample_id", "position", "token", "context", "text", *labels]
    return pd.DataFrame(rows, columns=columns)


def _weights(
    cube: xr.Dataset, layer: int, hidden: int | None, direction: np.ndarray | xr.DataArray | None
) -> np.ndarray:
    width, faults = cube.sizes["hidden"], []
    if layer not in cube.layer.values:
        faults.append(Fault("layer", f"the cube lacks {layer}", f"it has {cube.layer.values.tolist()}"))
    if (hidden is None) == (direction is None):
        faults.append(Fault("hidden, direction", "one of them is needed, and one alone"))
    elif hidden is not None and not 0 <= hidden < width:
        faults.append(Fault("hidden", f"{hidden} is none of its dimensions", f"0 to {width - 1}"))
    vector = np.zeros(width)
    if direction is not None:
        vector = np.asarray(direction, dtype=np.float64)
        if vector.shape != (width,) or not np.linalg.norm(vector) > 0:
            faults.append(
                Fault("direction", f"has shape {vector.shape}", f"a vector of {width} that is not 0")
            )
    if faults:
        raise InputError(faults, "cannot look for tokens")
    if hidden is not None:
        vector[hidden] = 1
    return np.asarray(vector / np.linalg.norm(vector))


def _row(sample: xr.Dataset, place: int, value: float, labels: list[str]) -> list[object]:
    token = context = ""
    if "token_text" in sample.coords:
        kinds = sample.token_kind.values
        texts = [
            str(text) if kind != TokenKind.PAD else ""
            for text, kind in zip(sample.token_text.values, kinds, strict=True)
        ]
        token = texts[place]
        before, after = texts[max(place - _CONTEXT, 0) : place], texts[place + 1 : place + 1 + _CONTEXT]
        context = f"{''.join(before)}⟦{token}⟧{''.join(after)}"
    known = [sample[name].item() for name in ("sample", "language", "sample_id")]
    return [
        value,
        *known,
        place,
        token,
        context,
        sample.text.item(),
        *(sample[name].item() for name in labels),
    ]
