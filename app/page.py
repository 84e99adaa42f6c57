"""The page of a session: two tabs, state in the URL, and reconnection."""

import sys
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import panel as pn
import panel_material_ui as pmui
from bokeh.models.callbacks import CustomJS
from panel.io.location import Location

from actkit.errors import ActkitError, StorageError
from actkit.object_urls import is_url
from actkit.widgets.explorer import Explorer

from . import services
from .allowed_hosts import allowed_origins, is_own_host
from .allowed_urls import allowed, has_folders, named
from .views.run_form import ExtractForm
from .views.run_list import RunList
from .views.training_view import TrainingView

_TABS = ("extract", "explore")
_REMOTE_SECONDS = 15.0
_SEPARATE = "languages"  # chosen for each cube separately; everything else applies to both
_SECOND = "languages_2"
_LISTS = ("languages", "between")


class Page:
    """Page of one browser session."""

    def __init__(self) -> None:
        search = pn.state.location.search if pn.state.location else ""
        self._asked = parse_qs(search.removeprefix("?"), keep_blank_values=True)
        self._explorers: list[Explorer | TrainingView] = []
        self._form: ExtractForm | None = None
        self._runs: RunList | None = None
        self._is_begun = False
        self._next = 0.0
        self._first = pmui.Select(label="Run", options=[""], width=300, margin=(6, 6))
        self._second = pmui.Select(label="Compare with", options=[""], width=300, margin=(6, 6))
        for widget in (self._first, self._second):
            widget.param.watch(self._open, "value")
        self._urls = named(services.settings().urls)  # those that this session may choose from
        self._url = pmui.TextInput(
            label="Run at a URL", placeholder="s3://bucket/runs/x", width=420, margin=(6, 6)
        )
        self._url.visible = has_folders(services.settings().urls)
        self._url.param.watch(self._typed, "value")
        self._said = pmui.Alert(visible=False, severity="error", sizing_mode="stretch_width")
        self._places = pn.FlexBox(sizing_mode="stretch_width", gap="12px")
        self._extract = pn.FlexBox(sizing_mode="stretch_width", gap="20px")
        explore = pn.Column(
            pn.FlexBox(self._first, self._second, self._url),
            self._said,
            self._places,
            sizing_mode="stretch_width",
        )
        self._tabs = pmui.Tabs(
            ("Extract", self._extract),
            ("Explore", explore),
            active=int(self._asked.pop("page", [])[-1:] == ["explore"]),
            sizing_mode="stretch_width",
        )
        self._fill_tab()
        self._take_url()
        self._tabs.param.watch(self._tab_changed, "active")
        watching = _watching_busy()
        self.view = pmui.Page(
            title="actkit",
            main=[self._tabs],
            busy_indicator=None,
        )
        for watcher in _watching_busy():
            if watcher not in watching:  # otherwise Panel's global state would keep every page alive
                pn.state.param.unwatch(watcher)

    def _fill_tab(self) -> None:
        """Create the contents of the open tab; the other tab is filled when it is opened."""
        self._list_runs()
        if self._tabs.active == 1 or self._form:
            return
        self._runs = RunList(services.jobs(), self.explore)
        self._form = ExtractForm(services.settings(), services.jobs(), services.planner(), self._started)
        self._extract.objects = [
            pn.Column(self._form, styles={"flex": "2 1 560px", "min-width": "0"}),
            pn.Column(self._form.start, self._runs, styles={"flex": "1 1 340px", "min-width": "0"}),
        ]

    def _started(self, _name: str) -> None:
        assert self._runs is not None
        self._runs.update()

    def begin(self) -> None:
        """Start drawing and polling once the browser has loaded the page."""
        self._is_begun = True
        for explorer in self._explorers:
            explorer.draw()
        self._begin_tab()
        milliseconds = services.settings().poll_milliseconds
        pn.state.add_periodic_callback(self._poll, period=milliseconds)

    def _begin_tab(self) -> None:
        if self._form and self._runs and self._tabs.active == 0:
            self._runs.update()
            self._form.show_plan(trial=False)
        self._put_url()

    def explore(self, name: str) -> None:
        """Open a run in the Explore tab."""
        self._list_runs()
        self._first.value = name
        self._tabs.active = 1

    def _poll(self) -> None:
        if self._tabs.active == 0:
            if self._runs:
                self._runs.update()
            return
        self._list_runs()
        may_ask = time.monotonic() >= self._next  # runs at URLs, which takes requests
        if may_ask:
            self._next = time.monotonic() + _REMOTE_SECONDS
        for explorer in self._explorers:
            if may_ask or not is_url(explorer.path):
                with suppress(StorageError):  # a server that is away for a while
                    explorer.refresh()

    def _tab_changed(self, _event: Any) -> None:
        self._fill_tab()
        self._begin_tab()

    def _list_runs(self) -> None:
        names = ["", *self._run_names(), *self._urls]
        for widget in (self._first, self._second):
            if widget.options != names:
                widget.options = names
            if widget.value not in names:  # the run was deleted
                widget.value = ""

    def _run_names(self) -> list[str]:
        return [run.name for run in services.jobs() if run.has_cube or run.is_training]

    @property
    def _cubes(self) -> list[Explorer]:
        """Explorers of the cubes that are open; they share their choices, which trainings do not have."""
        return [explorer for explorer in self._explorers if isinstance(explorer, Explorer)]

    def _open(self, *_events: Any) -> None:
        """Open the chosen cubes and trainings; those that are already open are unchanged."""
        open_before, self._explorers, faults = self._explorers, [], []
        for place, widget in enumerate((self._first, self._second)):
            if not widget.value:
                continue
            try:
                run = self._where(widget.value)
                explorer = next(
                    (opened for opened in open_before[place : place + 1] if opened.path == run), None
                )
                if explorer is None:
                    explorer = self._view_of(widget.value, run)
                    if isinstance(explorer, Explorer):
                        faults += self._set_up(explorer)
            except ActkitError as error:
                faults.append(str(error))
            else:
                self._explorers.append(explorer)
        self._said.param.update(title="; ".join(faults), visible=bool(faults))
        self._places.objects = [
            pn.Column(explorer, styles={"flex": "1 1 420px", "min-width": "0"})
            for explorer in self._explorers
        ]
        for explorer in self._explorers:
            if explorer not in open_before:
                explorer.lay_out()
                if self._is_begun:
                    explorer.draw()
        self._put_url()

    def _where(self, name: str) -> str | Path:
        """Return the URL, or the folder, of a run."""
        return allowed(services.settings().urls, name) if is_url(name) else services.jobs()[name].path

    def _view_of(self, name: str, run: str | Path) -> Explorer | TrainingView:
        if not is_url(name) and (training := services.jobs()[name]).is_training:
            return TrainingView(services.jobs(), training)
        return Explorer(run, services.summaries())

    def _typed(self, event: Any) -> None:
        """Choose the run at a URL that was typed."""
        if not event.new:
            return
        try:
            self._first.value = self._add_url(event.new.strip())
        except ActkitError as error:
            self._said.param.update(title=str(error), visible=True)

    def _add_url(self, url: str) -> str:
        """Add the URL of a run to those of this session, if it is allowed."""
        url = allowed(services.settings().urls, url)
        if url not in self._urls:
            self._urls.append(url)
            self._list_runs()
        return url

    def _set_up(self, explorer: Explorer) -> list[str]:
        """Apply the selection of the link, or of the first cube, to a cube; return the errors."""
        if self._cubes:
            shared = {name: value for name, value in self._cubes[0].chosen.items() if name != _SEPARATE}
            explorer.choices.active = []  # most options follow those of the first cube
            explorer.choose(shared)  # ignoring errors: the cubes may differ in layers and labels
            asked = {_SEPARATE: self._asked.pop(_SECOND, [])}
        else:
            asked = {name: self._asked.pop(name) for name in Explorer.CHOICES if name in self._asked}
        selection = {name: value if name in _LISTS else value[-1] for name, value in asked.items()}
        faults = explorer.choose(selection)
        explorer.param.watch(self._chosen, list(Explorer.CHOICES))
        return faults

    def _chosen(self, *events: Any) -> None:
        """Apply a change to the other cube."""
        for event in events:
            for other in self._cubes:
                if other is not event.obj and event.name != _SEPARATE:
                    other.choose({event.name: event.new})
        self._put_url()

    # the URL

    def _take_url(self) -> None:
        """Apply the runs of the link; report and ignore those that do not exist."""
        refused = []
        for key, widget in (("run", self._first), ("second", self._second)):
            for name in self._asked.pop(key, [])[-1:]:
                try:
                    name = self._add_url(name) if is_url(name) else name
                except ActkitError as error:
                    refused.append(f"{key}: {error}")
                    continue
                if name in widget.options:
                    widget.value = name
                else:
                    refused.append(f"{key}: there is no run {name!r}")
        if refused:
            self._said.param.update(title="; ".join(refused), visible=True)

    def _put_url(self, *_events: Any) -> None:
        if pn.state.location is None or not self._is_begun:
            return
        query: dict[str, Any] = {"page": _TABS[self._tabs.active]}
        query |= {"run": self._first.value, "second": self._second.value}
        cubes = self._cubes
        if cubes:
            query |= cubes[0].chosen
        if len(cubes) > 1:
            query[_SECOND] = cubes[1].languages
        kept = {name: value for name, value in query.items() if value or name in Explorer.CHOICES}
        pn.state.location.search = f"?{urlencode(self._asked | kept, doseq=True)}"


