"""Look at a cube: norms, groups, alignment of layers, updates, samples; one layer is chosen everywhere."""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr
from bokeh.events import Tap
from bokeh.models.annotations import BoxAnnotation

from .. import plots
from ..stats import parts
from ..store.reading import open_cube
from .background import in_background
from .cards import Card, Picture
from .style import STYLE
from .summaries import Summaries

NONE = "(none)"
_ROWS = 10  # of the list of samples, on a page
_SHADE: dict[str, Any] = {"fill_alpha": 0.15, "fill_color": "#888888", "line_alpha": 0}
_FRAME: dict[str, Any] = {"fill_alpha": 0.0, "line_color": "#d55e00", "line_width": 2}


class Explorer(pn.viewable.Viewer):  # type: ignore[misc]
    """A cube, to be looked at. Its parameters are all that was chosen.

    Parameters
    ----------
    path
        Run folder; one that is still being written too.
    summaries
        What was computed before; of the process, where several look at cubes.
    """

    layer = param.Integer(0, doc="the layer that is marked everywhere")
    tab = param.String("norms", doc="which plots are shown")
    by = param.String("", doc="label that tells groups; none by default")
    pairs = param.String("", doc="label of samples that are not independent")
    values = param.Selector(default="pooled", objects=["pooled", "last"], doc="one vector a sample")
    tokens = param.Selector(default="content", objects=list(parts.TOKENS), doc="which tokens count for norms")
    languages = param.List([], doc="those that are shown; all by default")
    sample = param.Integer(-1, doc="the sample whose tokens are shown")

    TABS = ("norms", "groups", "cka", "updates", "samples")

    def __init__(self, path: str | Path, summaries: Summaries | None = None, **chosen: Any) -> None:
        self.path = Path(path)
        self._summaries = summaries or Summaries()
        self._cube = open_cube(self.path, partial=True)
        labels = parts.label_names(self._cube)
        chosen.setdefault("by", next((name for name in ("gender", "label") if name in labels), ""))
        pairs = (name for name in ("image_id", "pair_group") if name in labels)
        chosen.setdefault("pairs", next(pairs, ""))
        known = self._cube.layer.values.tolist()
        chosen["layer"] = chosen["layer"] if chosen.get("layer") in known else known[len(known) // 2]
        super().__init__(**chosen)
        self._marks: list[tuple[Any, bool]] = []
        self._is_shown = False
        self._build(labels, known)

    def __panel__(self) -> Any:
        return self._view

    def _build(self, labels: list[str], layers: list[int]) -> None:
        names = sorted(set(self._cube.language.values.astype(str).tolist()))
        choices = {NONE: "", **{name: name for name in labels}}
        self._layer = pmui.DiscreteSlider(label="Layer", options=layers, value=self.layer)
        widgets = {
            "by": pmui.Select(label="Groups", options=choices, value=self.by),
            "pairs": pmui.Select(label="Not independent", options=choices, value=self.pairs),
            "values": pmui.Select(label="Vectors", options=["pooled", "last"], value=self.values),
            "tokens": pmui.Select(label="Tokens of norms", options=list(parts.TOKENS), value=self.tokens),
            "languages": pmui.MultiChoice(label="Languages", options=names, placeholder="all"),
        }
        for name, widget in widgets.items():
            widget.param.update(width=190, margin=(6, 6))
            widget.link(self, value=name)
            self.param.watch(lambda event, widget=widget: widget.param.update(value=event.new), name)
        self._layer.link(self, value="layer")
        self.param.watch(self._mark, "layer")
        self.param.watch(self._redraw, ["by", "pairs", "values", "tokens", "languages", "tab", "sample"])
        self._tabs = pmui.RadioButtonGroup(
            label="Plots", options={name.capitalize(): name for name in self.TABS}, value=self.tab
        )
        self._tabs.link(self, value="tab")
        self.param.watch(lambda event: self._tabs.param.update(value=event.new), "tab")
        self._what = pn.pane.HTML("", stylesheets=[STYLE], sizing_mode="stretch_width")
        self._plots = pn.FlexBox(sizing_mode="stretch_width", gap="12px")
        self._view = pn.Column(
            self._what,
            pn.FlexBox(self._layer, *widgets.values()),
            self._tabs,
            self._plots,
            sizing_mode="stretch_width",
        )

    # what is shown

    def choose(self, asked: Mapping[str, Any]) -> list[str]:
        """Set parameters one by one, and return what is wrong with those that cannot be.

        Parameters
        ----------
        asked
            Parameter to value, such as those of a link.
        """
        wrong = []
        known: dict[str, list[Any]] = {
            "layer": self._cube.layer.values.tolist(),
            "tab": list(self.TABS),
            "by": ["", *parts.label_names(self._cube)],
            "pairs": ["", *parts.label_names(self._cube)],
        }
        for name, value in asked.items():
            try:
                if name in ("layer", "sample"):
                    value = int(value)  # links know numbers alone
                if name in known and value not in known[name]:
                    raise ValueError(f"{value!r} is not among {', '.join(map(str, known[name]))}")
                setattr(self, name, value)
            except ValueError as error:
                wrong.append(f"{name}: {error}")
        return wrong

    def refresh(self) -> None:
        """Look at the cube again: one that is being written has grown."""
        cube = open_cube(self.path, partial=True)
        if cube.sizes["sample"] != self._cube.sizes["sample"]:
            self._cube = cube
            self.show()

    def show(self) -> None:
        """Draw what is chosen; in a thread of the server, where it has any."""
        self._is_shown = True
        cube = self._cube
        told = f"{self.path.name}: {cube.sizes['sample']:,} samples, {cube.sizes['layer']} layers"
        self._what.object = f"<span class='figures'>{escape(told)}</span>"
        wanted = self._wanted()
        self._marks.clear()
        cards = [Card(picture, self.mark) for picture in wanted]
        listed = [self._sample_list()] if self.tab == "samples" else []
        self._plots.objects = [*listed, *(card.view for card in cards)]

        def draw() -> None:
            for card in cards:
                card.draw()

        in_background(draw)

    def _redraw(self, *_events: Any) -> None:
        """Draw again; what is chosen before the first time is drawn then."""
        if self._is_shown:
            self.show()

    def _wanted(self) -> list[Picture]:
        makers: dict[str, Callable[[], list[Picture]]] = {
            "norms": self._norms,
            "groups": self._groups,
            "cka": self._cka,
            "updates": self._updates,
            "samples": self._samples,
        }
        return makers[self.tab]()

    def _statistic(self, name: str, **options: Any) -> xr.Dataset:
        asked = {option: value for option, value in options.items() if value != ""}
        found = self._summaries.get(self.path, name, **asked)
        if self.languages and "language" in found.dims:
            own = [language for language in found.language.values.tolist() if language in self.languages]
            found = found.sel(language=own)
            if "language_2" in found.dims:
                found = found.sel(language_2=own)
        return found

    def _picture(
        self, name: str, draw: str, statistic: str, *, is_square: bool = False, **options: Any
    ) -> Picture:
        def make() -> tuple[Any, xr.Dataset]:
            found = self._statistic(statistic, **options)
            return getattr(plots, draw)(found), found

        told = ", ".join(["cube", *(f"{key}={value!r}" for key, value in options.items() if value != "")])
        code = f"{self._opening}found = actkit.{statistic}({told})\nactkit.plots.{draw}(found)\n"
        return Picture(name, make, code, is_square)

    @property
    def _opening(self) -> str:
        """The Python that any picture begins with."""
        return f"import actkit\n\ncube = actkit.open_cube({str(self.path)!r}, partial=True)\n"

    def _norms(self) -> list[Picture]:
        found = [self._picture("norms", "layer_norms", "layer_norms", tokens=self.tokens)]
        if self.by:
            found.append(
                self._picture("norms_by_group", "layer_norms", "layer_norms", by=self.by, tokens=self.tokens)
            )
        return found

    def _groups(self) -> list[Picture]:
        if not self.by:
            return []
        told = {"by": self.by, "pairs": self.pairs or None, "values": self.values}
        found = [self._picture("groups", "group_differential", "group_differential", **told)]
        if len(set(self._cube.language.values.tolist())) > 1:
            found.append(self._picture("transfer", "transfer", "transfer", **told))
        return found

    def _cka(self) -> list[Picture]:
        told = {"values": self.values, "pairs": self.pairs}

        def neighbours() -> tuple[Any, xr.Dataset]:
            found = self._statistic("adjacent_cka", **told)
            abrupt = self._statistic("transitions", **told) if self._cube.sizes["layer"] > 3 else None
            return plots.adjacent_cka(found, abrupt), found

        first = self._picture("adjacent_cka", "adjacent_cka", "adjacent_cka", **told)
        return [
            Picture(first.name, neighbours, first.code),
            self._picture("cka", "cka", "cka", is_square=True, **told),
        ]

    def _updates(self) -> list[Picture]:
        return [self._picture("updates", "layer_updates", "layer_updates")]

    def _samples(self) -> list[Picture]:
        cube, layer = self._shown_samples(), self.layer

        def points() -> tuple[Any, None]:
            return plots.projection(cube, layer, by=self.by or None, values=self.values), None

        told = f"cube, {layer}, by={self.by or None!r}, values={self.values!r}"
        found = [Picture("projection", points, f"{self._opening}actkit.plots.projection({told})\n")]
        if self.sample in cube.sample.values:
            sample = self.sample

            def tokens() -> tuple[Any, None]:
                return plots.tokens(cube, sample), None

            found.append(Picture("tokens", tokens, f"{self._opening}actkit.plots.tokens(cube, {sample})\n"))
        return found

    def _sample_list(self) -> Any:
        """Return the samples with their texts; a click shows the tokens of one."""
        cube = self._shown_samples()
        names = ["language", *parts.label_names(cube), "text"]
        told = {name: cube[name].values.astype(str) for name in names}
        table = pd.DataFrame(told, index=pd.Index(cube.sample.values, name="sample"))
        shown = pn.widgets.Tabulator(
            table,
            pagination="remote",
            page_size=_ROWS,
            disabled=True,
            selectable=1,
            layout="fit_data_stretch",
            formatters=dict.fromkeys(names, "plaintext"),  # markup in a text stays text
            header_filters={"text": {"type": "input", "func": "like", "placeholder": "find"}},
            stylesheets=[".tabulator-cell { unicode-bidi: plaintext; text-align: start !important; }"],
            sizing_mode="stretch_width",
        )
        shown.on_click(lambda event: setattr(self, "sample", int(shown.current_view.index[event.row])))
        return pn.Column(shown, sizing_mode="stretch_width", styles={"flex": "1 1 100%", "min-width": "0"})

    def _shown_samples(self) -> xr.Dataset:
        if not self.languages:
            return self._cube
        return self._cube.isel(sample=np.flatnonzero(np.isin(self._cube.language.values, self.languages)))

    # one layer, everywhere

    def mark(self, plot: Any, _element: Any, *, is_square: bool) -> None:
        """Mark the layer in a figure, and let clicks choose another; a hook of HoloViews."""
        figure = plot.state
        places = self._places(is_square)
        for dimension in ("left", "bottom") if is_square else ("left",):
            look = _FRAME if is_square else _SHADE
            box = BoxAnnotation(level="overlay" if is_square else "underlay", **look)
            figure.add_layout(box)
            self._marks.append((box, is_square))
            box.tags = [dimension]
            _place(box, places.get(self.layer))
        figure.on_event(Tap, lambda event: self._tapped(event.x, places))

    def _places(self, is_square: bool) -> dict[int, int]:
        """Return where layers lie on an axis: at their number, or of a map at their place."""
        layers = self._cube.layer.values.tolist()
        return {layer: at if is_square else layer for at, layer in enumerate(layers)}

    def _tapped(self, x: float | None, places: dict[int, int]) -> None:
        if x is not None and np.isfinite(x):
            self.layer = min(places, key=lambda layer: abs(places[layer] - x))

    def _mark(self, event: Any) -> None:
        self._layer.value = event.new
        for box, is_square in self._marks:
            _place(box, self._places(is_square).get(event.new))
        if self.tab == "samples":
            self._redraw()


def _place(box: BoxAnnotation, at: int | None) -> None:
    box.visible = at is not None
    if at is not None:
        own = {"left": at - 0.5, "right": at + 0.5}
        box.update(**(own if box.tags == ["left"] else {"bottom": at - 0.5, "top": at + 0.5}))
