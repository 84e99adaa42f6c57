"""A run is sent from a real browser to a cluster on this machine, and watched."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from actkit import extract
from actkit.store.layout import CUBE
from actkit.testing import contents
from app.run_state import State
from tests.app.server import IN_BROWSER, SCREENS, Server, card, opened, ready

pytestmark = [*IN_BROWSER, pytest.mark.nightly]


@pytest.fixture
def cluster_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ACTKIT_CLUSTERS", "local:2")
    server = Server(tmp_path / "app" / "runs")
    yield server
    for run in server.jobs:
        if run.state.is_active:
            psutil.Process(run.status["pid"]).kill()
    server.stop()


def test_a_run_on_a_cluster(cluster_server: Server, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, cluster_server.url) as page:
        ready(page)
        for label, value in (("Run name", "shared"), ("Limit", "1200"), ("Layers", "0-1")):
            page.get_by_label(label, exact=True).fill(value)
            page.get_by_label(label, exact=True).press("Enter")
        page.get_by_role("combobox", name="Compute on").click()
        page.get_by_role("menuitem", name="local:2").click()
        expect(page.get_by_text("1,200 in english, arabic")).to_be_visible()
        page.get_by_role("button", name="Start").click()
        card(page, "shared")
        expect(page.get_by_text("on local:2")).to_be_visible()
        expect(page.get_by_text(re.compile("^Worker 127.0.0.1")).first).to_be_visible()
        page.screenshot(path=SCREENS / "cluster_1440_light.png")
        card(page, "shared done")
        expect(page.get_by_text(re.compile("^Worker 127.0.0.1"))).to_have_count(0)
    run = cluster_server.jobs["shared"]
    assert run.state is State.DONE
    options = {**run.asked, "out": str(tmp_path / "alone")}
    assert run.asked["limit"] == 1200
    extract(**options, listeners=[])
    assert contents(run.path / CUBE) == contents(tmp_path / "alone" / CUBE)
