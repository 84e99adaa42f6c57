"""The first notebooks in a real JupyterLab: progress moves, and what was interrupted is resumed."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

import bokeh
import panel
import panel_material_ui
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

import actkit
from tests.browser import CHROMIUM, FLAGS

ROOT = Path(__file__).parents[2]
SCREENS = ROOT / "build" / "screens"
LONG = 240_000  # milliseconds, on a machine with other work
expect.set_options(timeout=LONG)
# changes to the copies: a run that is slow enough to be interrupted on any machine, and a short one
CHANGES = {
    "01_extract.ipynb": (
        r"out=\"runs/captions\", max_tokens=128)",
        r"out=\"runs/slow\", batch_size=2, limit=1200)",
    ),
    "02_layer_norms.ipynb": ("max_tokens=128, listeners", "max_tokens=128, limit=200, listeners"),
}
# cells that are out of sight stay in the page; nobody is asked about news
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false"},
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A JupyterLab with default settings, and a copy of the notebooks."""
    home = tmp_path_factory.mktemp("lab")
    work = home / "work"
    shutil.copytree(ROOT / "notebooks", work, ignore=shutil.ignore_patterns("runs", ".ipynb_checkpoints"))
    for name, (before, after) in CHANGES.items():
        content = (work / name).read_text(encoding="utf-8")
        assert before in content
        (work / name).write_text(content.replace(before, after), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"ip": "127.0.0.1", "port": port, "token": "", "password": "", "allow_root": True}
    options["root_dir"] = str(work)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    command += [f"--ServerApp.{name}={value}" for name, value in options.items()]
    folders = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    )
    variables = {name: str(home / name) for name in (*folders, "IPYTHONDIR", "ACTKIT_WORKSPACE")}
    for name, setting in SETTINGS.items():
        file = home / "JUPYTERLAB_SETTINGS_DIR" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(setting), encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # where `panel` is
    variables |= {"HF_HUB_OFFLINE": "1", "PATH": path}
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **variables}, cwd=ROOT)
        url = f"http://127.0.0.1:{port}"
        while True:  # pytest-timeout ends a test that waits in vain
            with suppress(OSError), urlopen(f"{url}/api/status", timeout=60):
                break
            assert process.poll() is None, (home / "server.log").read_text()
            time.sleep(0.2)
        try:
            yield url, work
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that gets what a notebook takes from CDNs out of the packages: the same files."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(LONG)
    page.set_default_navigation_timeout(LONG)
    page.route(re.compile(r"^https://"), from_packages)
    yield page
    page.close()


def from_packages(route: Route) -> None:
    path = unquote(urlsplit(route.request.url).path)
    if path.startswith("/bokeh/"):
        name = Path(path).name.replace(f"-{bokeh.__version__}", "")
        file = Path(bokeh.__file__).parent / "server/static/js" / name
    elif path.startswith("/panel-material-ui/"):
        file = Path(panel_material_ui.__file__).parent / "dist" / Path(path).name
    else:
        file = Path(panel.__file__).parent / "dist" / path.partition("/dist/")[2]
    if file.is_file():
        route.fulfill(path=file)
    else:
        route.abort()


def open_notebook(page: Page, url: str, name: str) -> None:
    """Open a notebook, and wait until its kernel is ready."""
    page.goto(f"{url}/lab/tree/{name}?reset")
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()


def run_all(page: Page) -> None:
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()


def state(page: Page) -> Locator:
    return page.locator(".actkit .state")


def cell(page: Page, text: str) -> Locator:
    return page.locator(".cm-line", has_text=text).first


def run_cell(page: Page, text: str) -> None:
    cell(page, text).click()
    page.keyboard.press("Control+Enter")


def check_form(page: Page) -> None:
    """Check that the form reports an invalid layer, and plans valid ones."""
    for text in ("%env OMP", "form = ExtractionForm"):
        run_cell(page, text)
    layers = page.get_by_label("layers")
    expect(layers).to_have_value("all")
    layers.fill("0-12")
    layers.press("Enter")
    expect(page.get_by_text("the model has no layer 12")).to_be_visible()
    layers.fill("mlp_0-3 2")
    layers.press("Enter")
    page.get_by_role("button", name="Plan").click()
    expect(page.get_by_text("5: 2 mlp_0-3")).to_be_visible()


@pytest.mark.timeout(1800)
def test_a_form_is_filled_in_and_its_run_watched_interrupted_and_resumed(
    lab: tuple[str, Path], page: Page
) -> None:
    url, work = lab
    open_notebook(page, url, "01_extract.ipynb")
    check_form(page)
    run_all(page)
    expect(page.get_by_label("layers")).to_have_value("all")
    expect(state(page)).to_have_text("running")
    figures = page.locator(".actkit .figures", has_text=re.compile(r"([6-9]\d\d|1,\d{3}) of 1,200 samples"))
    expect(figures).to_be_visible()
    state(page).scroll_into_view_if_needed()
    SCREENS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENS / "jupyterlab_running.png")
    expect(page.get_by_role("meter").first).to_be_visible()
    page.locator('[data-jp-item-name="interrupt"]').click()
    expect(state(page)).to_have_text("interrupted")
    expect(page.get_by_text("run the cell again to resume")).to_be_visible()
    page.screenshot(path=SCREENS / "jupyterlab_interrupted.png")
    kept = actkit.open_cube(work / "runs/slow", partial=True).sizes["sample"]
    assert 0 < kept < 1_200

    # the kernel drops what was queued behind the cell, and whatever comes while it does
    expect(page.get_by_text("KeyboardInterrupt").first).to_be_visible()
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    page.wait_for_timeout(2000)
    run_cell(page, "cube = actkit.extract(**form.options")
    expect(state(page)).to_have_text("done")
    expect(page.get_by_text("1,200 of 1,200 samples")).to_be_visible()
    page.screenshot(path=SCREENS / "jupyterlab_done.png")
    log = (work / "runs/slow/log.txt").read_text()
    assert f"{1_200 - kept:d} of 1200 samples remain to be computed" in log
    assert actkit.verify(work / "runs/slow").faults == ()


@pytest.mark.timeout(1800)
def test_plots_and_the_explorer_are_drawn(lab: tuple[str, Path], page: Page) -> None:
    url, _ = lab
    open_notebook(page, url, "02_layer_norms.ipynb")
    run_all(page)
    expect(page.get_by_role("button", name="CKA")).to_be_visible()
    page.get_by_role("button", name="CKA").scroll_into_view_if_needed()
    page.get_by_role("button", name="CKA").click()
    expect(page.get_by_text("english, without top 3 dimensions")).to_be_visible()  # of its legend
    page.get_by_role("button", name="Python", exact=True).first.click()
    expect(page.get_by_text("actkit.plots.adjacent_cka(")).to_be_visible()
    expect(page.locator(".bk-Figure").last).to_be_visible()
    page.screenshot(path=SCREENS / "jupyterlab_explorer.png")


def test_the_app_is_served_beside_it(lab: tuple[str, Path], page: Page) -> None:
    url, _ = lab
    page.goto(f"{url}/panel/app")
    expect(page.get_by_text("10: 0-9")).to_be_visible()  # a plan, made by a process of its own
    expect(page.get_by_role("button", name="Start")).to_be_enabled()
