"""Live progress of a run in the notebook that started it."""

import time

import ipywidgets
from IPython.display import display

from ..extraction.monitoring.progress import Progress
from . import markup
from .gauges import measure

_INTERVAL = 0.2  # seconds; more frequent updates are invisible, and each sends messages to the browser
_STYLE = f"<style>.actkit {{ {markup.STYLE} }}</style>"
_ADVICE = {
    "interrupted": "{committed:,} samples are committed; run the cell again to resume",
    "failed": "{committed:,} samples are committed; fix the error below and run the cell again",
}


class Watch(ipywidgets.VBox):  # type: ignore[misc]
    """Progress of a run, in total and by language, with memory use.

    Pass it to :func:`actkit.extract` as a listener; it appears below the cell with the first event.

    Examples
    --------
    >>> from actkit.extraction.monitoring.progress import Progress
    >>> watch = Watch()
    >>> watch(Progress("running", samples=50, total_samples=200))  # doctest: +ELLIPSIS
    Watch(...)
    >>> watch.bar.value
    50
    """

    def __init__(self) -> None:
        wide = ipywidgets.Layout(width="100%")
        self.bar = ipywidgets.IntProgress(layout=wide)
        self._title, self._figures, self._gauges = (ipywidgets.HTML(layout=wide) for _ in range(3))
        self._state, self._last = "", 0.0
        super().__init__(
            [self._title, self.bar, self._figures, self._gauges],
            layout=ipywidgets.Layout(max_width="720px"),
        )

    def __call__(self, event: Progress) -> None:
        """Show an event, skipping events that arrive in quick succession."""
        now = time.monotonic()
        if not self._state:
            display(self)  # type: ignore[no-untyped-call]
        is_last = event.samples == event.total_samples
        if event.state == self._state and now - self._last < _INTERVAL and not is_last:
            return
        self._state, self._last = event.state, now
        advice = _ADVICE.get(event.state, "").format(committed=event.committed)
        self._title.value = styled(markup.title("extraction", event.state, advice))
        self.bar.max, self.bar.value = max(event.total_samples, 1), event.samples
        self.bar.bar_style = {"done": "success", "failed": "danger", "interrupted": "warning"}.get(
            event.state, ""
        )
        figures = markup.figures(vars(event), is_running=event.state == "running")
        self._figures.value = styled(figures + markup.counts(event.languages))
        self._gauges.value = styled(markup.gauges(measure(event.host_bytes)))


def styled(text: str) -> str:
    """Return HTML with scoped styles that leave the notebook unchanged."""
    return f"{_STYLE}<div class='actkit'>{text}</div>"
