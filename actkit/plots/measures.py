"""Several measures of similarity between adjacent layers, on the same scale."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .maps import MEASURES
from .style import colours, framed, side_by_side, styled

_MARKERS = ("circle", "square", "triangle", "diamond")
_MPL_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D"}


def similarity_measures(similarities: Sequence[xr.Dataset]) -> Any:
    """Plot the calibrated similarity between consecutive layers by several measures, per language.

    Parameters
    ----------
    similarities
        From :func:`actkit.similarity`, each with another measure, of the same layers of one cube.

    Returns
    -------
    holoviews.Layout
        0 is the mean similarity of permuted samples, and 1 that of equal layers.
    """
    tables = {MEASURES[table.attrs["measure"]]: table.compute() for table in similarities}
    shades = colours(tables)
    first = next(iter(tables.values()))
    layers = first.layer.values.tolist()
    ticks = [(at, f"{one}–{two}") for at, (one, two) in enumerate(pairwise(layers))]
    pictures = []
    for language in first.language.values.tolist():
        parts = []
        for marker, (name, table) in zip(_MARKERS, tables.items(), strict=False):
            values = adjacent(table.sel(language=language).calibrated)
            data = (np.arange(len(values)), values)
            curve = hv.Curve(data, "step", "calibrated", label=name)
            points = hv.Scatter(data, "step", "calibrated", label=name)
            shade = shades[name]
            parts.append(styled(curve, color=shade, bokeh={"line_width": 2}, mpl={"linewidth": 2}))
            parts.append(
                styled(
                    points,
                    color=shade,
                    bokeh={"marker": marker, "size": 7, "tools": ["hover"]},
                    mpl={"marker": _MPL_MARKERS[marker], "s": 35},
                )
            )
        picture = framed(
            hv.Overlay(parts),
            title=f"Similarity of consecutive layers, {language}",
            xlabel=f"layers compared · {int(first.sel(language=language).n):,} independent samples",
            ylabel="calibrated similarity",
            xticks=ticks,
        )
        pictures.append(picture)
    return side_by_side(pictures)


def adjacent(square: xr.DataArray) -> np.ndarray:
    """Return the values of each layer and the next one, dims ``(layer, layer_2)``."""
    return np.diagonal(square.transpose("layer", "layer_2").values, offset=1)
