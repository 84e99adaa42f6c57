"""Card for a plot: drawn when ready, with downloads and the Python code that produces it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakMethod

import holoviews as hv
import panel as pn
import panel_material_ui as pmui
import xarray as xr

from .. import plots
from ..errors import ActkitError
from ..reports.html_page import csv_of
from .panel_style import html

_SKELETON = 300
# browsers expose navigator.clipboard only on localhost and over https; elsewhere, fall back to execCommand
_COPY = """
const text = TEXT;
const old = () => {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
};
navigator.clipboard ? navigator.clipboard.writeText(text).catch(old) : old();
"""


@dataclass(frozen=True)
class Picture:
    """Specification of a plot.

    Parameters
    ----------
    name
        Base name of the downloaded files.
    make
        Returns the plot and the result that it shows.
    code
        Python code that produces the plot.
    axes
        Axes that show layers: ``x``, ``y`` or both (``xy``); or ``points`` if each point is a sample.
    """

    name: str
    make: Callable[[], tuple[Any, xr.Dataset | None]]
    code: str
    axes: str = "x"


class Card:
    """A plot with its downloads, and a placeholder until it is drawn.

    Parameters
    ----------
    picture
        The plot to draw.
    mark
        Method called with the arguments of a HoloViews hook and ``axes``; None for plots without layers.
    """

    def __init__(self, picture: Picture, mark: Callable[..., None] | None = None) -> None:
        self._picture, self._mark = picture, mark
        self._made: Any = None
        self._result: xr.Dataset | None = None
        self._place = pn.Column(
            pmui.Skeleton(height=_SKELETON, sizing_mode="stretch_width"), sizing_mode="stretch_width"
        )
        name = picture.name
        files = [("PNG", "png"), ("SVG", "svg"), ("CSV", "csv")]
        self._files = [
            pmui.FileDownload(
                label=label,
                callback=lambda kind=kind: self._file(kind),
                filename=f"{name}.{kind}",
                size="small",
                variant="text",
                disabled=True,
            )
            for label, kind in files
        ]
        self._code = html(sizing_mode="stretch_width", visible=False)
        self._python = pmui.Button(label="Python", icon="code", size="small", variant="text")
        self._python.on_click(self._turn_code)
        self._copy = pmui.Button(
            label="Copy", icon="content_copy", size="small", variant="text", visible=False
        )
        self._copy.js_on_click(code=_COPY.replace("TEXT", json.dumps(picture.code)))
        self.view = pmui.Paper(
            self._place,
            pn.FlexBox(*self._files, self._python, self._copy),
            self._code,
            min_width=320,
            margin=(4, 4),
            sizing_mode="stretch_width",
            styles={"flex": "1 1 520px", "max-width": "100%"},
        )

    def draw(self) -> None:
        """Compute and draw the plot, or show why that failed."""
        picture = self._picture
        try:
            self._made, self._result = picture.make()
        except (ActkitError, ValueError) as error:
            self._place.objects = [pmui.Alert(title=str(error), severity="warning")]
            return
        hooks = [] if self._mark is None else [_hook(self._mark, picture.axes)]
        figure = self._made
        if picture.name != "tokens":
            size = {"responsive": True, "frame_width": None, "min_width": 280}
            figure = figure.map(
                lambda element: element.opts(**size, backend="bokeh"), [hv.Overlay, hv.QuadMesh]
            )
        figure = figure.map(
            lambda element: element.opts(hooks=hooks, backend="bokeh"), [hv.Overlay, hv.QuadMesh]
        )
        self._place.objects = [
            pn.Column(
                pn.pane.HoloViews(figure, backend="bokeh", linked_axes=False),
                sizing_mode="stretch_width",
                styles={"overflow-x": "auto"},
            )
        ]
        for file in self._files:
            file.disabled = file.filename.endswith("csv") and self._result is None

    def _file(self, kind: str) -> BytesIO | StringIO:
        if kind == "csv":
            assert self._result is not None
            return StringIO(csv_of(self._result))
        with TemporaryDirectory() as folder:
            path = Path(folder, f"{self._picture.name}.{kind}")
            plots.figure(self._made, path)
            return BytesIO(path.read_bytes())

    def _turn_code(self, _event: Any) -> None:
        code = f"<pre class='code' tabindex='0' aria-label='Python'>{escape(self._picture.code)}</pre>"
        is_shown = not self._code.visible
        self._code.param.update(object=code, visible=is_shown)
        self._copy.visible = is_shown


def _hook(method: Callable[..., None], axes: str) -> Callable[[Any, Any], None]:
    """Return a HoloViews hook; it holds the method weakly, because the options of plots outlive pages."""
    mark = WeakMethod(method)

    def hook(plot: Any, element: Any) -> None:
        if (bound := mark()) is not None:
            bound(plot, element, axes)

    return hook
