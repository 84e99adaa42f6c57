"""Samples as points in the plane in which they vary most."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..stats import parts
from .style import colours, framed, styled

_MARKERS = (("circle", "o"), ("triangle", "^"), ("square", "s"), ("diamond", "D"))


def projection(cube: xr.Dataset, layer: int, *, by: str | None = None, values: str = "pooled") -> Any:
    """Show samples at a layer, projected to their first two principal components.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    layer
        The block.
    by
        A label column, which gives the colours; languages then have markers of their own.
    values
        ``pooled`` or ``last``.

    Returns
    -------
    holoviews.Overlay
        The axes say which part of the variance they show.

    Raises
    ------
    InputError, MissingError
        Where the cube has no such label, or lacks what is asked for.
    """
    own = parts.vectors(cube, values).sel(layer=layer)
    exact = own.values.astype(np.float64)
    exact -= exact.mean(axis=0)
    u, sizes, _ = np.linalg.svd(exact, full_matrices=False)
    points, shares = u[:, :2] * sizes[:2], sizes[:2] ** 2 / (sizes**2).sum()
    # the sign of a component is arbitrary
    points *= np.sign(points[np.abs(points).argmax(axis=0), np.arange(2)])
    language = own.language.values.astype(str)
    group = language if by is None else parts.column(own, by, "by")
    shades, sides = colours(group.tolist()), list(dict.fromkeys(language.tolist()))
    drawn = []
    for side, marker in zip(sides, _MARKERS * len(sides), strict=False):
        for name in sorted(set(group[language == side].tolist())):
            chosen = (language == side) & (group == name)
            label = name if by is None else f"{side}, {name}"
            columns = (*points[chosen].T, own.sample.values[chosen])
            scatter = hv.Points(columns, ["first", "second"], ["sample"], label=label)
            drawn.append(
                styled(
                    scatter,
                    color=shades[name],
                    alpha=0.6,
                    bokeh={"marker": marker[0], "size": 5},
                    mpl={"marker": marker[1], "s": 14},
                )
            )
    axes = [f"component {at + 1} ({share:.0%} of variance)" for at, share in enumerate(shares)]
    return framed(
        hv.Overlay(drawn),
        title=f"{values.capitalize()} samples at layer {layer}",
        xlabel=axes[0],
        ylabel=axes[1],
    )
