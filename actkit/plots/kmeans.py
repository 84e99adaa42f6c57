"""k-means over layers: silhouette, stability, and agreement with labels."""

from typing import Any

import holoviews as hv
import xarray as xr

from .style import colours, framed, side_by_side, styled

_DASHES = {"solid": "-", "dashed": "--", "dotted": ":"}


def kmeans(result: xr.Dataset) -> Any:
    """Plot the quality of k-means over layers, and its agreement with each label.

    Parameters
    ----------
    result
        From :func:`actkit.cluster_samples` or :func:`actkit.cluster_tokens`.

    Returns
    -------
    holoviews.Layout
        Silhouette (solid) and stability (dashed) of the number of clusters chosen; and for each label the
        adjusted Rand index (solid) with its mean under permuted labels (dotted).
    """
    table = result.compute()
    # argmax of a flag finds the candidate chosen; a layer without one is all NaN anyway
    chosen = table[["silhouette", "stability"]].isel(
        candidate=(table.candidate == table.k).argmax("candidate")
    )
    chosen = chosen.where(table.k.notnull())
    what = "tokens" if "token" in table.dims else "samples"
    quality = [
        _curve(chosen[name].sel(language=language), language, shade, label, dash)
        for language, shade in _shades(table)
        for name, label, dash in (("silhouette", "", "solid"), ("stability", ", stability", "dashed"))
    ]
    pictures = [_picture(quality, table, f"k-means of {what}", "silhouette, stability")]
    for label in table.label.values.tolist() if "label" in table.dims else ():
        part = table.sel(label=label)
        agreement = [
            _curve(part[name].sel(language=language), language, shade, suffix, dash)
            for language, shade in _shades(table)
            for name, suffix, dash in (
                ("adjusted_rand", "", "solid"),
                ("adjusted_rand_null_mean", ", permuted", "dotted"),
            )
        ]
        title = f"k-means of {what} and {label}"
        pictures.append(_picture(agreement, table, title, "adjusted Rand index"))
    return side_by_side(pictures)


def _shades(table: xr.Dataset) -> list[tuple[str, str]]:
    return list(colours(str(name) for name in table.language.values).items())


def _curve(values: xr.DataArray, language: str, colour: str, label: str, dash: str) -> Any:
    curve = hv.Curve((values.layer.values, values.values), "layer", str(values.name), label=language + label)
    return styled(
        curve,
        color=colour,
        bokeh={"line_dash": dash, "line_width": 2, "tools": [] if label else ["hover"]},
        mpl={"linestyle": _DASHES[dash], "linewidth": 2},
    )


def _picture(curves: list[Any], table: xr.Dataset, title: str, ylabel: str) -> Any:
    return framed(hv.Overlay(curves), title=title, xlabel="layer", ylabel=ylabel, table=table)
