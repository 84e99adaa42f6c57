"""A server of the app, and its pages in a real browser."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Download, FloatRect, Locator, Page, expect
from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from app.jobs import Jobs
from app.settings import Settings
from tests.browser import CHROMIUM

ROOT = Path(__file__).parents[2]
SCREENS = ROOT / "build" / "screens"
LONG = 240_000  # milliseconds, on a machine with other work
expect.set_options(timeout=LONG)

IN_BROWSER = [
    pytest.mark.timeout(1800),
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


class Server:
    """`panel serve app/` on a workspace."""

    def __init__(self, workspace: Path, address: str = "127.0.0.1", options: Sequence[str] = ()) -> None:
        self.workspace, self.address, self.options = workspace, address, options
        self.settings = Settings.of({"ACTKIT_WORKSPACE": str(workspace)})
        self.jobs = Jobs(self.settings)
        is_ipv6 = ":" in address
        with socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET) as probe:
            probe.bind((address, 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://{f'[{address}]' if is_ipv6 else address}:{self.port}/app"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "panel", "serve", str(ROOT / "app"), "--address", self.address]
        command += ["--port", str(self.port), "--num-threads", "4", "--warm", *self.options]
        self.workspace.parent.mkdir(parents=True, exist_ok=True)
        variables = {"ACTKIT_WORKSPACE": str(self.workspace), "HF_HUB_OFFLINE": "1"}
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
        variables["XDG_CACHE_HOME"] = str(
            self.workspace.parent / "cache"
        )  # no models of whoever runs the tests
        log_path = self.workspace.parent / "server.log"
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **variables})
        while True:  # pytest-timeout ends a test that waits in vain
            with suppress(OSError), urlopen(self.url, timeout=60):
                return
            assert self.process.poll() is None, log_path.read_text()
            time.sleep(0.2)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


@contextmanager
def opened(
    browser: Browser,
    url: str,
    width: int = 1440,
    height: int = 900,
    scheme: Literal["light", "dark"] = "light",
    *,
    loses_its_server: bool = False,
) -> Iterator[Page]:
    """Open a page; check that it requests nothing from other servers, and reports no error."""
    # one context for all pages, so that the scripts of Panel are fetched and compiled once
    context = browser.contexts[0] if browser.contexts else browser.new_context()
    page = context.new_page()
    page.set_default_timeout(LONG)
    page.set_viewport_size({"width": width, "height": height})
    page.emulate_media(color_scheme=scheme)
    errors: list[str] = []
    urls: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: urls.append(request.url))
    page.goto(url)
    SCREENS.mkdir(parents=True, exist_ok=True)
    try:
        yield page
        origin = url.split("/app")[0]
        assert [url for url in urls if not url.startswith((origin, "data:", "blob:"))] == []
        assert errors == [] or loses_its_server
    finally:
        with suppress(PlaywrightError):  # of a page that lost its server
            page.evaluate("localStorage.clear()")
        page.close()
        context.clear_cookies()


def ready(page: Page) -> None:
    """Wait until the first plan is shown: nothing else of the page changes by itself."""
    expect(page.get_by_text("2,000 in english, arabic")).to_be_visible()


def drawn(page: Page, count: int = 1) -> None:
    """Wait until at least so many figures are drawn, and nothing else is being computed."""
    expect(page.locator(".bk-Figure").nth(count - 1)).to_be_visible()
    expect(page.locator(".MuiSkeleton-root")).to_have_count(0)
    page.wait_for_function("Bokeh.documents.every((shown) => shown.is_idle)")


def figure_box(page: Page, number: int = 0) -> FloatRect:
    """Wait until a figure is drawn and no longer moves, and return its place on the screen."""
    drawn(page, number + 1)
    figure = page.locator(".bk-Figure").nth(number)
    figure.scroll_into_view_if_needed()
    before, box = None, figure.bounding_box()
    while box is None or box != before:
        page.wait_for_timeout(200)
        before, box = box, figure.bounding_box()
    return box


def click_figure(page: Page, across: float, down: float, number: int = 0) -> None:
    """Click into a figure at a fraction of its width and its height."""
    box = figure_box(page, number)
    page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])


def downloaded(page: Page, button: Locator) -> Download:
    """Click until a download starts: on a busy machine, a form may move between press and release."""
    for _ in range(3):
        with suppress(PlaywrightTimeout):
            with page.expect_download(timeout=LONG / 4) as waiting:
                button.click()
            return waiting.value
    raise AssertionError("no download starts")


def card(page: Page, name: str) -> None:
    """Wait for the card of a run."""
    expect(page.get_by_role("heading", name=re.compile(name))).to_be_visible()
