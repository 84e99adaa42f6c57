"""How often features of sparse autoencoders are active, and maps of them."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from ..stats.groups import label_text
from .style import colours, framed, side_by_side, styled

_BINS = np.geomspace(1e-4, 1, 25)
_MARKERS = (("circle", "o"), ("triangle", "^"), ("square", "s"), ("diamond", "D"))


def feature_frequency(rates: xr.Dataset) -> Any:
    """Plot the distribution of how often features are active, by layer.

    Parameters
    ----------
    rates
        From :func:`actkit.feature_rates`, with or without ``by``.

    Returns
    -------
    holoviews.Layout
        For each language, the number of features of each layer by their ``token_rate``, on a logarithmic
        axis; those that are never active are counted in the legend. With ``by``, of the first group.
    """
    table = rates[["token_rate", "n_samples"]].compute()
    group_dim = table.attrs.get("group_dim")
    group = ""
    if group_dim is not None:
        table = table.isel({group_dim: 0})
        group = f", {label_text(table[group_dim].item())}"
    layers = table.layer.values.tolist()
    shown = layers[:: max(-(-len(layers) // 6), 1)]
    pictures = []
    for language in table.language.values:
        parts = []
        shades = colours(f"layer {layer}" for layer in shown)
        for layer in shown:
            values = table.token_rate.sel(language=language, layer=layer).values
            active = np.clip(values[values > 0], _BINS[0], None)
            counts, _ = np.histogram(active, _BINS)
            never = int((values == 0).sum())
            centres = np.sqrt(_BINS[1:] * _BINS[:-1])
            name = f"layer {layer}"
            curve = hv.Curve((centres, counts), "rate", "features", label=f"{name}, {never} never active")
            parts.append(
                styled(
                    curve,
                    color=shades[name],
                    logx=True,
                    bokeh={"line_width": 2, "tools": ["hover"]},
                    mpl={"linewidth": 2},
                )
            )
        count = int(table.n_samples.sel(language=language))
        pictures.append(
            framed(
                hv.Overlay(parts),
                title=f"Frequency of features, {language}{group}",
                xlabel=f"share of tokens with the feature · {count:,} samples",
                ylabel="number of features",
                logx=True,
            )
        )
    return side_by_side(pictures)


def feature_rates(rates: xr.Dataset, layer: int, features: list[int], *, measure: str = "sample_rate") -> Any:
    """Plot how often some features of a layer are active in each group.

    Parameters
    ----------
    rates
        From :func:`actkit.feature_rates`, with or without ``by``.
    layer
        The block.
    features
        Indices of the features.
    measure
        ``sample_rate``, ``token_rate`` or ``mean``.

    Returns
    -------
    holoviews.Overlay
        With 95% intervals.

    Raises
    ------
    InputError
        If the result lacks the layer or a feature.
    """
    faults = []
    if layer not in rates.layer.values:
        faults.append(Fault("layer", f"the result lacks {layer}", f"it has {rates.layer.values.tolist()}"))
    if lost := [feature for feature in features if feature not in rates.feature.values]:
        faults.append(Fault("features", f"the result lacks {lost}", "name some of `rates.feature`"))
    if measure not in ("sample_rate", "token_rate", "mean"):
        faults.append(Fault("measure", f"{measure!r} is unknown", "sample_rate, token_rate or mean"))
    if faults:
        raise InputError(faults, "cannot plot rates")
    table = rates[[measure, f"{measure}_low", f"{measure}_high"]].sel(layer=layer, feature=features).compute()
    group_dim = table.attrs.get("group_dim")
    groups = [""] if group_dim is None else [label_text(group) for group in table[group_dim].values]
    languages = [str(language) for language in table.language.values]
    shades = colours(languages if group_dim is None else groups)
    width, parts = 0.8 / (len(groups) * len(languages)), []
    for number, (at, name) in enumerate((at, name) for at in range(len(languages)) for name in groups):
        part = table.isel(language=at)
        part = part if group_dim is None else part.isel({group_dim: groups.index(name)})
        places = np.arange(len(features)) + (number + 0.5) * width - 0.4
        colour = shades[name or languages[at]]
        label = f"{languages[at]}, {name}" if name else languages[at]
        parts += _intervals(part, measure, places, colour, label, _MARKERS[at % len(_MARKERS)])
    unit = {"mean": "mean over tokens", "token_rate": "share of tokens", "sample_rate": "share of samples"}
    return framed(
        hv.Overlay(parts),
        title=f"Features of layer {layer}",
        xlabel=f"feature · {table.attrs['n_samples']:,} samples\n"
        f"bars: 95% CI, clusters of dependent samples: {table.attrs.get('cluster') or 'none'}",
        ylabel=unit[measure],
        xticks=[(at, str(feature)) for at, feature in enumerate(features)],
    )


def feature_map(features: xr.Dataset) -> Any:
    """Plot the features of a layer in two dimensions, coloured by k-means cluster.

    Parameters
    ----------
    features
        From :func:`actkit.feature_map`.

    Returns
    -------
    holoviews.Overlay
        The axis labels give the share of variance explained; larger points are active in more samples.
    """
    assignment = features.k_means_cluster.values
    names = [f"{cluster} ({count:,})" for cluster, count in enumerate(np.bincount(assignment))]
    shades = colours(names)
    parts = []
    for cluster, name in enumerate(names):
        part = features.isel(feature=np.flatnonzero(assignment == cluster))
        sizes = 3 + 9 * np.sqrt(part.sample_rate.values)
        columns = (*part.position.values.T, part.feature.values, part.sample_rate.values, sizes)
        points = hv.Points(columns, ["first", "second"], ["feature", "sample_rate", "size"], label=name)
        parts.append(
            styled(
                points,
                color=shades[name],
                alpha=0.5,
                bokeh={"size": hv.dim("size"), "tools": ["hover"]},
                mpl={"s": hv.dim("size") ** 2 / 2},
            )
        )
    of = "activation patterns" if features.attrs["of"] == "activations" else "directions"
    axes = [f"PC {at + 1} ({share:.0%} of variance)" for at, share in enumerate(features.explained.values)]
    return framed(
        hv.Overlay(parts),
        title=f"Features of layer {features.layer.item()}: {of}",
        xlabel=f"{axes[0]}\ncolours: k-means clusters, silhouette {features.silhouette.item():.2f}",
        ylabel=axes[1],
    )


def _intervals(
    table: xr.Dataset, measure: str, places: np.ndarray, colour: str, label: str, marker: tuple[str, str]
) -> list[Any]:
    """Draw the values of features with their intervals."""
    values, low, high = (table[measure + end].values for end in ("", "_low", "_high"))
    bars = hv.ErrorBars((places, values, values - low, high - values), "place", [measure, "below", "above"])
    points = hv.Scatter((places, values, table.feature.values), "place", [measure, "feature"], label=label)
    return [
        styled(bars, bokeh={"line_color": colour}, mpl={"edgecolor": colour}),
        styled(
            points,
            color=colour,
            bokeh={"marker": marker[0], "size": 7, "tools": ["hover"]},
            mpl={"marker": marker[1], "s": 40},
        ),
    ]
