"""A plot on a page: drawn when it is ready, with its files and the Python that makes it."""

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
from ..reporting.writing import table_of
from .style import html

_SKELETON = 300
# browsers lend the clipboard to pages of this machine and of https alone; others have the old way
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
    """A plot, and what it is made from.

    Parameters
    ----------
    name
        Of its files.
    make
        Returns it, and the result that it shows.
    code
        The Python that makes it.
    axes
        Where layers lie: on ``x``, on ``y`` or on both (``xy``); or ``points``: each point is a sample.
    """

    name: str
    make: Callable[[], tuple[Any, xr.Dataset | None]]
    code: str
    axes: str = "x"


class Card:
    """A plot with its downloads, and a place for it until it is drawn.

    Parameters
    ----------
    picture
        What is drawn.
    mark
        A method that HoloViews calls with each figure, as it calls hooks; and ``axes``.
    """

    def __init__(self, picture: Picture, mark: Callable[..., None]) -> None:
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
        """Compute and draw it, or say why not."""
        picture = self._picture
        try:
            self._made, self._result = picture.make()
        except (ActkitError, ValueError) as error:
            self._place.objects = [pmui.Alert(title=str(error), severity="warning")]
            return
        hook = _hook(self._mark, picture.axes)
        shown = self._made
        if picture.name != "tokens":
            size = {"responsive": True, "frame_width": None, "min_width": 280}
            shown = shown.map(lambda own: own.opts(**size, backend="bokeh"), [hv.Overlay, hv.QuadMesh])
        shown = shown.map(lambda own: own.opts(hooks=[hook], backend="bokeh"), [hv.Overlay, hv.QuadMesh])
        self._place.objects = [
            pn.Column(
                pn.pane.HoloViews(shown, backend="bokeh", linked_axes=False),
                sizing_mode="stretch_width",
                styles={"overflow-x": "auto"},
            )
        ]
        for file in self._files:
            file.disabled = file.filename.endswith("csv") and self._result is None

    def _file(self, kind: str) -> BytesIO | StringIO:
        if kind == "csv":
            assert self._result is not None
            return StringIO(table_of(self._result).to_csv(index=False))
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
    """Return what HoloViews calls with a figure; its options outlive every page, and must not hold one."""
    mark = WeakMethod(method)

    def hook(plot: Any, element: Any) -> None:
        if (found := mark()) is not None:
            found(plot, element, axes)

    return hook
