"""The app in a real browser: start a run, watch it, come back to it, look at what it computed."""

import re
import signal
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

from actkit import open_cube
from actkit.extraction.loop.device_queue import hold_device
from app.run_state import State
from tests.app.server import IN_BROWSER, ROOT, SCREENS, Server, card, click_figure, opened, ready

pytestmark = IN_BROWSER


def start_short_run(page: Page, name: str) -> None:
    """Start a run of 32 samples from the form."""
    ready(page)
    expect(page.get_by_role("button", name="Start")).to_be_enabled()  # without any entry
    for label, value in (("Run name", name), ("Limit", "32")):
        page.get_by_label(label, exact=True).fill(value)
        page.get_by_label(label, exact=True).press("Enter")
    expect(page.get_by_text("32 in english, arabic")).to_be_visible()
    page.get_by_role("button", name="Start").click()
    card(page, name)


def test_a_run_outlives_its_page_and_its_server(server: Server, browser: Browser) -> None:
    with opened(browser, server.url, loses_its_server=True) as page:
        with hold_device(server.settings.queue, "cpu", lambda: None):
            start_short_run(page, "first")
            page.screenshot(path=SCREENS / "extract_1440_light.png")
            server.stop(signal.SIGKILL)  # the run waits for its device
            server.start()
            card(page, "first queued")  # the page reloads by itself
        card(page, "first done")
        page.set_viewport_size({"width": 390, "height": 844})
        card(page, "first done")
        page.wait_for_function("document.documentElement.scrollWidth <= 390")
        page.screenshot(path=SCREENS / "extract_390_light.png")
    assert server.jobs["first"].state is State.DONE
    assert open_cube(server.workspace / "first").sizes["sample"] == 32


def test_cancel_resume_and_delete(server: Server, browser: Browser) -> None:
    with opened(browser, server.url) as page:
        with hold_device(server.settings.queue, "cpu", lambda: None):
            start_short_run(page, "second")
            page.get_by_role("button", name="Cancel").click()
            card(page, "second cancelled")
        page.get_by_role("button", name="Resume").click()
        card(page, "second done")
        page.get_by_role("button", name="Delete").first.click()
        page.get_by_role("button", name="Delete second").click()
        expect(page.get_by_role("heading", name=re.compile("second"))).to_have_count(0)
    assert not (server.workspace / "second").exists()


def test_an_invalid_option_is_reported_at_its_field(server: Server, browser: Browser) -> None:
    with opened(browser, server.url) as page:
        ready(page)
        limit, layers = (page.get_by_label(label, exact=True) for label in ("Limit", "Layers"))
        limit.fill("many")
        limit.press("Enter")
        expect(page.get_by_text("'many' is not possible")).to_be_visible()
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        layers.fill("0-3 mlp_2")
        layers.press("Enter")
        limit.fill("20")
        limit.press("Enter")
        expect(page.get_by_role("button", name="Start")).to_be_enabled()
        expect(page.get_by_text("20 in english, arabic")).to_be_visible()
        expect(page.get_by_text("4 layers: 0-3; mlp: 1 layer: 2")).to_be_visible()


def test_a_link_shows_the_same_and_a_click_chooses_a_layer(server: Server, browser: Browser) -> None:
    link = f"{server.url}?page=explore&run=made-before&tab=norms&layer=1&by=gender"
    with opened(browser, link) as page:
        expect(page.get_by_text("60 samples, 6 layers")).to_be_visible()
        click_figure(page, 0.72, 0.35)
        page.wait_for_url(re.compile("layer=[2-5]"))
        chosen = re.search(r"layer=(\d)", page.url)
        assert chosen is not None
        page.screenshot(path=SCREENS / "explore_1440_light.png")
        page.get_by_role("button", name="CKA").click()
        page.wait_for_url(re.compile("tab=cka"))
        again = page.url
    with opened(browser, again) as page:
        expect(page.locator(".bk-Figure").first).to_be_visible()
        assert f"layer={chosen[1]}" in page.url
        expect(page.get_by_text(f"Layer: {chosen[1]}")).to_be_visible()
        page.set_viewport_size({"width": 390, "height": 844})
        expect(page.locator(".bk-Figure").first).to_be_visible()
        page.wait_for_function("document.documentElement.scrollWidth <= 390")
        page.screenshot(path=SCREENS / "explore_390_light.png")


def test_a_link_that_cannot_be_followed_says_so(server: Server, browser: Browser) -> None:
    link = f"{server.url}?page=explore&run=../../etc&tab=norms"
    with opened(browser, link) as page:
        expect(page.get_by_text(re.compile("there is no"))).to_be_visible()


def test_who_has_a_password_uses_it_from_another_machine(
    tmp_path: Path, browser: Browser, public: str
) -> None:
    users = tmp_path / "users.json"
    users.write_text('{"amira": "right"}')
    options = ["--basic-auth", str(users), "--cookie-secret", "0" * 64]
    options += ["--basic-login-template", str(ROOT / "app" / "templates" / "login.html")]
    server = Server(tmp_path / "runs", public, options)
    try:
        with opened(browser, server.url) as page:
            for password in ("wrong", "right"):
                page.get_by_label("Name").fill("amira")
                page.get_by_label("Password").fill(password)
                page.get_by_role("button", name="Log in").click()
                if password == "wrong":
                    expect(page.get_by_text(re.compile("invalid", re.IGNORECASE))).to_be_visible()
            ready(page)
            expect(page.get_by_role("button", name="Start")).to_be_enabled()
    finally:
        server.stop()
