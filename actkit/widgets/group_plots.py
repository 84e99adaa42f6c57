"""Plots of the Groups tab: which probe suits a label, and with which options it is computed."""

from typing import Any, NamedTuple

import xarray as xr

from ..reports.section import MOST_CLASSES, is_numeric
from ..stats import selection

RESIDUALS: dict[str, str] = {"nothing": "", "length": "length", "text": "tfidf", "length and text": "both"}
_COVARIATES = {"length": ["length"], "tfidf": ["tfidf"], "both": ["length", "tfidf"]}


class GroupPlot(NamedTuple):
    """A plot, the plotting function and the statistic that it needs, and the options of the statistic."""

    name: str
    draw: str
    statistic: str
    options: dict[str, Any]


def probe_of(cube: xr.Dataset, by: str, between: list[str]) -> str:
    """Return the probe of a label: two groups that were chosen or are all, classes, numbers; or ""."""
    if not by:
        return ""
    n_groups = len(selection.column(cube, by, "by").texts)
    if len(between) == 2 or n_groups <= 2:
        return "group_differential"
    if between:
        return ""
    if is_numeric(cube, by):
        return "regression_probe"
    return "classification_probe" if n_groups <= MOST_CLASSES else ""


def missing(cube: xr.Dataset, by: str, between: list[str]) -> str:
    """Return a prompt for what has to be chosen before a label can be probed, or ""."""
    if not by:
        return "Choose a label under Group by to define the groups to compare."
    if probe_of(cube, by, between):
        return ""
    n_groups = len(selection.column(cube, by, "by").texts)
    return f"{by} has {n_groups} groups: choose two under Groups to compare."


def group_plots(
    cube: xr.Dataset,
    *,
    by: str,
    between: list[str],
    cluster: str,
    vectors: str,
    residuals: str = "",
    control: str = "",
) -> list[GroupPlot]:
    """Return the plots of a label.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by
        The label.
    between
        Two of its values, or none.
    cluster
        The label that dependent samples share; empty for none.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    residuals
        What to remove from the vectors, a value of `RESIDUALS`.
    control
        The type of control tasks; empty for none. Two groups only.
    """
    options: dict[str, Any] = {"by": by, "cluster": cluster or None, "vectors": vectors}
    probe = probe_of(cube, by, between)
    removed = {"residualized_on": _COVARIATES[residuals]} if residuals else {}
    if probe != "group_differential":
        return [GroupPlot(probe, probe, probe, options | removed)]
    if between:
        options["between"] = tuple(between)
    probed = options | removed | ({"control": control} if control else {})
    plots = [
        GroupPlot("groups", probe, probe, probed),
        GroupPlot("auroc_difference", "auroc_difference", probe, probed),
    ]
    if control:
        plots.append(GroupPlot("selectivity", "selectivity", probe, probed))
    if len(set(cube.language.values.astype(str).tolist())) > 1 and not residuals:
        plots.append(GroupPlot("transfer", "transfer", "transfer", options))
    return plots
