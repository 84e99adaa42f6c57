"""What all sessions of a server share."""

import gc
import os
from functools import cache

from actkit.widgets.summaries import Summaries

from .jobs import Jobs
from .planning import Planner
from .settings import Settings


@cache
def settle() -> None:
    """Keep the collector off the modules: a look at all of them stops every page for a third of a second."""
    gc.collect()
    gc.freeze()


@cache
def settings() -> Settings:
    """Return what the environment said when the server started."""
    return Settings.of(os.environ)


@cache
def jobs() -> Jobs:
    """Return the runs of the workspace."""
    return Jobs(settings())


@cache
def planner() -> Planner:
    """Return what knows the plans."""
    return Planner(settings())


@cache
def summaries() -> Summaries:
    """Return what was computed of cubes."""
    return Summaries()
