"""Progress and training curves of autoencoders that another process trains or has trained."""

import time
from typing import Any

import panel as pn
import panel_material_ui as pmui
import xarray as xr

from actkit import plots
from actkit.errors import ActkitError, InputError
from actkit.features.training_log import LOG_FILE, training_log
from actkit.plots.saes import CURVES
from actkit.widgets import markup
from actkit.widgets.background import in_background
from actkit.widgets.cards import Card, Picture
from actkit.widgets.panel_style import html

from ..jobs import Jobs
from ..run_state import Run, State
from .run_list import what

_PAUSE = 5.0  # between two drawings, in units of the time that one takes


class TrainingView(pn.viewable.Viewer):  # type: ignore[misc]
    """Progress of a training, and a plot of each measure with a curve per layer.

    Parameters
    ----------
    jobs
        Runs of the workspace.
    run
        A training among them.
    """

    def __init__(self, jobs: Jobs, run: Run) -> None:
        super().__init__()
        self.path = run.path
        self._jobs, self._name = jobs, run.name
        self._log: xr.Dataset | None = None
        self._pictures: dict[str, Any] = {}
        self._drawn: tuple[int, ...] = ()  # identity of the file whose content is drawn
        self._is_drawing, self._next = False, 0.0
        self._title, self._bar, self._figures = (html(sizing_mode="stretch_width") for _ in range(3))
        self._notice = pmui.Alert(visible=False, severity="info", sizing_mode="stretch_width")
        self._cards = {name: Card(self._picture(name)) for name, _, _ in CURVES}
        views = (card.view for card in self._cards.values())
        self._plots = pn.FlexBox(*views, sizing_mode="stretch_width", gap="12px")
        self._view = pn.Column(
            self._title, self._bar, self._figures, self._notice, self._plots, sizing_mode="stretch_width"
        )

    def __panel__(self) -> Any:
        return self._view

    def lay_out(self) -> None:
        """Show the progress; the plots are placeholders until they are drawn."""
        try:
            run = self._jobs[self._name]
        except InputError:  # deleted meanwhile
            return
        shown = (
            (self._title, markup.title(run.name, run.state, what(run))),
            (self._bar, markup.bar(run.name, run.progress)),
            (self._figures, markup.figures(run.status, is_running=run.state is State.RUNNING)),
        )
        for pane, text in shown:
            if pane.object != text:
                pane.object = text

    def refresh(self) -> None:
        """Show the progress, and draw the curves again if the log has grown."""
        self.lay_out()
        if not self._is_drawing and time.monotonic() >= self._next and self._identity() != self._drawn:
            self.draw()

    def draw(self) -> None:
        """Read the log and draw the curves, in a server thread if there is one."""
        self._is_drawing = True
        in_background(self._draw)

    def _draw(self) -> None:
        started, identity = time.monotonic(), self._identity()
        try:
            self._log = training_log(self.path)
            layout = plots.training_curves(self._log)
        except ActkitError as error:
            self._notice.param.update(title=str(error), visible=True)
            self._plots.visible = False
        else:
            self._pictures = {name: layout[number] for number, (name, _, _) in enumerate(CURVES)}
            self._notice.visible, self._plots.visible = False, True
            for card in self._cards.values():
                card.draw()
        finally:
            now = time.monotonic()
            self._drawn, self._next, self._is_drawing = identity, now + _PAUSE * (now - started), False

    def _identity(self) -> tuple[int, ...]:
        """Return numbers that change whenever the log does; empty if there is none."""
        try:
            found = (self.path / LOG_FILE).lstat()
        except OSError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _picture(self, name: str) -> Picture:
        """Return the plot of a measure, which shows the log that was read last."""

        def make() -> tuple[Any, xr.Dataset]:
            assert self._log is not None
            return self._pictures[name], self._log[[name]]

        code = f"log = actkit.training_log({str(self.path)!r})\nactkit.plots.training_curves(log)\n"
        return Picture(name, make, f"import actkit\n\n{code}")
