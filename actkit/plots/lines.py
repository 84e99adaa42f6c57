"""Curves over layers: norms, updates, CKA of adjacent layers, group separability and probe transfer."""

from typing import Any

import holoviews as hv
import numpy as np
import xarray as xr

from ..errors import MissingError
from ..stats.groups import label_text
from .curves import BASELINES, Line, lines_of
from .style import GREY, colours, framed, shaded, side_by_side, styled

_VARIANTS = (
    ("cka_without_top", "without top 3 dimensions", "dashed"),
    ("cka_z_scored", "z-scored", "dotted"),
    ("cka_unit_rms", "unit RMS", "dashdot"),
)


def layer_norms(norms: xr.Dataset) -> Any:
    """Plot token norms over layers: the mean with its interval, and the 5th to 95th percentile of all tokens.

    Parameters
    ----------
    norms
        From :func:`actkit.layer_norms`, with or without ``by``.

    Returns
    -------
    holoviews.Overlay
        The norm axis is logarithmic.
    """
    table = norms.compute()
    parts = []
    for line in lines_of(table):
        parts += [line.band("p5", "p95", 0.12), line.band("low", "high", 0.35), line.curve("mean")]
    kind = {"content": "content tokens", "first": "first position"}.get(
        table.attrs["tokens"], table.attrs["tokens"]
    )
    return framed(
        hv.Overlay(parts),
        title=f"Norms of {kind} by {table.attrs['by']}" if table.attrs.get("by") else f"Norms of {kind}",
        bands="95% CI, 5–95% of tokens",
        xlabel="layer",
        table=table,
        ylabel=f"L2 norm of {table.attrs.get('component', 'residual')}",
        logy=True,
    )


def layer_updates(updates: xr.Dataset) -> Any:
    """Plot what each block changes: relative norm of the update, and cosine similarity to the previous layer.

    Parameters
    ----------
    updates
        From :func:`actkit.layer_updates`, with or without ``by``.

    Returns
    -------
    holoviews.Layout
    """
    table = updates.compute()
    shown = (("relative", "‖update‖ / ‖previous layer‖"), ("cosine", "cosine to the previous layer"))
    pictures = []
    for variable, label in shown:
        parts = []
        for line in lines_of(table):
            parts += [line.band(f"{variable}_low", f"{variable}_high", 0.3), line.curve(variable)]
        title = "Relative size of updates" if variable == "relative" else "Cosine of adjacent layers"
        pictures.append(
            framed(
                hv.Overlay(parts),
                title=title,
                bands="95% CI",
                xlabel="layer (lower of the pair)",
                ylabel=label,
                table=table,
            )
        )
    return side_by_side(pictures)


def adjacent_cka(
    similarity: xr.Dataset, transitions: xr.Dataset | None = None, *, variants: bool = True
) -> Any:
    """Plot the CKA of adjacent layers, and mark change points.

    Parameters
    ----------
    similarity
        From :func:`actkit.adjacent_cka`.
    transitions
        From :func:`actkit.transitions`; change points get markers.
    variants
        Whether to plot the variants without dominant dimensions, z-scored, and with unit RMS too.

    Returns
    -------
    holoviews.Overlay
    """
    table = similarity.compute()
    flagged = None if transitions is None else transitions.compute()
    parts = []
    for line in lines_of(table):
        parts += [line.band("low", "high", 0.25), line.curve("cka")]
        for variable, label, dash in _VARIANTS if variants else ():
            if variable in table:
                parts.append(line.curve(variable, f", {label}", dash=dash, width=1))
        if flagged is not None:
            where = line.table.cka.where(flagged.sel(language=line.name).change_point).dropna("layer")
            if len(where):
                parts.append(line.marks(where, ": change point"))
    return framed(
        hv.Overlay(parts),
        title="Debiased CKA of adjacent layers",
        bands="95% CI",
        xlabel="layer (lower of the pair)",
        table=table,
        ylabel=f"CKA of {table.attrs['vectors']} vectors",
    )


def group_differential(differential: xr.Dataset) -> Any:
    """Plot the probe AUROC between two groups over layers, with baselines.

    Parameters
    ----------
    differential
        From :func:`actkit.group_differential`.

    Returns
    -------
    holoviews.Overlay
        AUROC with its 95% interval; a grey band that contains 95% of the permutations at all layers at
        once, for the same probe; baselines, dashed and dotted.
    """
    table = differential.drop_dims("hidden", errors="ignore").compute()
    layers = table.layer.values
    bound = float(table.auroc_bound.max())
    chance = hv.Area(
        (layers, np.full(len(layers), 0.5), np.full(len(layers), bound)), "layer", ["low", "high"]
    )
    parts = [shaded(chance.relabel("95% of permutations"), GREY, 0.3)]
    for name in BASELINES:
        table[f"auroc_{name}"] = table[f"auroc_{name}"].expand_dims(layer=layers)
    for line in lines_of(table):
        parts += [line.band("auroc_low", "auroc_high", 0.2), line.curve("auroc")]
        certain = line.table.auroc.where(line.table.p < 0.05).dropna("layer")
        if len(certain):
            parts.append(line.marks(certain, ": p < 0.05"))
        for name, (label, dash) in BASELINES.items():
            if line.table[f"auroc_{name}"].notnull().any():
                parts.append(line.curve(f"auroc_{name}", f", {label}", dash=dash, width=1))
    by, between = table.attrs["by"], table.attrs["between"].replace(" to ", " or ")
    return framed(
        hv.Overlay(parts),
        title=f"Separability of {by} ({between})",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="AUROC of a linear probe",
    )