def _watching_busy() -> list[Any]:
    return list(pn.state.param.watchers.get("busy", {}).get("value", []))


# A session ends with its connection: poll until a server answers, then reload the page from its link.
_AGAIN = """
const again = () => fetch(location.href, {cache: "no-store"}).then(
    (answer) => answer.ok ? location.reload() : setTimeout(again, 1000), () => setTimeout(again, 1000));
again();
"""


# The theme belongs to the reader, not to the link: the browser stores it and defaults to the system's theme.
# Make the title the first-level heading, hide the empty heading below it, and remove the idle progress bar.
_READY = """
const asked = new URLSearchParams(location.search).get("theme") || localStorage.getItem("actkit-theme");
const is_dark = asked ? asked == "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
for (const shown of Bokeh.documents)
    for (const root of shown.roots())
        if (root.data && "dark_theme" in root.data.attributes) {
            const model = root.data;
            model.busy_indicator = null;
            if (model.dark_theme != is_dark) model.dark_theme = is_dark;
            model.properties.dark_theme.change.connect(
                () => localStorage.setItem("actkit-theme", model.dark_theme ? "dark" : "light"));
        }
for (const { shadowRoot } of document.body.querySelectorAll("*"))
    for (const heading of shadowRoot?.querySelectorAll("header h3, main h5") ?? []) {
        if (heading.localName == "h3") heading.setAttribute("aria-level", "1");
        else heading.setAttribute("role", "presentation");
    }
"""

