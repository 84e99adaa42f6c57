"""Sparse autoencoders: training curves, and quality beside baselines over layers."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import MissingError
from .style import GREY, colours, framed, layer_ticks, side_by_side, styled

_DASHES = {"solid": "-", "dashed": "--", "dotted": ":", "dashdot": "-."}
# measure of a training log, its axis, and whether that is logarithmic
CURVES = (
    ("fvu", "FVU of held-out tokens", False),
    ("l0", "active features per held-out token", False),
    ("loss", "training loss", True),
    ("n_dead", "dead features", False),
)
# FVU of a result of `sae_quality`: variable, label, dash
_FVU = (
    ("fvu", "autoencoder", "solid"),
    ("fvu_pca", "PCA, first components", "dashed"),
    ("fvu_pca_top", "PCA, largest coefficients", "dotted"),
    ("fvu_random", "random features", "dashdot"),
)
_BINS = 40


def training_curves(log: xr.Dataset) -> Any:
    """Plot how the training of autoencoders went, a curve per layer.

    Parameters
    ----------
    log
        From :func:`actkit.training_log`, of a run that is finished or not.

    Returns
    -------
    holoviews.Layout
        FVU and L0 of held-out tokens, the loss, and the number of dead features, over steps.

    Raises
    ------
    MissingError
        If nothing was measured yet.
    """
    table = log.compute()
    if not table.sizes.get("step"):
        raise MissingError("the training has not measured anything yet; wait for its first measures")
    shades = layer_colours(table)
    named = dict(layer_ticks([(layer, f"layer {layer}") for layer in shades]))  # few enough for a legend
    pictures = []
    for variable, label, logy in CURVES:
        curves = []
        for layer, shade in shades.items():
            values = table[variable].sel(layer=layer).values
            columns = (table.step.values, values, np.full(len(values), layer))
            curve = hv.Curve(columns, "step", [variable, "layer"], label=named.get(layer, ""))
            curves.append(_lined(curve, shade, "solid"))
        title = label[0].upper() + label[1:]
        picture = framed(hv.Overlay(curves), title=title, xlabel="training step", ylabel=label, logy=logy)
        pictures.append(picture)
    return side_by_side(pictures)


def sae_quality(quality: xr.Dataset) -> Any:
    """Plot the quality of autoencoders over layers, beside baselines with as many active coefficients.

    Parameters
    ----------
    quality
        From :func:`actkit.sae_quality`.

    Returns
    -------
    holoviews.Layout
        FVU with that of PCA and of random features; L0; if it was measured, the share of features that
        another seed finds again, and the share of the model's loss that is recovered.
    """
    table = quality.compute()
    (shade,) = colours(["autoencoder"]).values()
    fvu = [
        part
        for name, label, dash in _FVU
        for part in _over_layers(table, name, label, shade if name == "fvu" else GREY, dash)
    ]
    l0 = _over_layers(table, "l0", "L0", shade)
    pictures = [
        _of_layers(fvu, table, "Variance that is not explained", "FVU"),
        _of_layers(l0, table, "Active features", "features per token"),
    ]
    if table.found_again.notnull().any():
        curves = [
            *_over_layers(table, "found_again", "another seed", shade),
            *_over_layers(table, "found_again_random", "random directions", GREY, "dashed"),
        ]
        pictures.append(_of_layers(curves, table, "Features found again", "share of active features"))
    if table.ce_recovered.notnull().any():
        curves = [
            *_over_layers(table, "ce_recovered", "from zero ablation", shade),
            *_over_layers(table, "ce_recovered_from_mean", "from mean ablation", shade, "dashed"),
        ]
        pictures.append(_of_layers(curves, table, "Next-token loss recovered", "share of added loss"))
    return side_by_side(pictures)


def sae_frequencies(quality: xr.Dataset) -> Any:
    """Plot how often features are active, as a histogram per layer.

    Parameters
    ----------
    quality
        From :func:`actkit.sae_quality`.

    Returns
    -------
    holoviews.Overlay
        Number of features by the logarithm of their frequency; the label of a layer counts those that are
        never active, which have none.
    """
    table = quality.compute()
    frequency = table.frequency.where(table.frequency > 0)
    lowest = float(np.log10(frequency.min())) if frequency.notnull().any() else -1.0
    edges = np.linspace(min(lowest, -1.0), 0, _BINS + 1)
    curves = []
    for layer, shade in layer_colours(table).items():
        values = frequency.sel(layer=layer).values
        counts, _ = np.histogram(np.log10(values[np.isfinite(values)]), edges)
        never = int(table.n_never_active.sel(layer=layer))
        label = f"layer {layer}: {never:,} never active"
        curve = hv.Curve(((edges[:-1] + edges[1:]) / 2, counts), "frequency", "n_features", label=label)
        curves.append(_lined(curve, shade, "solid"))
    return framed(
        hv.Overlay(curves),
        title="How often features are active",
        xlabel=f"log10 of the share of tokens · {table.attrs['n_tokens']:,} held-out tokens",
        ylabel="number of features",
    )


def layer_colours(table: xr.Dataset) -> dict[int, str]:
    """Return a colour for each layer, from dark to light in their order."""
    layers = [int(layer) for layer in table.layer.values]
    palette = hv.plotting.util.process_cmap("Viridis", 100)
    places = np.linspace(25, 75, len(layers)).astype(int)  # what can be seen on white and on black
    return dict(zip(layers, [palette[place] for place in places], strict=True))


def _over_layers(table: xr.Dataset, variable: str, label: str, colour: str, dash: str = "solid") -> list[Any]:
    """Return the curve of a variable, and its points, because a single layer makes no line."""
    values = table[variable].values
    curve = _lined(hv.Curve((table.layer.values, values), "layer", variable, label=label), colour, dash)
    points = hv.Scatter((table.layer.values, values), "layer", variable)
    return [curve, styled(points, color=colour, bokeh={"size": 5}, mpl={"s": 20})]


def _lined(curve: Any, colour: str, dash: str) -> Any:
    return styled(
        curve,
        color=colour,
        bokeh={"line_dash": dash, "line_width": 2, "tools": ["hover"]},
        mpl={"linestyle": _DASHES[dash], "linewidth": 2},
    )


def _of_layers(curves: list[Any], table: xr.Dataset, title: str, ylabel: str) -> Any:
    """Frame curves over layers whose zero is shown, so that differences keep their proportion."""
    values = np.concatenate([curve.dimension_values(1) for curve in curves])
    highest, lowest = np.nanmax(values), min(0.0, np.nanmin(values))
    return framed(
        hv.Overlay(curves),
        title=title,
        xlabel=f"layer · {table.attrs['n_tokens']:,} held-out tokens",
        ylabel=ylabel,
        xticks=layer_ticks([(layer, str(layer)) for layer in table.layer.values.tolist()]),
        ylim=(lowest, 1.05 * highest if highest > 0 else 1.0),
    )
