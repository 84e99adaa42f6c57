"""Probes of labels with several classes and of numeric labels, over layers and with baselines."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .curves import BASELINES, lines_of
from .style import GREY, framed, shaded, side_by_side


def classification_probe(probe: xr.Dataset) -> Any:
    """Plot the macro-averaged AUROC over layers with baselines, and the AUROC of each class.

    Parameters
    ----------
    probe
        From :func:`actkit.classification_probe`.

    Returns
    -------
    holoviews.Layout
        AUROCs with their 95% intervals; a grey band that contains 95% of the permutations at all layers at
        once; baselines, dashed and dotted.
    """
    table = probe.compute()
    by = table.attrs["by"]
    macro = _measure(
        table.drop_dims(table.attrs["group_dim"]),
        "macro_auroc",
        chance=0.5,
        title=f"Classes of {by}",
        ylabel="macro-averaged AUROC",
    )
    parts = []
    for line in lines_of(table):
        parts += [line.band("auroc_low", "auroc_high", 0.1), line.curve("auroc")]
        certain = line.table.auroc.where(line.table.auroc_p < 0.05).dropna("layer")
        if len(certain):
            parts.append(line.marks(certain, ": p < 0.05"))
    each = framed(
        hv.Overlay(parts),
        title=f"Each class of {by} against the rest",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="AUROC of a linear probe",
    )
    return side_by_side([macro, each])


def regression_probe(probe: xr.Dataset) -> Any:
    """Plot R² and Spearman's correlation of held-out predictions over layers, with baselines.

    Parameters
    ----------
    probe
        From :func:`actkit.regression_probe`.

    Returns
    -------
    holoviews.Layout
        Each with its 95% interval; a grey band that contains 95% of the permutations at all layers at once;
        baselines, dashed and dotted.
    """
    table = probe.compute()
    title = f"Prediction of {table.attrs['by']}"
    shown = (("r2", "R² of held-out predictions"), ("spearman", "Spearman's correlation"))
    return side_by_side(
        [_measure(table, name, chance=0.0, title=title, ylabel=label) for name, label in shown]
    )


def _measure(table: xr.Dataset, measure: str, *, chance: float, title: str, ylabel: str) -> Any:
    """Plot one measure of each language over layers, with its interval, null band and baselines."""
    layers = table.layer.values
    shown = table.copy()
    shown.attrs.pop("group_dim", None)  # one line per language
    for name in BASELINES:
        shown[f"{measure}_{name}"] = shown[f"{measure}_{name}"].expand_dims(layer=layers)
    bound = np.full(len(layers), float(shown[f"{measure}_bound"].max()))
    null = hv.Area((layers, np.minimum(bound, chance), np.maximum(bound, chance)), "layer", ["low", "high"])
    parts = [shaded(null.relabel("95% of permutations"), GREY, 0.3)]
    for line in lines_of(shown):
        parts += [line.band(f"{measure}_low", f"{measure}_high", 0.2), line.curve(measure)]
        certain = line.table[measure].where(line.table[f"{measure}_p"] < 0.05).dropna("layer")
        if len(certain):
            parts.append(line.marks(certain, ": p < 0.05"))
        for name, (label, dash) in BASELINES.items():
            if line.table[f"{measure}_{name}"].notnull().any():
                parts.append(line.curve(f"{measure}_{name}", f", {label}", dash=dash, width=1))
    return framed(hv.Overlay(parts), title=title, bands="95% CI", xlabel="layer", table=shown, ylabel=ylabel)
