"""The page: two tabs, what is chosen in the URL, and what happens when a browser comes and goes."""

from functools import partial
from ipaddress import ip_address
from typing import Any

import panel as pn
import panel_material_ui as pmui
import param
from bokeh.models.callbacks import CustomJS

from actkit.errors import ActkitError
from actkit.widgets.explorer import Explorer

from . import services
from .views.extracting import ExtractForm
from .views.running import RunList

_SYNCED = ("layer", "tab", "by", "pairs", "values", "tokens", "sample")


class Chosen(param.Parameterized):  # type: ignore[misc]
    """What the URL holds, beside what each explorer does."""

    page = param.Selector(default="extract", objects=["extract", "explore"], doc="the open tab")
    run = param.String("", doc="the run that is explored")
    second = param.String("", doc="the run beside it")


class Page:
    """What one browser sees."""

    def __init__(self) -> None:
        self.chosen = Chosen()
        self._asked = dict(pn.state.location.query_params) if pn.state.location else {}
        self._explorers: list[Explorer] = []
        self._runs = RunList(services.jobs(), self.explore)
        self._form = ExtractForm(
            services.settings(), services.jobs(), services.planner(), lambda _name: self._runs.update()
        )
        self._first = pmui.Select(label="Run", options=[""], width=300, margin=(6, 6))
        self._second = pmui.Select(label="Beside it", options=[""], width=300, margin=(6, 6))
        self._first.link(self.chosen, value="run")
        self._second.link(self.chosen, value="second")
        self._said = pmui.Alert(visible=False, severity="error", sizing_mode="stretch_width")
        self._places = pn.FlexBox(sizing_mode="stretch_width", gap="12px")
        extract = pn.FlexBox(
            pn.Column(self._form, styles={"flex": "2 1 560px", "min-width": "0"}),
            pn.Column(self._form.start, self._runs, styles={"flex": "1 1 340px", "min-width": "0"}),
            sizing_mode="stretch_width",
            gap="20px",
        )
        explore = pn.Column(
            pn.FlexBox(self._first, self._second), self._said, self._places, sizing_mode="stretch_width"
        )
        self._tabs = pmui.Tabs(
            ("Extract", extract), ("Explore", explore), dynamic=False, sizing_mode="stretch_width"
        )
        self._tabs.param.watch(self._tab_changed, "active")
        self.chosen.param.watch(self._open, ["run", "second"])
        self.chosen.param.watch(self._put_url, "page")
        watching = _watching_busy()
        self.view = pmui.Page(
            title="actkit",
            main=[self._tabs],
            busy_indicator=None,
        )
        for watcher in _watching_busy():
            if watcher not in watching:  # else Panel's state, which outlives all pages, holds each of them
                pn.state.param.unwatch(watcher)

    def begin(self) -> None:
        """Go on once the browser is there: nothing of this may delay the page."""
        self._runs.update()
        self._list_runs()
        self._take_url()
        milliseconds = services.settings().poll_milliseconds
        pn.state.add_periodic_callback(self._poll, period=milliseconds)
        self._form.show_plan(trial=False)

    def explore(self, name: str) -> None:
        """Open a run in the other tab."""
        self._list_runs()
        self._first.value = name
        self._tabs.active = 1

    def _poll(self) -> None:
        self._runs.update()
        if self._tabs.active == 1:
            self._list_runs()
            for explorer in self._explorers:
                explorer.refresh()

    def _list_runs(self) -> None:
        names = ["", *(run.name for run in services.jobs() if run.has_cube)]
        for widget in (self._first, self._second):
            if widget.options != names:
                widget.options = names

    def _tab_changed(self, event: Any) -> None:
        self.chosen.page = ("extract", "explore")[event.new]

    def _open(self, *_events: Any) -> None:
        names = [name for name in (self.chosen.run, self.chosen.second) if name]
        explorers, faults = [], []
        for name in names:
            try:
                explorer = Explorer(services.jobs()[name].path, services.summaries())
            except ActkitError as error:
                faults.append(str(error))
                continue
            asked = {key: value for key, value in self._asked.items() if key in _SYNCED}
            faults += explorer.choose(asked)
            explorers.append(explorer)
        self._asked = {}  # the link was followed
        self._said.param.update(title="; ".join(faults), visible=bool(faults))
        self._explorers = explorers
        self._places.objects = [
            pn.Column(own, styles={"flex": "1 1 420px", "min-width": "0"}) for own in explorers
        ]
        if explorers:
            first = explorers[0]
            first.param.watch(self._put_url, list(_SYNCED))
            for other in explorers[1:]:
                first.param.watch(partial(_follow, other), list(_SYNCED))
                other.param.watch(partial(_follow, first), ["layer", "tab"])
        for explorer in explorers:
            explorer.show()
        self._put_url()

    # the URL

    def _take_url(self) -> None:
        """Show what the link asks for; what it cannot mean is left out, and said."""
        asked, refused = self._asked, []
        for key in ("run", "second"):
            if key in asked:
                widget = self._first if key == "run" else self._second
                if str(asked[key]) in widget.options:
                    widget.value = str(asked[key])
                else:
                    refused.append(f"{key}: there is no {asked[key]!r}")
        if asked.get("page") == "explore":
            self._tabs.active = 1
        if refused:
            self._said.param.update(title="; ".join(refused), visible=True)

    def _put_url(self, *_events: Any) -> None:
        if pn.state.location is None:
            return
        told: dict[str, Any] = {"page": self.chosen.page}
        told |= {key: value for key in ("run", "second") if (value := getattr(self.chosen, key))}
        if self._explorers:
            first = self._explorers[0]
            told |= {key: value for key in _SYNCED if (value := getattr(first, key)) not in ("", -1)}
        pn.state.location.update_query(**told)


def _watching_busy() -> list[Any]:
    return list(pn.state.param.watchers.get("busy", {}).get("value", []))


def _follow(other: Explorer, *events: Any) -> None:
    for event in events:
        other.choose({event.name: event.new})


# A session ends with its connection: the page asks until a server answers, and begins again at its link.
_AGAIN = """
const again = () => fetch(location.href, {cache: "no-store"}).then(
    (answer) => answer.ok ? location.reload() : setTimeout(again, 1000), () => setTimeout(again, 1000));
again();
"""


_REFUSED = (
    "This server has no login, and the request comes from another machine. Whoever can open the page can "
    "start and delete runs: serve it with --basic-auth and --cookie-secret, or on 127.0.0.1 behind an SSH "
    "tunnel."
)


def _is_trusted() -> bool:
    """Tell whether whoever asks is on this machine, or has logged in."""
    context = pn.state.curdoc.session_context if pn.state.curdoc else None
    address = getattr(context.request, "remote_ip", None) if context and context.request else "127.0.0.1"
    try:
        is_near = ip_address(str(address)).is_loopback
    except ValueError:
        is_near = False
    return is_near or pn.state.user not in (None, "guest")


def show() -> None:
    """Make the page of this session."""
    pn.extension("tabulator", notifications=False)
    if not _is_trusted():
        refusal = pmui.Alert(title=_REFUSED, severity="error")
        pmui.Page(title="actkit", main=[refusal], busy_indicator=None).servable(title="actkit")
        return
    page = Page()
    page.view.servable(title="actkit")
    pn.state.curdoc.js_on_event("connection_lost", CustomJS(code=_AGAIN))
    pn.state.onload(page.begin, threaded=bool(pn.config.nthreads))
