"""What changes along the layers: norms, updates, alignment of neighbours, and how far groups are apart."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from .style import GREY, colours, framed, shaded, side_by_side, styled

_DASHES = {"solid": "-", "dashed": "--", "dotted": ":", "dashdot": "-."}
_BASELINES = (
    ("auroc_embedding", "embedding", "dashed"),
    ("auroc_tfidf", "TF-IDF of the text", "dotted"),
    ("auroc_length", "length", "dashdot"),
)
_VARIANTS = (
    ("cka_without_top", "without 3 dimensions", "dashed"),
    ("cka_z_scored", "z-scored", "dotted"),
    ("cka_unit_rms", "unit RMS", "dashdot"),
)


def layer_norms(norms: xr.Dataset) -> Any:
    """Show how norms grow: the mean with its interval, and the band of most tokens.

    Parameters
    ----------
    norms
        From :func:`actkit.layer_norms`, also with ``by``.

    Returns
    -------
    holoviews.Overlay
        On a logarithmic axis.
    """
    table = norms.compute()
    parts = []
    for line in _lines(table):
        parts += [line.band("p5", "p95", 0.12), line.band("low", "high", 0.35), line.curve("mean")]
    kind = {"content": "content tokens", "first": "first position"}.get(
        table.attrs["tokens"], table.attrs["tokens"]
    )
    return framed(
        hv.Overlay(parts),
        title=f"Norms of {kind}",
        bands="mean 95%, all 5–95%",
        xlabel="layer",
        table=table,
        ylabel=f"L2 norm of {table.attrs.get('component', 'residual')}",
        logy=True,
    )


def layer_updates(updates: xr.Dataset) -> Any:
    """Show what the blocks change: relative size of the update, and the cosine to the layer before.

    Parameters
    ----------
    updates
        From :func:`actkit.layer_updates`, also with ``by``.

    Returns
    -------
    holoviews.Layout
    """
    table = updates.compute()
    shown = (("relative", "‖update‖ / ‖layer before‖"), ("cosine", "cosine to the layer before"))
    pictures = []
    for variable, label in shown:
        parts = []
        for line in _lines(table):
            parts += [line.band(f"{variable}_low", f"{variable}_high", 0.3), line.curve(variable)]
        title = "Size of updates" if variable == "relative" else "Direction of updates"
        pictures.append(
            framed(
                hv.Overlay(parts),
                title=title,
                bands="95%",
                xlabel="layer (lower of two)",
                ylabel=label,
                table=table,
            )
        )
    return side_by_side(pictures)


def adjacent_cka(found: xr.Dataset, transitions: xr.Dataset | None = None, *, variants: bool = True) -> Any:
    """Show how alike each layer is to the next, and where it changes abruptly.

    Parameters
    ----------
    found
        From :func:`actkit.adjacent_cka`.
    transitions
        From :func:`actkit.transitions`: flagged ones are marked, filled where they are confirmed.
    variants
        Whether to show what it becomes without what often dominates it.

    Returns
    -------
    holoviews.Overlay
    """
    table = found.compute()
    flagged = None if transitions is None else transitions.compute()
    parts = []
    for line in _lines(table):
        parts += [line.band("low", "high", 0.25), line.curve("cka")]
        for variable, label, dash in _VARIANTS if variants else ():
            if variable in table:
                parts.append(line.curve(variable, f", {label}", dash=dash, width=1))
        if flagged is not None:
            at = flagged.sel(language=line.name)
            for sure, label in ((False, ": flagged"), (True, ": confirmed")):
                where = line.table.cka.where(at.transition & (at.confirmed == sure)).dropna("layer")
                if len(where):
                    parts.append(line.marks(where, label, filled=sure))
    return framed(
        hv.Overlay(parts),
        title="Debiased CKA of neighbouring layers",
        bands="95%",
        xlabel="layer (lower of two)",
        table=table,
        ylabel=f"CKA of {table.attrs['values']} vectors",
    )


def group_differential(found: xr.Dataset) -> Any:
    """Show where two groups become separable, and what tells them apart without the model.

    Parameters
    ----------
    found
        From :func:`actkit.group_differential`.

    Returns
    -------
    holoviews.Overlay
        AUROC with its standard deviation over folds; a grey band that 95% of permutations stay within at
        every layer; dashed and dotted baselines.
    """
    table = found.drop_dims("hidden", errors="ignore").compute()
    layers = table.layer.values
    bound = float(table.auroc_bound.max())
    chance = hv.Area(
        (layers, np.full(len(layers), 0.5), np.full(len(layers), bound)), "layer", ["low", "high"]
    )
    parts = [shaded(chance.relabel("95% of permutations"), GREY, 0.3)]
    spread = table.assign(below=table.auroc - table.auroc_sd, above=table.auroc + table.auroc_sd)
    for variable, _, _ in _BASELINES:
        spread[variable] = spread[variable].expand_dims(layer=layers)
    for line in _lines(spread):
        parts += [line.band("below", "above", 0.2), line.curve("auroc")]
        certain = line.table.auroc.where(line.table.p < 0.05).dropna("layer")
        if len(certain):
            parts.append(line.marks(certain, ": p < 0.05", filled=True))
        for variable, label, dash in _BASELINES:
            if line.table[variable].notnull().any():
                parts.append(line.curve(variable, f", {label}", dash=dash, width=1))
    by, labels = table.attrs["by"], table.attrs["labels"].replace(" to ", " or ")
    return framed(
        hv.Overlay(parts),
        title=f"How well {by} ({labels}) is told apart",
        bands="sd over folds",
        xlabel="layer",
        table=table,
        ylabel="AUROC of a linear probe",
    )


def transfer(found: xr.Dataset) -> Any:
    """Show how a probe of one language does in another.

    Parameters
    ----------
    found
        From :func:`actkit.transfer`.

    Returns
    -------
    holoviews.Overlay
        Solid within a language, dashed from one to another.
    """
    table = found.compute()
    shades = colours(table.train.values.tolist())
    parts = []
    for train in table.train.values.tolist():
        for test in table.test.values.tolist():
            dash = "solid" if train == test else "dashed"
            line = _Line(f"{train} to {test}", table.sel(train=train, test=test), shades[train], dash)
            parts.append(line.curve("auroc"))
    return framed(
        hv.Overlay(parts),
        title=f"Probe of {table.attrs['by']}, from one {table.attrs['across']} to another",
        xlabel="layer",
        table=table,
        ylabel="AUROC on held-out groups",
    )


@dataclass(frozen=True)
class _Line:
    """A language, or a group of one: its numbers, and how it is drawn."""

    name: str
    table: xr.Dataset
    colour: str
    dash: str = "solid"

    def curve(self, variable: str, label: str = "", *, dash: str = "", width: float = 2) -> Any:
        found = hv.Curve(
            (self.table.layer.values, self.table[variable].values),
            "layer",
            variable,
            label=f"{self.name}{label}",
        )
        dash = dash or self.dash
        return styled(
            found,
            color=self.colour,
            bokeh={"line_dash": dash, "line_width": width, "tools": [] if label else ["hover"]},
            mpl={"linestyle": _DASHES[dash], "linewidth": width},
        )

    def band(self, low: str, high: str, alpha: float) -> Any:
        table = self.table
        area = hv.Area((table.layer.values, table[low].values, table[high].values), "layer", [low, high])
        return shaded(area, self.colour, alpha)

    def marks(self, values: xr.DataArray, label: str, *, filled: bool) -> Any:
        points = hv.Scatter(
            (values.layer.values, values.values), "layer", str(values.name), label=f"{self.name}{label}"
        )
        inside = self.colour if filled else "white"
        return styled(
            points,
            bokeh={"size": 7, "line_color": self.colour, "fill_color": inside},
            mpl={"s": 40, "edgecolor": self.colour, "facecolors": inside},
        )


def _lines(table: xr.Dataset) -> list[_Line]:
    """Return a line for each language, or for each group of each: then dashed by language."""
    names = [str(name) for name in table.language.values]
    by = table.attrs.get("by")
    if by not in table.dims:
        shades = colours(names)
        return [_Line(name, table.sel(language=name), shades[name]) for name in names]
    groups = [str(group) for group in table[by].values]
    shades = colours(groups)
    return [
        _Line(f"{name}, {group}", table.sel({"language": name, by: group}), shades[group], dash)
        for name, dash in zip(names, cycle(_DASHES), strict=False)
        for group in groups
    ]