def auroc_difference(differential: xr.Dataset) -> Any:
    """Plot the difference between the AUROC of each layer and those of the baselines.

    Parameters
    ----------
    differential
        From :func:`actkit.group_differential`.

    Returns
    -------
    holoviews.Overlay
        The AUROC of the layer minus that of each baseline in the same folds, with its 95% interval.
    """
    table = differential.drop_dims("hidden", errors="ignore").compute()
    layers = table.layer.values
    none = hv.Curve((layers, np.zeros(len(layers))), "layer", "auroc_difference")
    parts = [styled(none, color=GREY, bokeh={"line_width": 1}, mpl={"linewidth": 1})]
    for name, (label, dash) in BASELINES.items():
        for line in lines_of(table.sel(baseline=name)):
            if line.table.auroc_difference.notnull().any():
                parts.append(line.band("auroc_difference_low", "auroc_difference_high", 0.1))
                parts.append(line.curve("auroc_difference", f", minus {label}", dash=dash))
    return framed(
        hv.Overlay(parts),
        title=f"AUROC minus baselines: {table.attrs['by']}",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="difference in AUROC",
    )


def selectivity(differential: xr.Dataset) -> Any:
    """Plot the probe AUROC over layers with that of control tasks, and the selectivity.

    Parameters
    ----------
    differential
        From :func:`actkit.group_differential` with ``control``.

    Returns
    -------
    holoviews.Overlay
        The AUROC, solid; that of control tasks, dashed; the selectivity with its 95% interval, dotted.

    Raises
    ------
    MissingError
        If the result has no control tasks.
    """
    if "selectivity" not in differential:
        raise MissingError(
            "the result has no control tasks; compute it with group_differential(…, control=…)"
        )
    table = differential.drop_dims("hidden", errors="ignore").compute()
    parts = []
    for line in lines_of(table):
        parts.append(line.curve("auroc"))
        if line.table.selectivity.notnull().any():
            parts.append(line.curve("auroc_control", ", control task", dash="dashed"))
            parts.append(line.band("selectivity_low", "selectivity_high", 0.25))
            parts.append(line.curve("selectivity", ", selectivity", dash="dotted"))
    return framed(
        hv.Overlay(parts),
        title=f"Selectivity of the probe of {table.attrs['by']}, by {table.attrs['control']}",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="AUROC, and difference",
    )


def erasure_probe(probe: xr.Dataset) -> Any:
    """Plot the probe AUROC over layers before and after the label is erased.

    Parameters
    ----------
    probe
        From :func:`actkit.erasure_probe`.

    Returns
    -------
    holoviews.Overlay
        The AUROC before, dashed, and after, solid, each with its 95% interval; chance is a grey line.
    """
    table = probe.compute()
    parts: list[Any] = [styled(hv.HLine(0.5), color=GREY)]
    for line in lines_of(table):
        parts += [
            line.band("auroc_before_low", "auroc_before_high", 0.12),
            line.band("auroc_after_low", "auroc_after_high", 0.3),
            line.curve("auroc_before", ", before", dash="dashed"),
            line.curve("auroc_after", ", after"),
        ]
    return framed(
        hv.Overlay(parts),
        title=f"Probe of {table.attrs['by']} before and after its erasure",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="AUROC",
    )


def transfer(transferred: xr.Dataset) -> Any:
    """Plot the AUROC of probes trained in one language and tested in another.

    Parameters
    ----------
    transferred
        From :func:`actkit.transfer`.

    Returns
    -------
    holoviews.Overlay
        Solid within a language, dashed across languages, with 95% intervals.
    """
    table = transferred.compute()
    sides = [label_text(side) for side in table.train.values]
    shades = colours(sides)
    parts = []
    for row, train in enumerate(sides):
        for column, test in enumerate(label_text(side) for side in table.test.values):
            dash = "solid" if train == test else "dashed"
            line = Line(f"{train} to {test}", table.isel(train=row, test=column), shades[train], dash)
            parts += [line.band("auroc_low", "auroc_high", 0.1), line.curve("auroc")]
    return framed(
        hv.Overlay(parts),
        title=f"Cross-{table.attrs['across']} transfer of the {table.attrs['by']} probe",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel="AUROC on held-out clusters",
    )


def intrinsic_dimension(dimension: xr.Dataset) -> Any:
    """Plot the intrinsic dimension over layers, with its interval.

    Parameters
    ----------
    dimension
        From :func:`actkit.intrinsic_dimension`.

    Returns
    -------
    holoviews.Overlay
    """
    table = dimension.compute()
    parts = []
    for line in lines_of(table):
        parts += [line.band("low", "high", 0.25), line.curve("dimension")]
    return framed(
        hv.Overlay(parts),
        title="Intrinsic dimension (TwoNN)",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel=f"dimension of {table.attrs['vectors']} vectors",
    )


def anisotropy(cosines: xr.Dataset) -> Any:
    """Plot mean cosines between clusters and, if there are several samples in any, within clusters.

    Parameters
    ----------
    cosines
        From :func:`actkit.anisotropy`.

    Returns
    -------
    holoviews.Overlay
        Solid between clusters, dashed within, dotted for the difference.
    """
    table = cosines.compute()
    shown = (
        ("between", "", ""),
        ("within", ", within clusters", "dashed"),
        ("corrected", ", corrected", "dotted"),
    )
    parts = []
    for line in lines_of(table):
        for variable, label, dash in shown:
            if line.table[variable].notnull().any():
                band = line.band(f"{variable}_low", f"{variable}_high", 0.25)
                parts += [band, line.curve(variable, label, dash=dash)]
    return framed(
        hv.Overlay(parts),
        title="Mean cosine of vectors of different clusters",
        bands="95% CI",
        xlabel="layer",
        table=table,
        ylabel=f"cosine of {table.attrs['vectors']} vectors",
    )
