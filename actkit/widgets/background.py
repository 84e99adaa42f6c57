"""Work that a page does not wait for."""

from collections.abc import Callable

import panel as pn


def in_background(work: Callable[[], None]) -> None:
    """Do it in a thread of the server; without such threads, as in a notebook, at once."""
    if pn.config.nthreads and pn.state.curdoc:
        pn.state.execute(work, schedule="thread")
    else:
        work()
