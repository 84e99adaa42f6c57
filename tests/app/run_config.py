"""Configs of short runs, and waiting for their processes."""

import time
from collections.abc import Callable
from typing import Any

from actkit.config import Config
from actkit.demo import CAPTIONS, MODEL
from app.jobs import Jobs
from app.run_state import Run, State

N_SAMPLES = 64


def run_config(**options: Any) -> Config:
    """Return the config of a run of four windows of 16 samples."""
    short = {"model": str(MODEL), "data": str(CAPTIONS), "out": "-", "device": "cpu", "limit": N_SAMPLES}
    return Config(**{**short, "window_samples": 16, **options})


def wait(jobs: Jobs, name: str, until: Callable[[Run], object]) -> Run:
    """Wait for a condition of a run; pytest-timeout ends a test that waits in vain."""
    while not until(run := jobs[name]):
        assert run.state is not State.FAILED or until is has_ended, (run, jobs.log(run))
        time.sleep(0.05)
    return run


def is_running(run: Run) -> bool:
    """Return whether a run says that it computes."""
    return run.status.get("state") == "running"


def has_ended(run: Run) -> bool:
    """Return whether no process works on a run any more."""
    return not run.state.is_active