_REFUSED = (
    "This server has no login, and the request comes from another machine. Anyone who can open the page can "
    "start and delete runs: serve it with --basic-auth and --cookie-secret, or on 127.0.0.1 behind an SSH "
    "tunnel."
)
_FOREIGN = (
    "The request uses a host name that this server does not accept, which may be a DNS rebinding attack. "
    "Use localhost, or serve the app with --allow-websocket-origin NAME:PORT."
)


def _refusal() -> str:
    """Return why the request is refused; "" if it is logged in, or local with an accepted host name."""
    context = pn.state.curdoc.session_context if pn.state.curdoc else None
    request = context.request if context else None
    if request is None or pn.state.user not in (None, "guest"):
        return ""
    try:
        is_near = ip_address(str(getattr(request, "remote_ip", None))).is_loopback
    except ValueError:
        is_near = False
    if not is_near:
        return _REFUSED
    host = str(getattr(request, "host", ""))
    # Bokeh replaces sys.argv while the app runs
    return "" if is_own_host(host, allowed_origins(sys.orig_argv)) else _FOREIGN


def _locate() -> None:
    """Pass the query of the request to Panel; the browser supplies the rest of its URL.

    Otherwise, Panel would parse the whole URL, which fails if the host is an IPv6 address or the query
    contains a second question mark.
    """
    doc = pn.state.curdoc
    context = doc.session_context if doc else None
    request = context.request if context else None
    if request is not None:
        query = str(getattr(request, "query", ""))
        pn.state._locations[doc] = Location(search=f"?{query}" if query else "")


def show() -> None:
    """Create the page of this session."""
    pn.extension(notifications=False)
    _locate()
    if said := _refusal():
        refusal = pmui.Alert(title=said, severity="error")
        pmui.Page(title="actkit", main=[refusal], busy_indicator=None).servable(title="actkit")
        return
    services.settle()
    page = Page()
    page.view.servable(title="actkit")
    pn.state.curdoc.js_on_event("document_ready", CustomJS(code=_READY))
    pn.state.curdoc.js_on_event("connection_lost", CustomJS(code=_AGAIN))
    pn.state.onload(page.begin, threaded=bool(pn.config.nthreads))
