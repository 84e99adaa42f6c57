"""Look at a cube: norms, groups, alignment of layers, updates, samples; one layer is chosen everywhere."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn
import panel_material_ui as pmui
import param
import xarray as xr

from .. import plots
from ..stats import parts
from ..store.checking import read_committed
from ..store.layout import open_group
from ..store.reading import open_cube
from .background import in_background
from .cards import Card, Picture
from .marks import Marks
from .markup import short_model
from .samples import SampleList
from .style import ACCORDION, html
from .summaries import Summaries

_NONE = "(none)"
_ESTIMATORS = {"debiased": "cka", "biased": "cka_biased", "standard error": "se"}
_FEWEST_FOR_TRANSITIONS = 4
_WIDTH = 170  # of a choice: two beside each other on a phone


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
    estimator = param.Selector(default="cka", objects=["cka", "cka_biased", "se"], doc="what the map shows")
    between = param.List([], doc="the two groups, of a label that has more")
    languages = param.List([], doc="those that are shown; all by default")
    sample = param.Integer(-1, doc="the sample whose tokens are shown")

    TABS = ("norms", "groups", "cka", "updates", "samples")
    CHOICES = (
        "layer",
        "tab",
        "by",
        "between",
        "pairs",
        "values",
        "tokens",
        "estimator",
        "languages",
        "sample",
    )

    def __init__(self, path: str | Path, summaries: Summaries | None = None, **chosen: Any) -> None:
        self.path = Path(path)
        self._summaries = summaries or Summaries()
        self._cube = open_cube(self.path, partial=True)
        labels = parts.label_names(self._cube)
        chosen.setdefault("by", next((name for name in ("gender", "label") if name in labels), ""))
        chosen.setdefault("pairs", parts.pairing_label(self._cube, chosen["by"]))
        known = self._cube.layer.values.tolist()
        chosen["layer"] = chosen["layer"] if chosen.get("layer") in known else known[len(known) // 2]
        super().__init__(**chosen)
        self._defaults = {name: getattr(self, name) for name in self.CHOICES if name not in ("layer", "tab")}
        self._marks = Marks(
            known,
            self.layer,
            lambda layer: setattr(self, "layer", layer),
            lambda sample: setattr(self, "sample", sample),
        )
        self._cards: list[Card] = []
        self._is_shown = self._is_whole = False
        self._build(labels, known)

    def __panel__(self) -> Any:
        if not self._is_shown and pn.state.curdoc is None:  # a page of a server says itself when it is ready
            self.show()
        return self._view

    def _build(self, labels: list[str], layers: list[int]) -> None:
        names = self._language_names()
        choices = {_NONE: "", **{name: name for name in labels}}
        self._layer = pmui.DiscreteSlider(label="Layer", options=layers, value=self.layer)
        widgets = {
            "by": pmui.Select(label="Groups", options=choices, value=self.by),
            "pairs": pmui.Select(label="Not independent", options=choices, value=self.pairs),
            "between": pmui.MultiChoice(label="Compared groups", options=[], placeholder="choose two"),
            "values": pmui.Select(label="Vectors", options=["pooled", "last"], value=self.values),
            "tokens": pmui.Select(label="Tokens of norms", options=list(parts.TOKENS), value=self.tokens),
            "estimator": pmui.Select(label="Map of CKA", options=_ESTIMATORS, value=self.estimator),
            "languages": pmui.MultiChoice(label="Languages", options=names, placeholder="all"),
        }
        for name, widget in widgets.items():
            widget.param.update(width=_WIDTH, margin=(6, 6))
            widget.link(self, value=name)
            self.param.watch(lambda event, widget=widget: widget.param.update(value=event.new), name)
        self._between = widgets["between"]
        self._offer_groups()
        self.param.watch(self._offer_groups, "by")
        self._layer.link(self, value="layer")
        self.param.watch(self._mark, "layer")
        self.param.watch(self._redraw, [name for name in self.CHOICES if name != "layer"])
        self._tabs = pmui.RadioButtonGroup(
            label="Plots",
            options={"CKA" if name == "cka" else name.capitalize(): name for name in self.TABS},
            value=self.tab,
        )
        self._tabs.link(self, value="tab")
        self.param.watch(lambda event: self._tabs.param.update(value=event.new), "tab")
        self._what = html(sizing_mode="stretch_width")
        self._plots = pn.FlexBox(sizing_mode="stretch_width", gap="12px")
        self.choices = pmui.Accordion(
            ("Choices", pn.FlexBox(*widgets.values())),
            active=[0],
            title_variant="h3",
            sx=ACCORDION,
            sizing_mode="stretch_width",
        )
        self._view = pn.Column(
            self._what,
            pn.FlexBox(self._tabs, self._layer, gap="24px"),
            self.choices,
            self._plots,
            sizing_mode="stretch_width",
        )

    # what is shown

    @property
    def chosen(self) -> dict[str, Any]:
        """What a link must hold, that is the layer, the tab, and what is not as it was at first."""
        own = {name: getattr(self, name) for name in self.CHOICES}
        return {name: value for name, value in own.items() if value != self._defaults.get(name)}

    def choose(self, asked: Mapping[str, Any]) -> list[str]:
        """Set parameters one by one, and return what is wrong with those that cannot be.

        Parameters
        ----------
        asked
            Parameter to value; numbers may be text, as they are in links.
        """
        wrong = []
        labels = ["", *parts.label_names(self._cube)]
        known: dict[str, list[Any]] = {
            "layer": self._cube.layer.values.tolist(),
            "tab": list(self.TABS),
            "by": labels,
            "pairs": labels,
            "languages": self._language_names(),
            "sample": [-1, *self._cube.sample.values.tolist()],
        }
        for name in (name for name in self.CHOICES if name in asked):  # groups after their label
            value = asked[name]
            known["between"] = list(self._between.options)
            try:
                if name in ("layer", "sample"):
                    value = int(value)
                for own in value if isinstance(value, list) else [value]:
                    if name in known and own not in known[name]:
                        raise ValueError(f"{own!r} is not in this cube")
                setattr(self, name, value)
            except ValueError as error:
                wrong.append(f"{name}: {error}")
        return wrong

    def _language_names(self) -> list[str]:
        return sorted(set(self._cube.language.values.astype(str).tolist()))

    def _offer_groups(self, *_events: Any) -> None:
        """Offer the groups of the label, where two of them are to be chosen."""
        names = sorted(set(self._cube[self.by].values.astype(str).tolist())) if self.by else []
        self.between = []
        self._between.param.update(options=names, visible=len(names) > 2)

    def refresh(self) -> None:
        """Look at the cube again: one that is being written has grown."""
        if self._is_whole:
            return
        folder = Path(self._cube.encoding["source"])
        committed, _ = read_committed(folder, open_group(folder))
        self._is_whole = bool(committed.all())
        if committed.sum() != self._cube.sizes["sample"]:
            self._cube = open_cube(self.path, partial=True)
            self.show()

    def show(self) -> None:
        """Show what is chosen."""
        self.lay_out()
        self.draw()

    def lay_out(self) -> None:
        """Make places for what is chosen, which is drawn later."""
        cube = self._cube
        model = short_model(cube.attrs.get("model", ""))
        told = f"{cube.sizes['sample']:,} samples, {cube.sizes['layer']} layers, {model}"
        name = escape(self.path.name)
        self._what.object = f"<h2>{name} <span class='figures'>{escape(told)}</span></h2>"
        missing = self._missing()
        wanted = [] if missing else self._wanted()
        self._marks.boxes.clear()
        self._cards = [Card(picture, self._marks.draw) for picture in wanted]
        listed = [self._sample_list()] if self.tab == "samples" else []
        said = [pmui.Alert(title=missing, severity="info", sizing_mode="stretch_width")] if missing else []
        self._plots.objects = [*said, *listed, *(card.view for card in self._cards)]

    def draw(self) -> None:
        """Draw what is laid out; in a thread of the server, where it has any."""
        self._is_shown = True
        cards = self._cards

        def work() -> None:
            for card in cards:
                card.draw()

        in_background(work)

    def _redraw(self, *_events: Any) -> None:
        """Draw again; what is chosen before the first time is drawn then."""
        if self._is_shown:
            self.show()

    def _missing(self) -> str:
        """Say what is to be chosen before there is anything to see."""
        if self.tab != "groups":
            return ""
        if not self.by:
            return "Choose a label under Groups: it tells which samples are compared."
        groups = self._between.options
        if len(groups) > 2 and len(self.between) != 2:
            return f"{self.by} has {len(groups)} groups: choose two under Compared groups."
        return ""

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
        found = self._summaries.get(self._cube, name, **asked)
        if self.languages:
            for dim in _language_dims(name):
                shown = [language for language in found[dim].values.tolist() if language in self.languages]
                found = found.sel({dim: shown})
        return found

    def _picture(
        self,
        name: str,
        draw: str,
        statistics: Sequence[str],
        options: Mapping[str, Any],
        *,
        how: Mapping[str, Any] | None = None,
        axes: str = "x",
    ) -> Picture:
        """Return a picture of statistics with the same options, and the Python that makes it."""
        how, languages = how or {}, list(self.languages)

        def make() -> tuple[Any, xr.Dataset]:
            found = [self._statistic(statistic, **options) for statistic in statistics]
            return getattr(plots, draw)(*found, **how), found[0]

        told = _arguments("cube", **{key: value for key, value in options.items() if value != ""})
        lines = [self._opening]
        for statistic in statistics:
            lines.append(f"{statistic} = actkit.{statistic}({told})\n")
            if languages:
                told_languages = _arguments(**dict.fromkeys(_language_dims(statistic), languages))
                lines.append(f"{statistic} = {statistic}.sel({told_languages})\n")
        lines.append(f"actkit.plots.{draw}({_arguments(*statistics, **how)})\n")
        return Picture(name, make, "".join(lines), axes)

    @property
    def _opening(self) -> str:
        """The Python that any picture begins with."""
        return f"import actkit\n\ncube = actkit.open_cube({str(self.path)!r}, partial=True)\n"

    def _norms(self) -> list[Picture]:
        told = {"tokens": self.tokens}
        found = [self._picture("norms", "layer_norms", ["layer_norms"], told)]
        if self.by:
            by_group = {"by": self.by, **told}
            found.append(self._picture("norms_by_group", "layer_norms", ["layer_norms"], by_group))
        return found

    def _groups(self) -> list[Picture]:
        told: dict[str, Any] = {"by": self.by, "pairs": self.pairs or None, "values": self.values}
        if self.between:
            told["labels"] = tuple(self.between)
        found = [self._picture("groups", "group_differential", ["group_differential"], told)]
        if len(self._language_names()) > 1:
            found.append(self._picture("transfer", "transfer", ["transfer"], told))
        return found

    def _cka(self) -> list[Picture]:
        told = {"values": self.values, "pairs": self.pairs}
        both = ["adjacent_cka", "transitions"]
        if self._cube.sizes["layer"] < _FEWEST_FOR_TRANSITIONS:
            both.pop()
        how = {} if self.estimator == "cka" else {"variable": self.estimator}
        return [
            self._picture("adjacent_cka", "adjacent_cka", both, told),
            self._picture("cka", "cka", ["cka"], told, how=how, axes="xy"),
        ]

    def _updates(self) -> list[Picture]:
        return [self._picture("updates", "layer_updates", ["layer_updates"], {})]

    def _samples(self) -> list[Picture]:
        cube, layer = self._shown_samples(), self.layer

        def points() -> tuple[Any, None]:
            return plots.projection(cube, layer, by=self.by or None, values=self.values), None

        told = f"cube, {layer}, by={self.by or None!r}, values={self.values!r}"
        opening = self._opening
        if self.languages:
            opening += f"cube = cube.isel(sample=cube.language.isin({self.languages}).values)\n"
        code = f"{opening}actkit.plots.projection({told})\n"
        found = [Picture("projection", points, code, "points")]
        if self.sample in cube.sample.values:
            sample = self.sample

            def tokens() -> tuple[Any, None]:
                return plots.tokens(cube, sample), None

            code = f"{opening}actkit.plots.tokens(cube, {sample})\n"
            found.append(Picture("tokens", tokens, code, "y"))
        return found

    def _sample_list(self) -> Any:
        """Return the samples with their texts; a click shows the tokens of one."""
        listed = SampleList(self._shown_samples(), sample=self.sample)
        listed.param.watch(lambda event: setattr(self, "sample", event.new), "sample")
        return pn.Column(listed, sizing_mode="stretch_width", styles={"flex": "1 1 100%", "min-width": "0"})

    def _shown_samples(self) -> xr.Dataset:
        if not self.languages:
            return self._cube
        return self._cube.isel(sample=np.flatnonzero(np.isin(self._cube.language.values, self.languages)))

    def _mark(self, event: Any) -> None:
        self._layer.value = event.new
        pn.state.execute(partial(self._marks.move, event.new))  # where the document is locked
        if self.tab == "samples":
            self._redraw()


def _language_dims(statistic: str) -> tuple[str, ...]:
    return ("train", "test") if statistic == "transfer" else ("language",)


def _arguments(*names: str, **options: Any) -> str:
    """Write the arguments of a call."""
    return ", ".join([*names, *(f"{name}={value!r}" for name, value in options.items())])
