"""Background work that does not block a page."""

from collections.abc import Callable

import panel as pn


def in_background(work: Callable[[], None]) -> None:
    """Run the work in a server thread, or immediately if there are none, as in a notebook."""
    if pn.config.nthreads and pn.state.curdoc:
        pn.state.execute(work, schedule="thread")
    else:
        work()
