"""One layer is marked in every figure; a click chooses another one, or a sample."""

from collections.abc import Callable, Sequence
from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd
from bokeh.events import Tap
from bokeh.models.annotations import BoxAnnotation

_SHADE: dict[str, Any] = {"level": "underlay", "fill_alpha": 0.15, "fill_color": "#888888", "line_alpha": 0}
# of a map, which hides what lies below it
_FRAME: dict[str, Any] = {
    "level": "overlay",
    "fill_alpha": 0,
    "line_alpha": 1,
    "line_color": "#d55e00",
    "line_width": 2,
}


class Marks:
    """The marks of a layer, and what clicks do.

    Parameters
    ----------
    layers
        Those of the cube.
    layer
        The one that is marked.
    choose_layer, choose_sample
        Called with what was clicked.
    """

    def __init__(
        self,
        layers: Sequence[int],
        layer: int,
        choose_layer: Callable[[int], None],
        choose_sample: Callable[[int], None],
    ) -> None:
        self._layers, self._layer = list(layers), layer
        self._choose_layer, self._choose_sample = choose_layer, choose_sample
        self.boxes: list[tuple[BoxAnnotation, str, str]] = []

    def draw(self, plot: Any, element: Any, axes: str) -> None:
        """Mark the layer in a figure, and listen to clicks; a hook of HoloViews.

        Parameters
        ----------
        plot, element
            What HoloViews drew, and from what.
        axes
            As of :class:`~actkit.widgets.cards.Picture`.
        """
        figure = plot.state
        if axes == "points":
            points = pd.concat([own.dframe() for own in element.traverse(specs=[hv.Points])])
            figure.on_event(Tap, lambda event: self.tapped_point(event.x, event.y, points))
            return
        look = _SHADE if axes == "x" else _FRAME
        for axis in axes:
            box = BoxAnnotation(**look)
            figure.add_layout(box)
            self.boxes.append((box, axis, axes))
            self._place(box, axis, axes)
        figure.on_event(Tap, lambda event: self.tapped(event.y if axes == "y" else event.x, axes))

    def move(self, layer: int) -> None:
        """Mark another layer; Bokeh's models may be touched under the document's lock alone."""
        self._layer = layer
        for mark in self.boxes:
            self._place(*mark)

    def tapped(self, at: float | None, axes: str) -> None:
        """Choose the layer that is nearest to a place on its axis."""
        if at is not None and np.isfinite(at):
            places = self._places(axes)
            self._choose_layer(min(places, key=lambda layer: abs(places[layer] - at)))

    def tapped_point(self, x: float | None, y: float | None, points: pd.DataFrame) -> None:
        """Choose the sample that is nearest, as the figure shows distances."""
        if x is None or y is None:
            return
        own = points[["first", "second"]]
        away = ((own - [x, y]) / (own.max() - own.min())) ** 2
        self._choose_sample(int(points["sample"].iloc[away.sum(axis=1).to_numpy().argmin()]))

    def _places(self, axes: str) -> dict[int, int]:
        """Return where layers lie on an axis: at their number, or of a map at their place."""
        return {layer: layer if axes == "x" else at for at, layer in enumerate(self._layers)}

    def _place(self, box: BoxAnnotation, axis: str, axes: str) -> None:
        at = self._places(axes).get(self._layer)
        box.visible = at is not None
        if at is not None:
            first, last = ("left", "right") if axis == "x" else ("bottom", "top")
            box.update(**{first: at - 0.5, last: at + 0.5})
