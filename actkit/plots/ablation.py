"""Effects of ablated components by layer, with random displacements of the same length."""

from typing import Any

import holoviews as hv
import xarray as xr

from .style import GREY, colours, framed, shaded, side_by_side, styled

_LABELS = {"remaining": "remaining share of the gap", "change": "change of the metric"}


def ablation(result: xr.Dataset) -> Any:
    """Plot the effect of ablating each component by layer.

    Parameters
    ----------
    result
        From :func:`actkit.ablate`.

    Returns
    -------
    holoviews.Layout
        A picture for each component: the share of the gap between the groups that remains or, without groups,
        the mean change of the metric, with 95% intervals, and that of random displacements in grey.
    """
    table = result.compute()
    name = "remaining" if "remaining" in table else "change"
    components = list(dict.fromkeys(table.component.values.tolist()))
    return side_by_side(
        [
            _panel(table.isel(site=table.component.values == component), component, name)
            for component in components
        ]
    )


def _panel(table: xr.Dataset, component: str, name: str) -> Any:
    table = table.sortby("layer").swap_dims(site="layer")
    colour = colours([component])[component]
    layers = table.layer.values
    parts: list[Any] = []
    for at, arm in enumerate(table.arm.values.tolist()):
        one = table.sel(arm=arm)
        shade = GREY if at else colour
        low, high = one[f"{name}_low"].values, one[f"{name}_high"].values
        area = hv.Area((layers, low, high), "layer", [f"{name}_low", f"{name}_high"])
        points = hv.Scatter((layers, one[name].values), "layer", name)  # visible at a single layer too
        names = {0: {"label": "ablated"}, 1: {"label": "random displacements"}}
        curve = hv.Curve((layers, one[name].values), "layer", name, **names.get(at, {}))
        parts += [
            shaded(area, shade, 0.1),
            styled(points, color=shade, bokeh={"size": 5}, mpl={"s": 20}),
            styled(
                curve,
                color=shade,
                bokeh={"line_width": 1 if at else 2, "tools": ["hover"]},
                mpl={"linewidth": 1 if at else 2},
            ),
        ]
    title = f"{component} replaced by {table.attrs['value']}"
    return framed(
        hv.Overlay(parts), title=title, xlabel="layer", ylabel=_LABELS[name], table=table, bands="95% CI"
    )
