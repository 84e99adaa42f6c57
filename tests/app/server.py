"""The app on a server of its own, and pages of it in a real browser."""

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
from urllib.request import urlopen

import pytest
from playwright.sync_api import Browser, Page, expect

from app.jobs import Jobs
from app.settings import Settings
from tests.browser import CHROMIUM

ROOT = Path(__file__).parents[2]
SCREENS = ROOT / "build" / "screens"
LONG = 60_000  # milliseconds, on a machine with other work

IN_BROWSER = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


class Server:
    """`panel serve app/`, with a workspace of its own."""

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
        variables = {
            "ACTKIT_WORKSPACE": str(self.workspace),
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            # so that models in the cache of the user are not offered
            "XDG_CACHE_HOME": str(self.workspace.parent / "cache"),
        }
        with (self.workspace.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **variables})
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), urlopen(self.url, timeout=60):
                return
            assert time.monotonic() < deadline, (self.workspace.parent / "server.log").read_text()
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


@contextmanager
def opened(
    browser: Browser,
    url: str,
    width: int = 1440,
    height: int = 900,
    scheme: str = "light",
    *,
    loses_its_server: bool = False,
) -> Iterator[Page]:
    """Open a page that may ask nobody but its own server, and has nothing to complain of."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(LONG)
    messages: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: messages.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    try:
        yield page
        origin = url.split("/app")[0]
        assert [to for to in asked if not to.startswith((origin, "data:", "blob:"))] == []
        assert messages == [] or loses_its_server
    finally:
        SCREENS.mkdir(parents=True, exist_ok=True)
        context.close()


def ready(page: Page) -> None:
    """Wait until the first plan is there: the page has nothing more to say by itself."""
    expect(page.get_by_text("2,000 in english, arabic")).to_be_visible(timeout=LONG)


def card(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=re.compile(name))).to_be_visible(timeout=LONG)
