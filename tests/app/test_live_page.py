"""What a page shows of itself: a cube that grows, the numbers under the pointer, and to whom it answers."""

import re
from http.client import HTTPConnection

import pytest
from playwright.sync_api import Browser, expect

from actkit.testing import synthetic
from tests.app.server import IN_BROWSER, SCREENS, Server, drawn, figure_box, opened
from tests.app.training_runs import training

pytestmark = IN_BROWSER


def test_a_cube_is_seen_while_it_is_written(server: Server, browser: Browser) -> None:
    numbers = synthetic(n_layers=4, n_samples=96, n_tokens=6, window=32)
    run = server.workspace / "grows"
    run.mkdir()
    writer = numbers.create(run)
    writer.write(0, numbers.part(0))
    with opened(browser, f"{server.url}?page=explore&run=grows") as page:
        figures = page.locator(".bk-Figure")
        expect(figures.first).to_be_visible()
        expect(page.get_by_text(re.compile("^32 samples, 4 layers"))).to_be_visible()
        for window, samples in ((1, 64), (2, 96)):
            writer.write(window, numbers.part(window))
            expect(page.get_by_text(re.compile(f"^{samples} samples, 4 layers"))).to_be_visible()
            expect(figures.first).to_be_visible()
        page.screenshot(path=SCREENS / "grown_1440_light.png")
    writer.close()


def test_a_training_is_seen_while_it_runs(server: Server, browser: Browser) -> None:
    name = "made-before/saes"
    with training(server.workspace / name, layers=(0, 2, 5)) as trainer:
        trainer.measure(20)
        with opened(browser, server.url) as page:
            heading = page.get_by_role("heading", name=f"{name} running")
            expect(page.get_by_text("20 of 1,000 steps")).to_be_visible()
            paper = page.locator(".MuiPaper-root").filter(has=heading).last
            paper.get_by_role("button", name="Explore").click()
            drawn(page, 4)
            for step in range(40, 300, 20):
                trainer.measure(step)
            expect(page.get_by_text("280 of 1,000 steps · 90,000 tokens/s")).to_be_visible()
            page.wait_for_function(f"({_LAST_STEPS})().every((step) => step == 280)")
            assert "page=explore&run=made-before%2Fsaes" in page.url
            trainer.report("done", 1000)
            expect(page.get_by_role("heading", name=f"{name} done")).to_be_visible()
            page.screenshot(path=SCREENS / "training_1440_light.png")
            page.set_viewport_size({"width": 390, "height": 844})
            page.emulate_media(color_scheme="dark")
            page.reload()
            drawn(page, 4)
            page.screenshot(path=SCREENS / "training_390_dark.png")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390


# the last training step of each curve that is drawn
_LAST_STEPS = """() => Bokeh.documents.flatMap((shown) => [...shown._all_models.values()])
    .filter((model) => model.type == "ColumnDataSource" && model.data.step?.length > 1)
    .map((model) => model.data.step.at(-1))"""


def test_numbers_are_told_under_the_pointer(server: Server, browser: Browser) -> None:
    with opened(browser, f"{server.url}?page=explore&run=made-before&by=&tab=norms") as page:
        box = figure_box(page)
        tooltip = page.locator(".bk-tooltip-content")
        for down in range(10, 90, 2):  # the line is somewhere on the way
            page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + down / 100 * box["height"])
            if tooltip.count():
                break
        expect(tooltip.first).to_have_text(re.compile(r"layer:\s*\d\s*mean:\s*\d+\.\d+"))
        page.screenshot(path=SCREENS / "hovered_1440_light.png")


@pytest.mark.parametrize(("origin", "is_refused"), [("http://evil.example", True), ("", False)])
def test_pages_of_others_are_not_answered(server: Server, origin: str, is_refused: bool) -> None:
    connection = HTTPConnection(server.address, server.port, timeout=60)
    asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    asked |= {"Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==", "Sec-WebSocket-Protocol": "bokeh, no-token"}
    asked["Origin"] = origin or f"http://{server.address}:{server.port}"
    connection.request("GET", "/app/ws", headers=asked)
    assert (connection.getresponse().status == 403) == is_refused
    connection.close()
