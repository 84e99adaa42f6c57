"""Marker of the selected layer in every figure; clicks select another layer or a sample."""

from collections.abc import Callable, Sequence
from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd
from bokeh.events import Tap
from bokeh.models.annotations import BoxAnnotation

_SHADE: dict[str, Any] = {"level": "underlay", "fill_alpha": 0.15, "fill_color": "#888888", "line_alpha": 0}
# for maps, which would hide an underlay
_FRAME: dict[str, Any] = {
    "level": "overlay",
    "fill_alpha": 0,
    "line_alpha": 1,
    "line_color": "#d55e00",
    "line_width": 2,
}


class Marks:
    """Markers of the selected layer, and handlers of clicks.

    Parameters
    ----------
    layers
        Layers of the cube.
    layer
        The layer to mark.
    choose_layer, choose_sample
        Called with the clicked layer or sample.
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
        """Mark the layer in a figure and handle clicks; called from a HoloViews hook.

        Parameters
        ----------
        plot, element
            The HoloViews plot and the element that it draws.
        axes
            As for :class:`~actkit.widgets.cards.Picture`.
        """
        figure = plot.state
        if axes == "points":
            points = pd.concat([group.dframe() for group in element.traverse(specs=[hv.Points])])
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
        """Mark another layer; must be called while holding the lock of the Bokeh document."""
        self._layer = layer
        for mark in self.boxes:
            self._place(*mark)

    def tapped(self, at: float | None, axes: str) -> None:
        """Select the layer nearest to a position on its axis."""
        if at is not None and np.isfinite(at):
            places = self._places(axes)
            self._choose_layer(min(places, key=lambda layer: abs(places[layer] - at)))

    def tapped_point(self, x: float | None, y: float | None, points: pd.DataFrame) -> None:
        """Select the nearest sample, with distances scaled as in the figure."""
        if x is None or y is None:
            return
        coordinates = points[["first", "second"]]
        distances = ((coordinates - [x, y]) / (coordinates.max() - coordinates.min())) ** 2
        self._choose_sample(int(points["sample"].iloc[distances.sum(axis=1).to_numpy().argmin()]))

    def _places(self, axes: str) -> dict[int, int]:
        """Return the position of each layer on an axis: its number, or its index in a map."""
        return {layer: layer if axes == "x" else at for at, layer in enumerate(self._layers)}

    def _place(self, box: BoxAnnotation, axis: str, axes: str) -> None:
        at = self._places(axes).get(self._layer)
        box.visible = at is not None
        if at is not None:
            first, last = ("left", "right") if axis == "x" else ("bottom", "top")
            box.update(**{first: at - 0.5, last: at + 0.5})
