"""A workspace of its own for each test."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright

from actkit.errors import InputError
from actkit.testing import write_cube
from app.jobs import Jobs
from app.settings import Settings
from tests.app.server import Server
from tests.browser import CHROMIUM, FLAGS


@pytest.fixture
def settings(tmp_path: Path, user_cache: Path) -> Settings:
    return Settings.of({"ACTKIT_WORKSPACE": str(tmp_path / "runs"), "ACTKIT_CANCEL_SECONDS": "20"})


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    """Runs, none of which outlives the test."""
    new_jobs = Jobs(settings)
    yield new_jobs
    for run in new_jobs:
        if run.state.is_active:
            with suppress(InputError):
                new_jobs.cancel(run.name)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    app_server = Server(tmp_path_factory.mktemp("app") / "runs")
    write_cube(app_server.workspace / "made-before", n_layers=6, n_samples=60, n_tokens=8)
    yield app_server
    for run in app_server.jobs:
        if run.state.is_active:
            psutil.Process(run.status["pid"]).kill()
    app_server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
