"""A workspace of its own for each test."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from actkit.errors import InputError
from app.jobs import Jobs
from app.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.of({"ACTKIT_WORKSPACE": str(tmp_path / "runs"), "ACTKIT_CANCEL_SECONDS": "20"})


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    """Runs, none of which outlives the test."""
    own = Jobs(settings)
    yield own
    for run in own:
        if run.state.is_active:
            with suppress(InputError):
                own.cancel(run.name)
