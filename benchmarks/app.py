"""Benchmark of the app in a real browser: time to page and to plots, and memory left by sessions.

python -m benchmarks.app [--limit 2000] [--rounds 5] [--sessions 20]

Requires Debian's chromium. One cube has the shape of Gemma 3 4B: 34 layers × limit × 288 tokens × 2560, 100
GB as float16 with 2,000 samples; its activations are zeros, which compress to almost nothing, and its
summaries random numbers. The other has as many samples and layers, 24 tokens and 256 dimensions.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from actkit.store.ragged import Ragged
from actkit.testing import synthetic
from tests.browser import CHROMIUM, FLAGS

from .timing import in_child, megabytes, parser, print_table, spread

ROOT = Path(__file__).parents[1]
LAYERS, WINDOW = 34, 32
SHAPES = {"as Gemma 3 4B": (288, 2560), "small": (24, 256)}
LONG = 120_000  # milliseconds

# whether text is on the page, including all shadow roots; polled often, since a locator polls twice a second
_SEEN = """
([selector, text]) => {
    const look = (root) => [...root.querySelectorAll("*")].some((element) =>
        (element.matches(selector) && element.innerText.includes(text) && element.checkVisibility())
        || (element.shadowRoot && look(element.shadowRoot)));
    return look(document);
}
"""
# records the time of a click on the page, and the time at which the layer marker was painted at a new
# position
_WATCH = """
() => {
    window.clicked = window.painted = null;
    const painted = () => requestAnimationFrame(() => requestAnimationFrame(() => {
        window.painted ??= performance.now();
    }));
    const clicked = (event) => { window.clicked = event.timeStamp; };
    addEventListener("pointerdown", clicked, {capture: true, once: true});
    for (const shown of Bokeh.documents)
        for (const model of shown._all_models.values())
            if (model.type == "BoxAnnotation" && (model.tags ?? []).includes("left")) {
                model.properties.left.change.connect(painted);
                return;
            }
}
"""


def write(run: Path, samples: int, tokens: int, hidden: int) -> None:
    """Write a cube whose activations are zeros."""
    narrow = synthetic(n_layers=LAYERS, n_samples=samples, n_tokens=tokens, hidden=1, window=WINDOW)
    plan = replace(narrow.plan, shape=replace(narrow.plan.shape, hidden=hidden))
    names = ("norm", "n_tokens", "token_id", "token_kind", "token_text")
    values = {name: narrow.values[name] for name in names}
    cube = replace(narrow, plan=plan, values=values)
    whole = replace(cube, values={**values, **dict.fromkeys(("residual", "pooled", "last"), np.empty(0))})
    run.mkdir()
    writer, rng = whole.create(run), np.random.default_rng(0)
    for window in range(plan.n_windows):
        part = cube.part(window)
        lengths = np.asarray(part["n_tokens"])
        zeros = np.zeros((LAYERS, int(lengths.sum()), hidden), dtype=np.float16)
        part["residual"] = Ragged(zeros, np.cumsum(lengths) - lengths, lengths, tuple(range(LAYERS)))
        for name in ("pooled", "last"):
            part[name] = rng.standard_normal((LAYERS, len(lengths), hidden), dtype=np.float32)
        writer.write(window, part)


@contextmanager
def serving(workspace: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Serve the app as `make app` does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "panel", "serve", str(ROOT / "app"), "--address", "127.0.0.1"]
    command += ["--port", str(port), "--num-threads", "4", "--warm"]
    environment = {**os.environ, "ACTKIT_WORKSPACE": str(workspace)}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as own:
        url = f"http://127.0.0.1:{port}/app"
        try:
            while own.poll() is None:
                with suppress(OSError), urlopen(url, timeout=60):
                    break
                time.sleep(0.1)
            yield url, psutil.Process(own.pid)
        finally:
            own.terminate()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """Open a page in a browser with an empty cache."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(LONG)
    page = context.new_page()
    page.goto(url, wait_until="commit")
    yield page
    context.close()


def seen(page: Page, selector: str, text: str = "") -> None:
    page.wait_for_function(_SEEN, arg=[selector, text], polling=20)


