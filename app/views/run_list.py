"""List of the runs in the workspace: a card for each, with progress, log and actions, and memory gauges."""

from collections.abc import Callable, Mapping
from html import escape
from types import MappingProxyType
from typing import Any

import panel as pn
import panel_material_ui as pmui

from actkit.errors import ActkitError
from actkit.features.training_settings import SETTINGS_FILE
from actkit.layer_spec import describe_all
from actkit.store.run_folder import CONFIG
from actkit.widgets import markup
from actkit.widgets.gauges import measure, of_workers
from actkit.widgets.panel_style import heading, html

from ..jobs import Jobs
from ..run_state import Run, State

_NO_WORKERS: Mapping[str, Mapping[str, int]] = MappingProxyType({})
_MOST_GAUGES = 64
_LONGEST = 200  # characters of an option that are shown


class Gauges(pn.viewable.Viewer):  # type: ignore[misc]
    """Memory gauges of the devices, or of the machine."""

    def __init__(self) -> None:
        super().__init__()
        self._view = html(sizing_mode="stretch_width")
        self.update(0)

    def __panel__(self) -> Any:
        return self._view

    def update(self, process_bytes: int, workers: Mapping[str, Mapping[str, int]] = _NO_WORKERS) -> None:
        """Refresh the measurements; those of the workers of a cluster come from the status of its run."""
        self._view.object = markup.gauges([*measure(process_bytes), *of_workers(workers)][:_MOST_GAUGES])


class RunCard(pn.viewable.Viewer):  # type: ignore[misc]
    """Card of one run."""

    def __init__(self, jobs: Jobs, run: Run, explore: Callable[[str], None]) -> None:
        super().__init__()
        self._jobs, self.run = jobs, run
        self._title = html(sizing_mode="stretch_width")
        self._bar = html(sizing_mode="stretch_width")
        self._figures = html(sizing_mode="stretch_width")
        self._said = pmui.Alert(visible=False, severity="error", sizing_mode="stretch_width")
        self._log = html(sizing_mode="stretch_width")
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
        keep = pmui.Button(label="Keep", variant="outlined")
        self._dialog = pmui.Dialog(
            pn.pane.Str(f"This deletes all results of {run.name} and cannot be undone."),
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
        """Show the current state of the run."""
        self.run = run
        state = run.state
        self._title.object = markup.title(run.name, state, what(run))
        self._bar.object = markup.bar(run.name, run.progress)
        self._figures.object = markup.figures(run.status, is_running=state is State.RUNNING)
        self._explore.disabled = not (run.has_cube or run.is_training)
        # the app starts no trainings, and so neither ends nor resumes them
        self._buttons["Cancel"].visible = state.is_active and not run.is_training
        can_go_on = state in (State.CANCELLED, State.INTERRUPTED, State.FAILED, State.UNREADABLE)
        self._buttons["Resume"].visible = can_go_on and not run.is_training
        self._delete.visible = not state.is_active
        shown = self._is_log_open or state is State.FAILED
        text = escape(self._jobs.log(run)) if shown else ""
        log = f"<pre class='log' tabindex='0' role='log' aria-label='Log'>{text}</pre>" if shown else ""
        if run.faults:
            log = markup.faults(run.faults, heading="Some files of this run cannot be read:") + log
        if self._log.object != log:
            self._log.object = log

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
    """List of all runs, newest first."""

    def __init__(self, jobs: Jobs, explore: Callable[[str], None]) -> None:
        super().__init__()
        self._jobs, self._explore = jobs, explore
        self._cards: dict[str, RunCard] = {}
        self._list = pn.Column(sizing_mode="stretch_width")
        self._fault = pmui.Alert(visible=False, severity="warning", sizing_mode="stretch_width")
        self.gauges = Gauges()
        self._view = pn.Column(
            heading("Memory"),
            self.gauges,
            heading("Runs"),
            self._fault,
            self._list,
            sizing_mode="stretch_width",
        )

    def __panel__(self) -> Any:
        return self._view

    def update(self) -> None:
        """Refresh the list from the workspace."""
        fault = self._jobs.fault
        if self._fault.title != fault:
            self._fault.param.update(title=fault, visible=bool(fault))
        runs = list(self._jobs)
        names = [run.name for run in runs]
        order = sorted(names, key=lambda name: -_started(next(run for run in runs if run.name == name)))
        for run in runs:
            card = self._cards.get(run.name)
            if card is None:
                self._cards[run.name] = RunCard(self._jobs, run, self._explore)
            elif card.run != run or run.state.is_active:
                card.update(run)
        for name in set(self._cards) - set(names):
            del self._cards[name]
        shown = [self._cards[name] for name in order]
        if [id(card) for card in shown] != [id(card) for card in self._list.objects]:
            self._list.objects = shown
        active = [run for run in runs if run.state is State.RUNNING]
        workers = {name: sizes for run in active for name, sizes in run.status.get("workers", {}).items()}
        # of a run on a cluster, the workers are shown one by one
        alone = [int(run.status.get("host_bytes") or 0) for run in active if not run.status.get("workers")]
        self.gauges.update(alone[0] if alone else 0, workers)


def _started(run: Run) -> float:
    """Return when the options of a run were last written, which keeps the order of cards stable."""
    try:
        return (run.path / (SETTINGS_FILE if run.is_training else CONFIG)).lstat().st_ctime
    except OSError:
        return 0.0


def what(run: Run) -> str:
    """Return in a few words what a run extracts, or trains."""
    if run.state is State.UNREADABLE:
        return "status cannot be read"
    if run.is_training:
        return _what_trains(run.asked)
    options = {name: str(run.asked.get(name, ""))[-_LONGEST:] for name in ("model", "data", "layers")}
    model, data = markup.short_model(options["model"]), options["data"].rsplit("/", 1)[-1]
    parts = f", in {run.newest_part.count} parts" if run.newest_part else ""
    parts += f", on {run.cluster}" if run.cluster else ""
    return f"{model} on {data}, layers {options['layers'] or 'all'}{parts}" if model else "no config"


def _what_trains(settings: Mapping[str, Any]) -> str:
    """Return the settings of a training in a few words; they are empty if they cannot be read."""
    if not settings:
        return "autoencoders, settings cannot be read"
    model = markup.short_model(settings["model"])[-_LONGEST:]
    layers = describe_all({settings["component"]: settings["layers"][:_LONGEST]})
    size = f"{settings['width']:,} features, k {settings['k']}, layers {layers[:_LONGEST]}"
    return f"autoencoders of {model or 'a cube'}: {size}"
