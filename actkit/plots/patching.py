"""Activation patching as a heat map of layer by token, with an unrelated prompt as control."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from .style import RIGHT_TO_LEFT, side_by_side, styled

_MOST_TOKENS = 30
_LONGEST = 12  # characters of a label
_CELL = (30, 16)  # pixels
_SOURCES = {"twin": "from the twin", "unrelated": "control: from an unrelated prompt"}


def patching(result: xr.Dataset) -> Any:
    """Plot the effect of patching each token at each layer, for one pair of twins.

    Parameters
    ----------
    result
        From :func:`actkit.patch`, of one pair: ``result.isel(sample=0)``.

    Returns
    -------
    holoviews.Layout
        For each component, a heat map of the normalised effect with the twin as source, and one with the
        unrelated prompt, on the same colour scale. Columns are the last 30 tokens that were patched, from
        right to left for languages written that way.

    Raises
    ------
    InputError
        If the result has several pairs, or the effect of the pair is undefined.
    """
    if "sample" in result.dims:
        what = f"has {result.sizes['sample']} pairs"
        raise InputError([Fault("result", what, "select one, such as result.isel(sample=0)")])
    table = result.compute()
    is_patched = table.effect.sel(source="twin").notnull().any(["component", "layer"]).values
    tokens = np.flatnonzero(is_patched)[-_MOST_TOKENS:]
    if not len(tokens):
        hint = "choose a pair whose `effect` is not NaN"
        raise InputError([Fault("result", "its twins hardly differ in the metric", hint)])
    table = table.isel(token=tokens)
    limit = max(1.0, float(abs(table.effect).max()))
    return side_by_side(
        [
            _map(table.sel(source=source, component=component), f"{component} {label}", limit)
            for component in table.component.values.tolist()
            for source, label in _SOURCES.items()
        ]
    )


def _map(table: xr.Dataset, title: str, limit: float) -> Any:
    columns, rows = np.arange(table.sizes["token"]), np.arange(table.sizes["layer"])
    effect = table.effect.transpose("layer", "token").values
    mesh = hv.QuadMesh((columns, rows, effect), ["token", "layer"], ["effect"])
    names = table.token_text.values if "token_text" in table.coords else columns.astype(str)
    language = str(table.language.item()) if "language" in table.coords else ""
    width, height = _CELL[0] * max(len(columns), 6), _CELL[1] * max(len(rows), 10)
    step = 1 + len(rows) // 16
    layers = list(enumerate(table.layer.values.tolist()))[::step]
    return styled(
        mesh,
        cmap="RdBu_r",
        clim=(-limit, limit),
        colorbar=True,
        title=title,
        xlabel="patched token",
        ylabel="layer",
        xticks=[(at, _shown(text)) for at, text in enumerate(names)],
        yticks=[(at, str(layer)) for at, layer in layers],
        xrotation=60,
        invert_xaxis=language.lower() in RIGHT_TO_LEFT,
        bokeh={
            "tools": ["hover"],
            "frame_width": width,
            "frame_height": height,
            "toolbar": "above",
            "clabel": "share of the twins' difference",
        },
        mpl={"aspect": width / height},
    )


def _shown(text: object) -> str:
    """Return a token as the label of a column."""
    shown = str(text).replace("\n", "⏎").strip() or "␣"
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
