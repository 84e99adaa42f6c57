"""Workspaces, runs, servers and browsers of the app."""

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, sync_playwright

import actkit
from actkit.errors import InputError
from actkit.testing import write_cube
from app import processes
from app.jobs import Jobs
from app.settings import Settings
from tests.app import stub_extraction
from tests.app.run_config import run_config
from tests.app.server import Server
from tests.browser import CHROMIUM, FLAGS


@pytest.fixture
def settings(tmp_path: Path, user_cache: Path) -> Settings:
    return Settings.of({"ACTKIT_WORKSPACE": str(tmp_path / "runs"), "ACTKIT_CANCEL_SECONDS": "20"})


@pytest.fixture
def jobs(settings: Settings) -> Iterator[Jobs]:
    """Runs, none of which outlives the test."""
    jobs = Jobs(settings)
    yield jobs
    for run in jobs:
        if run.state.is_active:
            with suppress(InputError):
                jobs.cancel(run.name)


@pytest.fixture
def light_runs(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Jobs whose processes lock their folder and run until they are ended, without a model."""
    monkeypatch.setattr(processes, "command", stub_extraction.command)
    return jobs


@pytest.fixture(scope="session")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 64 samples that was interrupted halfway. Copy it before changing it."""

    def interrupt(event: Any) -> None:
        if event.committed >= 32:
            raise KeyboardInterrupt

    run = tmp_path_factory.mktemp("interrupted") / "original"
    with pytest.raises(KeyboardInterrupt):
        actkit.extract(run_config(out=str(run)), listeners=[interrupt])
    return run


@pytest.fixture
def copied(half_run: Path, settings: Settings) -> Path:
    """A copy of the interrupted run in the workspace."""
    return Path(shutil.copytree(half_run, settings.workspace / "copied"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that the tests of a process share: each names its runs differently."""
    server = Server(tmp_path_factory.mktemp("app") / "runs")
    write_cube(server.workspace / "made-before", n_layers=6, n_samples=60, n_tokens=8)
    yield server
    for run in server.jobs:
        if run.state.is_active:
            psutil.Process(run.status["pid"]).kill()
    server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def public() -> str:
    """An address of this machine under which other machines reach it."""
    interfaces = psutil.net_if_addrs().values()
    addresses = [entry.address for entries in interfaces for entry in entries]
    reachable = [
        address
        for address in addresses
        if re.fullmatch(r"[0-9.]+", address) and not address.startswith("127.")
    ]
    if not reachable:
        pytest.skip("this machine has no address but its loopback")
    return reachable[0]
