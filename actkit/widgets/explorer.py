"""Interactive explorer of a cube: norms, groups, CKA, updates and samples, with linked layer selection."""

import warnings
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
from ..object_urls import is_url
from ..reports.summaries import Summaries
from ..stats import selection
from ..stats.control_types import WORD
from ..store.layout import find_cube, open_group
from ..store.reader import open_cube
from ..store.verification import read_committed
from ..store.xarray_copies import COPY
from . import group_plots
from .background import in_background
from .cards import Card, Picture
from .marks import Marks
from .markup import language_dims, short_model, statistic_code
from .panel_style import ACCORDION, html
from .sample_list import SampleList

_NONE = "(none)"
_ESTIMATORS = {"debiased": "cka", "biased": "cka_biased", "standard error": "se"}
_WIDTH = 170  # of a widget, so that two fit side by side on a phone


class Explorer(pn.viewable.Viewer):  # type: ignore[misc]
    """Explorer of a cube, whose parameters hold the current selection.

    Parameters
    ----------
    path
        Run folder, whose cube may still be incomplete.
    summaries
        Cache of computed statistics; share one between the explorers of a process.
    """

    layer = param.Integer(0, doc="the selected layer, marked in all plots")
    tab = param.String("norms", doc="the set of plots shown")
    by = param.String("", doc="label that defines the groups")
    cluster = param.String("", doc="label that dependent samples share; empty for none")
    vectors = param.Selector(
        default="pooled", objects=["pooled", "last"], doc="which vector represents each sample"
    )
    tokens = param.Selector(default="content", objects=list(selection.TOKENS), doc="tokens included in norms")
    estimator = param.Selector(
        default="cka", objects=["cka", "cka_biased", "se"], doc="quantity shown in the CKA map"
    )
    between = param.List([], doc="the two groups to compare if the label has more")
    residuals = param.Selector(
        default="", objects=list(group_plots.RESIDUALS.values()), doc="what is removed before probes"
    )
    control = param.String("", doc="type of control tasks; empty for none")
    languages = param.List([], doc="languages shown; all if empty")
    sample = param.Integer(-1, doc="the sample whose tokens are shown; -1 for none")

    TABS = ("norms", "groups", "cka", "updates", "samples")
    CHOICES = (
        "layer",
        "tab",
        "by",
        "between",
        "cluster",
        "vectors",
        "tokens",
        "estimator",
        "residuals",
        "control",
        "languages",
        "sample",
    )

    def __init__(self, path: str | Path, summaries: Summaries | None = None, **chosen: Any) -> None:
        self.path: str | Path = str(path) if is_url(path) else Path(path)
        self._summaries = summaries or Summaries()
        self._cube = open_cube(self.path, partial=True)
        labels = selection.label_names(self._cube)
        chosen.setdefault("by", next((name for name in ("gender", "label") if name in labels), ""))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            detected = selection.cluster_choice(self._cube, by=chosen["by"]).name or ""
        self._detected, self._uncertainty = detected, " ".join(f"{entry.message}." for entry in caught)
        chosen.setdefault("cluster", detected)
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
        if not self._is_shown and pn.state.curdoc is None:  # pages of a server call draw() themselves
            self.show()
        return self._view

    def _build(self, labels: list[str], layers: list[int]) -> None:
        names = self._language_names()
        choices = {_NONE: "", **{name: name for name in labels}}
        controls = choices | {WORD: WORD}
        self._layer = pmui.DiscreteSlider(label="Layer", options=layers, value=self.layer)
        widgets = {
            "by": pmui.Select(label="Group by", options=choices, value=self.by),
            "cluster": pmui.Select(label="Cluster by", options=choices, value=self.cluster),
            "between": pmui.MultiChoice(label="Groups to compare", options=[], placeholder="two, or all"),
            "vectors": pmui.Select(label="Vectors", options=["pooled", "last"], value=self.vectors),
            "tokens": pmui.Select(
                label="Tokens included in norms", options=list(selection.TOKENS), value=self.tokens
            ),
            "estimator": pmui.Select(label="CKA map", options=_ESTIMATORS, value=self.estimator),
            "residuals": pmui.Select(
                label="Remove before probing", options=group_plots.RESIDUALS, value=self.residuals
            ),
            "control": pmui.Select(label="Control task by", options=controls, value=self.control),
            "languages": pmui.MultiChoice(label="Languages", options=names, placeholder="all"),
        }
        for name, widget in widgets.items():
            widget.param.update(width=_WIDTH, margin=(6, 6))
            widget.link(self, value=name)
            self.param.watch(lambda event, widget=widget: widget.param.update(value=event.new), name)
        self._between, self._of_probes = widgets["between"], [widgets["residuals"], widgets["control"]]
        self._offer_groups()
        self.param.watch(self._offer_groups, "by")
        self.param.watch(self._offer_probes, ["tab", "by", "between"])
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
            ("Options", pn.FlexBox(*widgets.values())),
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
        """The selection that a link must encode, as the parameters that differ from their defaults."""
        current = {name: getattr(self, name) for name in self.CHOICES}
        return {name: value for name, value in current.items() if value != self._defaults.get(name)}

    def choose(self, asked: Mapping[str, Any]) -> list[str]:
        """Set parameters one by one, and return an error for each that is invalid.

        Parameters
        ----------
        asked
            Value by parameter; numbers may be strings, as in links.
        """
        wrong = []
        labels = ["", *selection.label_names(self._cube)]
        known: dict[str, list[Any]] = {
            "layer": self._cube.layer.values.tolist(),
            "tab": list(self.TABS),
            "by": labels,
            "cluster": labels,
            "control": [*labels, WORD],
            "languages": self._language_names(),
            "sample": [-1, *self._cube.sample.values.tolist()],
        }
        # `between` comes after `by`, which determines its options
        for name in (name for name in self.CHOICES if name in asked):
            value = asked[name]
            known["between"] = list(self._between.options)
            try:
                if name in ("layer", "sample"):
                    value = int(value)
                for item in value if isinstance(value, list) else [value]:
                    if name in known and item not in known[name]:
                        raise ValueError(f"{item!r} is not in this cube")
                setattr(self, name, value)
            except ValueError as error:
                wrong.append(f"{name}: {error}")
        return wrong

    def _language_names(self) -> list[str]:
        return sorted(set(self._cube.language.values.astype(str).tolist()))

    def _offer_groups(self, *_events: Any) -> None:
        """Offer the groups of the label if there are more than two."""
        names = selection.column(self._cube, self.by, "by").texts if self.by else []
        self.between = []
        self._between.param.update(options=names, visible=len(names) > 2)
        self._offer_probes()

    def _offer_probes(self, *_events: Any) -> None:
        """Offer the options of probes where they apply: control tasks, to two groups."""
        probe = group_plots.probe_of(self._cube, self.by, self.between) if self.tab == "groups" else ""
        for widget, is_offered in zip(
            self._of_probes, (bool(probe), probe == "group_differential"), strict=True
        ):
            widget.visible = is_offered

    def refresh(self) -> None:
        """Reload the cube if more samples have been committed."""
        if self._is_whole or COPY in self._cube.attrs:
            return
        files = find_cube(self._cube.encoding["source"])
        committed, _ = read_committed(files, open_group(files), listed=True)
        self._is_whole = bool(committed.all())
        if committed.sum() != self._cube.sizes["sample"]:
            self._cube = open_cube(self.path, partial=True)
            self.show()

    def show(self) -> None:
        """Show the current selection."""
        self.lay_out()
        self.draw()

    def lay_out(self) -> None:
        """Create placeholders for the current selection, to be drawn later."""
        cube = self._cube
        model = short_model(cube.attrs.get("model", ""))
        origin = "detected" if self.cluster == self._detected else "chosen"
        clusters = f"clusters by {self.cluster} ({origin})" if self.cluster else "independent samples"
        summary = f"{cube.sizes['sample']:,} samples, {cube.sizes['layer']} layers, {model}, {clusters}"
        name = escape(Path(self.path).name)
        self._what.object = f"<h2>{name} <span class='figures'>{escape(summary)}</span></h2>"
        missing = group_plots.missing(self._cube, self.by, self.between) if self.tab == "groups" else ""
        wanted = [] if missing else self._wanted()
        self._marks.boxes.clear()
        self._cards = [Card(picture, self._marks.draw) for picture in wanted]
        listed = [self._sample_list()] if self.tab == "samples" else []
        notices = [pmui.Alert(title=missing, severity="info", sizing_mode="stretch_width")] if missing else []
        if self._uncertainty and self.cluster == self._detected:
            alert = pmui.Alert(title=self._uncertainty, severity="warning", sizing_mode="stretch_width")
            notices.append(alert)
        self._plots.objects = [*notices, *listed, *(card.view for card in self._cards)]

    def draw(self) -> None:
        """Draw the plots that are laid out, in a server thread if there is one."""
        self._is_shown = True
        cards = self._cards

        def work() -> None:
            for card in cards:
                card.draw()

        in_background(work)

    def _redraw(self, *_events: Any) -> None:
        """Redraw, unless the explorer has not been shown yet."""
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

    def _statistics(self, names: Sequence[str], options: Mapping[str, Any]) -> list[xr.Dataset]:
        asked = {option: value for option, value in options.items() if value != ""}
        results = self._summaries.get_several(self._cube, [(name, asked) for name in names])
        if not self.languages:
            return results
        return [
            _in_languages(result, name, self.languages) for name, result in zip(names, results, strict=True)
        ]

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
        """Return a plot of statistics that share their options, with its Python code."""
        how, languages = how or {}, list(self.languages)

        def make() -> tuple[Any, xr.Dataset]:
            results = self._statistics(statistics, options)
            return getattr(plots, draw)(*results, **how), results[0]

        asked = {key: value for key, value in options.items() if value != ""}
        code = self._opening + statistic_code(draw, statistics, asked, how, languages)
        return Picture(name, make, code, axes)

    @property
    def _opening(self) -> str:
        """First lines of the Python code of every plot."""
        return f"import actkit\n\ncube = actkit.open_cube({str(self.path)!r}, partial=True)\n"

    def _norms(self) -> list[Picture]:
        options = {"tokens": self.tokens, "cluster": self.cluster or None}
        pictures = [self._picture("norms", "layer_norms", ["layer_norms"], options)]
        if self.by:
            by_group = {"by": self.by, **options}
            pictures.append(self._picture("norms_by_group", "layer_norms", ["layer_norms"], by_group))
        return pictures

    def _groups(self) -> list[Picture]:
        chosen = {
            name: getattr(self, name)
            for name in ("by", "between", "cluster", "vectors", "residuals", "control")
        }
        return [
            self._picture(plot.name, plot.draw, [plot.statistic], plot.options)
            for plot in group_plots.group_plots(self._cube, **chosen)
        ]

    def _cka(self) -> list[Picture]:
        options = {"vectors": self.vectors, "cluster": self.cluster or None}
        statistics = ["adjacent_cka", "transitions"]
        how = {} if self.estimator == "cka" else {"variable": self.estimator}
        return [
            self._picture("adjacent_cka", "adjacent_cka", statistics, options),
            self._picture("cka", "cka", ["cka"], options, how=how, axes="xy"),
        ]

    def _updates(self) -> list[Picture]:
        return [
            self._picture("updates", "layer_updates", ["layer_updates"], {"cluster": self.cluster or None})
        ]

    def _samples(self) -> list[Picture]:
        cube, layer = self._shown_samples(), self.layer

        def points() -> tuple[Any, None]:
            return plots.projection(cube, layer, by=self.by or None, vectors=self.vectors), None

        arguments = f"cube, {layer}, by={self.by or None!r}, vectors={self.vectors!r}"
        opening = self._opening
        if self.languages:
            opening += f"cube = cube.isel(sample=cube.language.isin({self.languages}).values)\n"
        code = f"{opening}actkit.plots.projection({arguments})\n"
        pictures = [Picture("projection", points, code, "points")]
        if self.sample in cube.sample.values:
            sample = self.sample

            def tokens() -> tuple[Any, None]:
                return plots.tokens(cube, sample), None

            code = f"{opening}actkit.plots.tokens(cube, {sample})\n"
            pictures.append(Picture("tokens", tokens, code, "y"))
        return pictures

    def _sample_list(self) -> Any:
        """Return the list of samples; selecting one shows its tokens."""
        listed = SampleList(self._shown_samples(), sample=self.sample)
        listed.param.watch(lambda event: setattr(self, "sample", event.new), "sample")
        return pn.Column(listed, sizing_mode="stretch_width", styles={"flex": "1 1 100%", "min-width": "0"})

    def _shown_samples(self) -> xr.Dataset:
        if not self.languages:
            return self._cube
        return self._cube.isel(sample=np.flatnonzero(np.isin(self._cube.language.values, self.languages)))

    def _mark(self, event: Any) -> None:
        self._layer.value = event.new
        pn.state.execute(partial(self._marks.move, event.new))  # holds the lock of the document
        if self.tab == "samples":
            self._redraw()


def _in_languages(result: xr.Dataset, statistic: str, languages: Sequence[str]) -> xr.Dataset:
    dims = language_dims(statistic)
    return result.isel({dim: np.flatnonzero(np.isin(result[dim].values, languages)) for dim in dims})