def usable(browser: Browser, url: str) -> float:
    """Return the seconds until the button that starts a run is visible."""
    started = time.perf_counter()
    with opened(browser, url) as page:
        seen(page, "button", "Start")
        shown = time.perf_counter() - started
        page.get_by_text(
            " in english, arabic"
        ).wait_for()  # the plan; a first run may start before it appears
    return shown


def first_plot(browser: Browser, url: str, run: str) -> float:
    """Return the seconds from a click on Explore to the first plot."""
    with opened(browser, url) as page:
        page.get_by_text(" in english, arabic").wait_for()
        page.get_by_role("heading", name=run).wait_for()
        cards = [told for told in page.locator("h3").all_inner_texts() if told.startswith("cube-")]
        place = next(place for place, told in enumerate(cards) if told.startswith(run))
        explore = page.get_by_role("button", name="Explore").nth(place)
        started = time.perf_counter()
        explore.click()
        seen(page, ".bk-Figure")
        return time.perf_counter() - started


def linked_plot(browser: Browser, url: str, run: str) -> float:
    """Return the seconds from opening a link to its first plot."""
    started = time.perf_counter()
    with opened(browser, f"{url}?page=explore&run={run}&tab=norms") as page:
        seen(page, ".bk-Figure")
        return time.perf_counter() - started


def clicks(browser: Browser, url: str, run: str, rounds: int) -> list[float]:
    """Return the milliseconds from each click on a layer until its marker is painted."""
    taken = []
    with opened(browser, f"{url}?page=explore&run={run}&tab=norms") as page:
        figure = page.locator(".bk-Figure").first
        figure.wait_for()
        page.wait_for_timeout(2000)
        box = figure.bounding_box()
        assert box is not None
        for turn in range(rounds + 1):
            page.evaluate(_WATCH)
            across = 0.3 + 0.5 * (turn % 2) + 0.02 * turn
            page.mouse.click(box["x"] + across * box["width"], box["y"] + 0.35 * box["height"])
            page.wait_for_function("window.painted")
            if turn:
                taken.append(page.evaluate("window.painted - window.clicked"))
            page.wait_for_timeout(1500)
    return taken


def sessions(browser: Browser, url: str, run: str, process: psutil.Process, count: int) -> list[int]:
    """Return the server's memory after each time a page was opened and closed."""
    held = []
    for _ in range(count):
        linked_plot(browser, url, run)
        time.sleep(0.5)
        held.append(process.memory_info().rss)
    return held


def main() -> None:
    options = parser(__doc__, limit=2000)
    options.add_argument("--sessions", type=int, default=20)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        workspace = Path(temporary, "runs")
        workspace.mkdir()
        for place, (tokens, hidden) in enumerate(SHAPES.values()):
            in_child(write, workspace / f"cube-{place}", asked.limit, tokens, hidden)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        with serving(workspace) as (url, process):
            usable(browser, url)
            rows = [
                {
                    "": "page: Start is seen, s",
                    "cube": "",
                    "measured": spread([usable(browser, url) for _ in range(asked.rounds)]),
                }
            ]
            for place, name in enumerate(SHAPES):
                run = f"cube-{place}"
                first = first_plot(browser, url, run)
                again = [first_plot(browser, url, run) for _ in range(asked.rounds)]
                linked = [linked_plot(browser, url, run) for _ in range(asked.rounds)]
                taken = clicks(browser, url, run, 2 * asked.rounds)
                rows += [
                    {"": what, "cube": name, "measured": told}
                    for what, told in {
                        "Explore clicked, to the first plot: the first time ever, s": f"{first:.2f}",
                        "the same, once it was computed, s": spread(again),
                        "a link, in a new browser, to the first plot, s": spread(linked),
                        "click on a layer, to its mark painted, ms": spread(taken, 0),
                    }.items()
                ]
            print(f"\n### The app in a browser: {LAYERS} layers × {asked.limit:,} samples")
            print_table(rows)
            held = sessions(browser, url, "cube-1", process, asked.sessions)
            told = {count: held[count - 1] for count in (1, 5, 10, 20, 50, 100, 200) if count <= len(held)}
            print("\n### Pages opened and closed, and the server's memory")
            print_table([{"pages": count, "MB": megabytes(size)} for count, size in told.items()])
        browser.close()


if __name__ == "__main__":
    main()
