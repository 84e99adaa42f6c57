"""Services shared by all sessions of a server."""

import gc
import os
from functools import cache

from actkit.reports.summaries import Summaries

from .jobs import Jobs
from .planner import Planner
from .settings import Settings


@cache
def settle() -> None:
    """Exclude loaded modules from garbage collection, whose full passes would block pages for 0.3 s."""
    gc.collect()
    gc.freeze()


@cache
def settings() -> Settings:
    """Return the settings, read from the environment once."""
    return Settings.of(os.environ)


@cache
def jobs() -> Jobs:
    """Return the runs of the workspace."""
    return Jobs(settings())


@cache
def planner() -> Planner:
    """Return the planner."""
    return Planner(settings())


@cache
def summaries() -> Summaries:
    """Return the cache of computed statistics."""
    return Summaries()
