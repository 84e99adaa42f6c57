"""Curves of languages and groups over layers, with their colours and dashes."""

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import holoviews as hv
import xarray as xr

from ..stats.groups import label_text
from .style import colours, shaded, styled

_DASHES = {"solid": "-", "dashed": "--", "dotted": ":", "dashdot": "-."}
# name and dash of each baseline of a probe
BASELINES = {
    "embedding": ("embedding", "dashed"),
    "tfidf": ("TF-IDF of the text", "dotted"),
    "length": ("length", "dashdot"),
}


@dataclass(frozen=True)
class Line:
    """The values and style of the curve of a language, or of a group within a language."""

    name: str
    table: xr.Dataset
    colour: str
    dash: str = "solid"

    def curve(self, variable: str, label: str = "", *, dash: str = "", width: float = 2) -> Any:
        """Return the curve of a variable; its label follows the name of the line."""
        curve = hv.Curve(
            (self.table.layer.values, self.table[variable].values),
            "layer",
            variable,
            label=f"{self.name}{label}",
        )
        dash = dash or self.dash
        return styled(
            curve,
            color=self.colour,
            bokeh={"line_dash": dash, "line_width": width, "tools": [] if label else ["hover"]},
            mpl={"linestyle": _DASHES[dash], "linewidth": width},
        )

    def band(self, low: str, high: str, alpha: float) -> Any:
        """Return the area between two variables."""
        table = self.table
        area = hv.Area((table.layer.values, table[low].values, table[high].values), "layer", [low, high])
        return shaded(area, self.colour, alpha)

    def marks(self, values: xr.DataArray, label: str) -> Any:
        """Return markers at some layers."""
        points = hv.Scatter(
            (values.layer.values, values.values), "layer", str(values.name), label=f"{self.name}{label}"
        )
        return styled(
            points,
            bokeh={"size": 7, "line_color": self.colour, "fill_color": self.colour},
            mpl={"s": 40, "edgecolor": self.colour, "facecolors": self.colour},
        )


def lines_of(table: xr.Dataset) -> list[Line]:
    """Return a line per language, or per group and language with a dash pattern for each language."""
    names = [str(name) for name in table.language.values]
    dim = table.attrs.get("group_dim")
    if dim is None:
        shades = colours(names)
        return [Line(name, table.sel(language=name), shades[name]) for name in names]
    groups = [label_text(group) for group in table[dim].values]
    shades = colours(groups)
    return [
        Line(f"{name}, {group}", table.sel(language=name).isel({dim: at}), shades[group], dash)
        for name, dash in zip(names, cycle(_DASHES), strict=False)
        for at, group in enumerate(groups)
    ]
