"""Effects of directions on a model's predictions, with random directions beside them."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .style import GREY, colours, framed, shaded, side_by_side, styled

_EFFECTS = {"ablate": ("remaining", "remaining share of the gap")}
_ADDED = ("change_first", "change of the metric in {first}")


def steering(result: xr.Dataset) -> Any:
    """Plot the effect of a direction by layer and, if several scales were tried, by scale.

    Parameters
    ----------
    result
        From :func:`actkit.steer`.

    Returns
    -------
    holoviews.Layout
        Effects on held-out clusters (or on all, if the direction was fitted on all) with 95% intervals, and
        those of random directions in grey. Of
        ``ablate``, the share of the gap between the groups that remains; of other modes, the mean change of
        the metric in the first group. The second picture shows the chosen layer.
    """
    table = result.compute().isel(half=-1)
    table.attrs["n_samples"] = int(table.n.sum())
    first = table.attrs["first"]
    name, label = _EFFECTS.get(table.attrs["mode"], _ADDED)
    label = label.format(first=first)
    chosen = table.chosen.values
    scale, layer = int(chosen.any(axis=0).argmax()), int(chosen.any(axis=1).argmax())
    samples = "held-out clusters" if str(table.half.item()) == "held_out" else "samples of the fit"
    title = f"{table.attrs['mode']} the direction {table.attrs['between']}, {samples}"
    pictures = [_panel(table.isel(scale=scale), "layer", name, label, title)]
    if table.sizes["scale"] > 1:
        at = f"{title}, layer {int(table.layer[layer])}"
        pictures.append(_panel(table.isel(layer=layer), "scale", name, label, at))
    return side_by_side(pictures)


def _panel(table: xr.Dataset, axis: str, name: str, label: str, title: str) -> Any:
    colour = colours(["groups"])["groups"]
    parts = []
    for at in range(table.sizes["direction"]):
        one = table.isel(direction=at)
        shade = GREY if at else colour
        low, high = one[f"{name}_low"].values, one[f"{name}_high"].values
        area = hv.Area((one[axis].values, low, high), axis, [f"{name}_low", f"{name}_high"])
        parts.append(shaded(area, shade, 0.1))
        points = hv.Scatter((one[axis].values, one[name].values), axis, name)  # visible at a single layer too
        parts.append(styled(points, color=shade, bokeh={"size": 5}, mpl={"s": 20}))
        # one entry of the legend for all random directions
        names = {0: {"label": "direction of the groups"}, 1: {"label": "random directions"}}
        curve = hv.Curve((one[axis].values, one[name].values), axis, name, **names.get(at, {}))
        parts.append(
            styled(
                curve,
                color=shade,
                bokeh={"line_width": 1 if at else 2, "tools": ["hover"]},
                mpl={"linewidth": 1 if at else 2},
            )
        )
    level = 1.0 if name == "remaining" else 0.0
    ends = table[axis].values[[0, -1]].astype(np.float64)
    if ends[0] == ends[1]:
        ends += [-0.5, 0.5]
    line = hv.Curve((ends, np.full(2, level)), axis, name)
    parts.append(
        styled(
            line,
            color=GREY,
            bokeh={"line_dash": "dotted", "line_width": 1, "tools": []},
            mpl={"linestyle": ":", "linewidth": 1},
        )
    )
    framing: dict[str, Any] = {"table": table, "bands": "95% CI"} if axis == "layer" else {}
    return framed(hv.Overlay(parts), title=title, xlabel=axis, ylabel=label, **framing)
