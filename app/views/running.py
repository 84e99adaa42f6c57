"""The runs of the workspace: one card each, with progress, gauges, log and what can be done."""

import time
from collections.abc import Callable
from html import escape
from typing import Any

import panel as pn
import panel_material_ui as pmui

from actkit.errors import ActkitError
from actkit.estimates import readable_bytes
from actkit.widgets.gauges import Gauge, measure
from actkit.widgets.style import STYLE, heading, short_model

from ..jobs import Jobs, Run, State


class Gauges(pn.viewable.Viewer):  # type: ignore[misc]
    """How full the memory of devices, or of the machine, is."""

    def __init__(self) -> None:
        super().__init__()
        self._view = pn.pane.HTML("", stylesheets=[STYLE], sizing_mode="stretch_width")
        self.update(0)

    def __panel__(self) -> Any:
        return self._view

    def update(self, process_bytes: int) -> None:
        """Measure again."""
        self._view.object = "".join(_gauge(gauge) for gauge in measure(process_bytes))


def _gauge(gauge: Gauge) -> str:
    busy = "" if gauge.utilisation is None else f", {gauge.utilisation}% busy"
    told = f"{readable_bytes(gauge.used)} of {readable_bytes(gauge.total)}{busy}"
    return (
        f"<div class='gauge'><span>{escape(gauge.label)}</span><span>{told}</span>"
        f"<div class='bar' role='meter' aria-label='{escape(gauge.label, quote=True)}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{gauge.share * 100:.0f}'>"
        f"<div style='width:{gauge.share * 100:.1f}%'></div></div></div>"
    )


