"""The app in a real browser: start a run, watch it, come back to it, look at what it computed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from actkit import open_cube
from actkit.testing import synthetic
from app.jobs import Jobs, State
from app.settings import Settings
from tests.browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parents[2]
SCREENS = ROOT / "build" / "screens"
LONG = 60_000  # milliseconds, on a machine with other work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


class Server:
    """`panel serve app/`, with a workspace of its own."""

    def __init__(self, workspace: Path, address: str = "127.0.0.1") -> None:
        self.workspace, self.address = workspace, address
        self.settings = Settings.of({"ACTKIT_WORKSPACE": str(workspace)})
        self.jobs = Jobs(self.settings)
        with socket.socket() as probe:
            probe.bind((address, 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://{address}:{self.port}/app"
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "panel", "serve", str(ROOT / "app"), "--address", self.address]
        command += ["--port", str(self.port), "--num-threads", "4", "--warm"]
        told = {"ACTKIT_WORKSPACE": str(self.workspace), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        with (self.workspace.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **told})
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), urlopen(self.url, timeout=60):
                return
            assert time.monotonic() < deadline, (self.workspace.parent / "server.log").read_text()
            time.sleep(0.1)

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    own = Server(tmp_path_factory.mktemp("app") / "runs")
    numbers = synthetic(n_layers=6, n_samples=60, n_tokens=8)
    run = own.workspace / "made-before"
    run.mkdir()
    writer = numbers.create(run)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    yield own
    for found in own.jobs:
        if found.state.is_active:
            psutil.Process(found.status["pid"]).kill()
    own.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        own = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield own
        own.close()


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
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    try:
        yield page
        origin = url.split("/app")[0]
        assert [to for to in asked if not to.startswith((origin, "data:", "blob:"))] == []
        assert said == [] or loses_its_server
    finally:
        SCREENS.mkdir(parents=True, exist_ok=True)
        context.close()


def ready(page: Page) -> None:
    """Wait until the first plan is there: the page has nothing more to say by itself."""
    expect(page.get_by_text("2,000 in english, arabic")).to_be_visible(timeout=LONG)


def card(page: Page, name: str) -> None:
    expect(page.get_by_role("heading", name=re.compile(name))).to_be_visible(timeout=LONG)


def test_the_first_click_is_start_and_the_run_outlives_everything(server: Server, browser: Browser) -> None:
    with opened(browser, server.url, loses_its_server=True) as page:
        ready(page)
        page.get_by_label("Name of the run").fill("first")
        page.get_by_label("Name of the run").press("Enter")
        page.get_by_role("button", name="Start").click()
        card(page, "first")
        page.reload()
        card(page, "first")
        page.screenshot(path=SCREENS / "extract_1440_light.png")
        server.stop(signal.SIGKILL)  # the run goes on
        server.start()
        card(page, "first done")  # the page came back by itself
    with opened(browser, server.url) as page, opened(browser, server.url, 390, 844) as phone:
        for own in (page, phone):
            card(own, "first done")
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        phone.screenshot(path=SCREENS / "extract_390_light.png")
    assert server.jobs["first"].state is State.DONE
    assert open_cube(server.workspace / "first").sizes["sample"] == 2000


def test_cancel_resume_and_delete(server: Server, browser: Browser) -> None:
    with opened(browser, server.url) as page:
        ready(page)
        page.get_by_label("Name of the run").fill("second")
        page.get_by_label("Name of the run").press("Enter")
        page.get_by_role("button", name="Start").click()
        card(page, "second")
        page.get_by_role("button", name="Cancel").click()
        card(page, "second cancelled")
        page.get_by_role("button", name="Resume").click()
        card(page, "second done")
        page.get_by_role("button", name="Delete").first.click()
        page.get_by_role("button", name="Delete second").click()
        expect(page.get_by_role("heading", name=re.compile("second"))).to_have_count(0)
    assert not (server.workspace / "second").exists()


def test_what_is_wrong_stands_at_its_field(server: Server, browser: Browser) -> None:
    with opened(browser, server.url) as page:
        ready(page)
        limit = page.get_by_label("Limit", exact=True)
        limit.fill("many")
        limit.press("Enter")
        expect(page.get_by_text("'many' is not possible")).to_be_visible(timeout=LONG)
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        limit.fill("20")
        limit.press("Enter")
        expect(page.get_by_role("button", name="Start")).to_be_enabled(timeout=LONG)
        expect(page.get_by_text("20 in english, arabic")).to_be_visible(timeout=LONG)
        layers = page.get_by_label("Layers", exact=True)
        layers.fill("0-3 mlp_2")
        layers.press("Enter")
        expect(page.get_by_text("4 layers: 0-3; mlp: 1 layer: 2")).to_be_visible(timeout=LONG)


def test_a_link_shows_the_same_and_a_click_chooses_a_layer(server: Server, browser: Browser) -> None:
    link = f"{server.url}?page=explore&run=made-before&tab=norms&layer=1&by=gender"
    with opened(browser, link) as page:
        figure = page.locator(".bk-Figure").first
        expect(figure).to_be_visible(timeout=LONG)
        expect(page.get_by_text("60 samples, 6 layers")).to_be_visible()
        page.wait_for_timeout(1000)
        box = figure.bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + 0.72 * box["width"], box["y"] + 0.35 * box["height"])
        page.wait_for_url(re.compile("layer=[2-5]"), timeout=LONG)
        chosen = re.search(r"layer=(\d)", page.url)
        assert chosen is not None
        page.screenshot(path=SCREENS / "explore_1440_light.png")
        page.get_by_role("button", name="CKA").click()
        page.wait_for_url(re.compile("tab=cka"), timeout=LONG)
        again = page.url
    with opened(browser, again) as page:
        expect(page.locator(".bk-Figure").first).to_be_visible(timeout=LONG)
        assert f"layer={chosen[1]}" in page.url
        expect(page.get_by_text(f"Layer: {chosen[1]}")).to_be_visible()
    with opened(browser, again, 390, 844, "dark") as phone:
        expect(phone.locator(".bk-Figure").first).to_be_visible(timeout=LONG)
        assert phone.evaluate("document.documentElement.scrollWidth") <= 390
        phone.screenshot(path=SCREENS / "explore_390_dark.png")


def test_a_link_that_cannot_be_followed_says_so(server: Server, browser: Browser) -> None:
    link = f"{server.url}?page=explore&run=../../etc&tab=norms"
    with opened(browser, link) as page:
        expect(page.get_by_text(re.compile("there is no"))).to_be_visible(timeout=LONG)


def test_nobody_from_another_machine_uses_a_server_without_a_login(tmp_path: Path, browser: Browser) -> None:
    addresses = [own.address for found in psutil.net_if_addrs().values() for own in found]
    public = [address for address in addresses if re.fullmatch(r"[0-9.]+", address)]
    public = [address for address in public if not address.startswith("127.")]
    if not public:
        pytest.skip("this machine has no address but its own")
    server = Server(tmp_path / "runs", public[0])
    try:
        with opened(browser, server.url) as page:
            expect(page.get_by_text("This server has no login")).to_be_visible(timeout=LONG)
            expect(page.get_by_role("button", name="Start")).to_have_count(0)
    finally:
        server.stop()
