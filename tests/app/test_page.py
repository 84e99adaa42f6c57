"""The app in a real browser: start a run, watch it, come back to it, look at what it computed."""

import re
import signal
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, expect

from actkit import open_cube
from app.jobs import State
from tests.app.server import IN_BROWSER, LONG, ROOT, SCREENS, Server, card, opened, ready

pytestmark = IN_BROWSER


def test_the_first_click_is_start_and_the_run_outlives_everything(server: Server, browser: Browser) -> None:
    with opened(browser, server.url, loses_its_server=True) as page:
        ready(page)
        page.get_by_label("Run name").fill("first")
        page.get_by_label("Run name").press("Enter")
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
        page.get_by_label("Run name").fill("second")
        page.get_by_label("Run name").press("Enter")
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


@pytest.fixture
def public() -> str:
    """An address of this machine that others see."""
    addresses = [own.address for found in psutil.net_if_addrs().values() for own in found]
    found = [address for address in addresses if re.fullmatch(r"[0-9.]+", address)]
    found = [address for address in found if not address.startswith("127.")]
    if not found:
        pytest.skip("this machine has no address but its own")
    return found[0]


def test_nobody_from_another_machine_uses_a_server_without_a_login(
    tmp_path: Path, browser: Browser, public: str
) -> None:
    server = Server(tmp_path / "runs", public)
    try:
        with opened(browser, server.url) as page:
            expect(page.get_by_text("This server has no login")).to_be_visible(timeout=LONG)
            expect(page.get_by_role("button", name="Start")).to_have_count(0)
    finally:
        server.stop()


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
                    expect(page.get_by_text(re.compile("invalid", re.IGNORECASE))).to_be_visible(timeout=LONG)
            ready(page)
            expect(page.get_by_role("button", name="Start")).to_be_enabled()
    finally:
        server.stop()
