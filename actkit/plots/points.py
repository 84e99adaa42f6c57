"""Samples projected to their first two principal components."""

from typing import Any

import holoviews as hv
import numpy as np

from ..canonical import Cube
from ..errors import Fault, InputError
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.groups import Groups
from .style import GREY, colours, framed, styled

_MARKERS = (("circle", "o"), ("triangle", "^"), ("square", "s"), ("diamond", "D"))


def projection(
    cube: Cube, layer: int, *, by: str | None = None, vectors: selection.Pooling = "pooled"
) -> Any:
    """Plot samples at a layer, projected to their first two principal components.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    layer
        The block.
    by
        Label column that determines the colours; languages are then distinguished by markers, and samples
        without a value are grey.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.

    Returns
    -------
    holoviews.Overlay
        The axis labels give the share of variance explained.

    Raises
    ------
    InputError, MissingError
        If the cube lacks the label, the layer or the vectors.
    """
    activations = selection.vectors(finite_cube(cube), vectors)
    if layer not in activations.layer.values:
        hint = f"it has {activations.layer.values.tolist()}"
        raise InputError([Fault("layer", f"the cube lacks {layer}", hint)])
    activations = activations.sel(layer=layer)
    exact = activations.values.astype(np.float64)
    exact -= exact.mean(axis=0)
    if min(exact.shape) < 2:
        what = f"{exact.shape[0]} samples of {exact.shape[1]} dimensions do not span a plane"
        raise InputError([Fault("cube", what, "select more samples")])
    u, sizes, _ = np.linalg.svd(exact, full_matrices=False)
    if not sizes.any():
        what = f"all samples are identical at layer {layer}"
        raise InputError([Fault("cube", what, "choose another layer")])
    points, shares = u[:, :2] * sizes[:2], sizes[:2] ** 2 / (sizes**2).sum()
    # the sign of a component is arbitrary
    points *= np.sign(points[np.abs(points).argmax(axis=0), np.arange(2)])
    language = activations.language.values.astype(str)
    groups = Groups.of(language) if by is None else selection.column(activations, by, "by")
    shades, sides = colours(groups.texts), list(dict.fromkeys(language.tolist()))
    drawn = []
    for side, marker in zip(sides, _MARKERS * len(sides), strict=False):
        for code in sorted(set(groups.codes[language == side].tolist())):
            chosen = (language == side) & (groups.codes == code)
            name = groups.texts[code] if code >= 0 else f"no {by}"
            label = name if by is None else f"{side}, {name}"
            columns = (*points[chosen].T, activations.sample.values[chosen])
            scatter = hv.Points(columns, ["first", "second"], ["sample"], label=label)
            drawn.append(
                styled(
                    scatter,
                    color=shades[name] if code >= 0 else GREY,
                    alpha=0.6,
                    bokeh={"marker": marker[0], "size": 5},
                    mpl={"marker": marker[1], "s": 14},
                )
            )
    axes = [f"PC {at + 1} ({share:.0%} of variance)" for at, share in enumerate(shares)]
    return framed(
        hv.Overlay(drawn),
        title=f"{vectors.capitalize()} vectors at layer {layer}",
        xlabel=axes[0],
        ylabel=axes[1],
    )