class RunCard(pn.viewable.Viewer):  # type: ignore[misc]
    """One run."""

    def __init__(self, jobs: Jobs, run: Run, explore: Callable[[str], None]) -> None:
        super().__init__()
        self._jobs, self.run = jobs, run
        self._title = pn.pane.HTML("", stylesheets=[STYLE], sizing_mode="stretch_width")
        self._bar = pn.pane.HTML("", stylesheets=[STYLE], sizing_mode="stretch_width")
        self._figures = pn.pane.HTML("", stylesheets=[STYLE], sizing_mode="stretch_width")
        self._said = pmui.Alert(visible=False, severity="error", sizing_mode="stretch_width")
        self._log = pn.pane.HTML("", stylesheets=[STYLE], sizing_mode="stretch_width")
        self._is_log_open = False
        self._log_button = pmui.Button(label="Log", icon="article", size="small", variant="text")
        names: tuple[tuple[str, str, Callable[[], object]], ...] = (
            ("Cancel", "stop", lambda: jobs.cancel(run.name)),
            ("Resume", "play_arrow", lambda: jobs.resume(run.name)),
        )
        self._buttons = {
            label: pmui.Button(label=label, icon=icon, size="small", variant="outlined")
            for label, icon, _ in names
        }
        for label, _, act in names:
            self._buttons[label].on_click(lambda _event, act=act: self._do(act))
        self._explore = pmui.Button(label="Explore", icon="insights", size="small", color="primary")
        self._explore.on_click(lambda _event: explore(run.name))
        self._delete = pmui.Button(label="Delete", icon="delete", size="small", variant="text", color="error")
        sure = pmui.Button(label=f"Delete {run.name}", color="error")
        keep = pmui.Button(label="Keep it", variant="outlined")
        self._dialog = pmui.Dialog(
            pn.pane.Str(f"Everything that {run.name} computed is deleted. This cannot be undone."),
            pn.Row(sure, keep),
            title=f"Delete {run.name}?",
            close_on_click=True,
        )
        self._delete.on_click(lambda _event: self._dialog.param.update(open=True))
        keep.on_click(lambda _event: self._dialog.param.update(open=False))
        sure.on_click(lambda _event: self._do(self._delete_run))
        self._log_button.on_click(self._turn_log)
        self._view = pmui.Paper(
            self._title,
            self._bar,
            self._figures,
            pn.FlexBox(self._explore, *self._buttons.values(), self._log_button, self._delete, gap="6px"),
            self._said,
            self._log,
            self._dialog,
            sizing_mode="stretch_width",
            margin=(6, 2),
        )
        self.update(run)

    def __panel__(self) -> Any:
        return self._view

    def update(self, run: Run) -> None:
        """Show what it is now."""
        self.run = run
        state = run.state
        self._title.object = (
            f"<h3>{escape(run.name)} <span class='state {state}'>{state}</span></h3>"
            f"<span class='figures'>{escape(_what(run))}</span>"
        )
        self._bar.object = _progress(run)
        self._figures.object = _figures(run)
        self._explore.disabled = not run.has_cube
        self._buttons["Cancel"].visible = state.is_active
        can_go_on = state in (State.CANCELLED, State.INTERRUPTED, State.FAILED)
        self._buttons["Resume"].visible = can_go_on
        self._delete.visible = not state.is_active
        shown = self._is_log_open or state is State.FAILED
        text = escape(self._jobs.log(run)) if shown else ""
        told = f"<pre class='log' tabindex='0' role='log' aria-label='log'>{text}</pre>" if shown else ""
        if self._log.object != told:
            self._log.object = told

    def _turn_log(self, _event: Any) -> None:
        self._is_log_open = not self._is_log_open
        self.update(self.run)

    def _delete_run(self) -> None:
        self._dialog.open = False
        self._jobs.delete(self.run.name)
        self._view.visible = False

    def _do(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (ActkitError, OSError) as error:
            self._said.param.update(title=str(error), visible=True)
        else:
            self._said.visible = False


class RunList(pn.viewable.Viewer):  # type: ignore[misc]
    """All runs, those that were touched last first."""

    def __init__(self, jobs: Jobs, explore: Callable[[str], None]) -> None:
        super().__init__()
        self._jobs, self._explore = jobs, explore
        self._cards: dict[str, RunCard] = {}
        self._list = pn.Column(sizing_mode="stretch_width")
        self.gauges = Gauges()
        self._view = pn.Column(
            heading("Memory"),
            self.gauges,
            heading("Runs"),
            self._list,
            sizing_mode="stretch_width",
        )

    def __panel__(self) -> Any:
        return self._view

    def update(self) -> None:
        """Look at the workspace again."""
        runs = list(self._jobs)
        told = [run.name for run in runs]
        order = sorted(told, key=lambda name: -_started(next(run for run in runs if run.name == name)))
        for run in runs:
            card = self._cards.get(run.name)
            if card is None:
                self._cards[run.name] = RunCard(self._jobs, run, self._explore)
            elif card.run != run or run.state.is_active:
                card.update(run)
        for name in set(self._cards) - set(told):
            del self._cards[name]
        shown = [self._cards[name] for name in order]
        if [id(card) for card in shown] != [id(card) for card in self._list.objects]:
            self._list.objects = shown
        active = [run for run in runs if run.state is State.RUNNING]
        self.gauges.update(int(active[0].status.get("host_bytes") or 0) if active else 0)


def _started(run: Run) -> float:
    """Return when a run was first asked for: cards keep their places."""
    try:
        return (run.path / "config.yaml").stat().st_ctime
    except OSError:
        return 0.0


def _what(run: Run) -> str:
    model = short_model(run.asked.get("model", ""))
    data = str(run.asked.get("data", "")).rsplit("/", 1)[-1]
    layers = run.asked.get("layers", "all")
    return f"{model} on {data}, layers {layers}" if model else "a cube that was brought here"


def _progress(run: Run) -> str:
    share = run.progress * 100
    return (
        f"<div class='bar' role='progressbar' aria-label='{escape(run.name, quote=True)}' aria-valuemin='0' "
        f"aria-valuemax='100' aria-valuenow='{share:.0f}'><div style='width:{share:.1f}%'></div></div>"
    )


def _figures(run: Run) -> str:
    told, parts = run.status, []
    if total := told.get("total_samples"):
        parts.append(f"{told.get('samples', 0):,} of {total:,} samples")
    if run.state is State.RUNNING and told.get("state") != "running":
        parts.append(str(told.get("state")))
    if told.get("samples_per_second"):
        parts.append(f"{told['samples_per_second']:,.1f} samples/s")
        parts.append(f"{told.get('tokens_per_second', 0):,.0f} tokens/s")
    if run.state is State.RUNNING and told.get("eta_seconds") is not None:
        parts.append(f"{_minutes(told['eta_seconds'])} left")
    for name in ("allocated", "reserved"):
        if size := (told.get("device_bytes") or {}).get(name):
            parts.append(f"{readable_bytes(size)} {name} on the device")
    if updated := told.get("updated"):
        parts.append(time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(updated)))
    return f"<span class='figures'>{escape(' · '.join(parts))}</span>"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
