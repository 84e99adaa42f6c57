"""Looking at cubes in a real browser: by mouse, by keyboard, by ear, by link; and what may come out of it."""

import dataclasses
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from actkit.testing import synthetic, write_cube
from tests.app.server import (
    IN_BROWSER,
    SCREENS,
    Server,
    click_figure,
    downloaded,
    drawn,
    figure_box,
    opened,
    ready,
)

pytestmark = IN_BROWSER

VIEWS = ("Norms", "Groups", "CKA", "Updates", "Samples")
MARKUP = "<img src=nowhere onerror='window.owned = true'><script>window.owned = true</script>"
# what has the focus, through the shadows of all components
FOCUSED = """
() => {
    let own = document.activeElement;
    while (own?.shadowRoot?.activeElement) own = own.shadowRoot.activeElement;
    const label = own?.getAttribute("aria-label") || own?.labels?.[0]?.innerText || own?.innerText;
    return label || own?.tagName;
}
"""


def looks(page: Page, scheme: str) -> None:
    """Wait until the page's background is dark, or light."""
    colour = "rgb(18, 18, 18)" if scheme == "dark" else "rgb(255, 255, 255)"
    expect(page.locator("body")).to_have_css("background-color", colour)


def link(server: Server, run: str, **chosen: object) -> str:
    told = "".join(f"&{name}={value}" for name, value in chosen.items())
    return f"{server.url}?page=explore&run={run}{told}"


def serious(page: Page) -> list[str]:
    found = Axe().run(page).response["violations"]
    return [
        f"{fault['id']}: {fault['nodes'][0]['html'][:200]}"
        for fault in found
        if fault["impact"] in ("serious", "critical") or fault["id"] == "page-has-heading-one"
    ]


@pytest.mark.parametrize(
    ("width", "height", "scheme"),
    [
        (1440, 900, "light"),
        (390, 844, "dark"),
        pytest.param(1440, 900, "dark", marks=pytest.mark.nightly),
        pytest.param(390, 844, "light", marks=pytest.mark.nightly),
    ],
)
def test_every_view_can_be_seen_and_heard(
    server: Server, browser: Browser, width: int, height: int, scheme: str
) -> None:
    with opened(browser, server.url, width, height, scheme) as page:
        ready(page)
        looks(page, scheme)
        for view in ("extract", *VIEWS):
            if view == "Norms":
                page.get_by_role("button", name="Explore").first.click()
                page.get_by_role("combobox", name="Run").click()
                page.get_by_role("menuitem", name="made-before").click()
            elif view != "extract":
                page.get_by_role("button", name=view, exact=True).click()
                page.wait_for_url(re.compile(f"tab={view.lower()}"))
            if view != "extract":
                drawn(page)
            page.mouse.move(0, 0)  # what is under the pointer has another colour
            page.screenshot(path=SCREENS / f"{view.lower()}_{width}_{scheme}.png")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
            faults = serious(page)
            for _ in range(20):  # colours of buttons fade in
                if faults:
                    page.wait_for_timeout(500)
                    faults = serious(page)
            assert faults == [], view


def test_what_a_reader_toggles_stays(server: Server, browser: Browser) -> None:
    with opened(browser, server.url, scheme="dark") as page:
        ready(page)
        looks(page, "dark")
        page.get_by_role("button", name="theme").click()
        looks(page, "light")
        page.reload()
        ready(page)
        looks(page, "light")


def test_two_cubes_follow_each_other(server: Server, browser: Browser) -> None:
    write_cube(server.workspace / "beside", n_layers=4, n_samples=40, n_tokens=6)
    both = link(server, "made-before", second="beside", tab="norms", layer=1, languages_2="arabic")
    with opened(browser, both) as page:
        drawn(page, 4)
        expect(page.get_by_text("Layer: 1")).to_have_count(2)
        click_figure(page, 0.45, 0.35)
        page.wait_for_url(re.compile("layer=[23]"))
        chosen = re.search(r"layer=(\d)", page.url)
        assert chosen is not None
        expect(page.get_by_text(f"Layer: {chosen[1]}")).to_have_count(2)
        page.get_by_role("button", name="CKA", exact=True).first.click()
        page.wait_for_url(re.compile("tab=cka"))
        drawn(page, 4)
        assert "second=beside" in page.url
        assert "languages_2=arabic" in page.url
        page.screenshot(path=SCREENS / "two_1440_light.png")


def test_points_and_maps_are_clicked(server: Server, browser: Browser) -> None:
    with opened(browser, link(server, "made-before", tab="samples", layer=1)) as page:
        for figure, across, down, change in ((0, 0.5, 0.4, "sample=[0-9]+"), (1, 0.3, 0.15, "layer=[345]")):
            click_figure(page, across, down, figure)
            page.wait_for_url(re.compile(change))
        figure_box(page)
        page.screenshot(path=SCREENS / "tokens_1440_light.png")


def test_a_run_that_is_deleted_is_shown_no_longer(server: Server, browser: Browser) -> None:
    run = write_cube(server.workspace / "goes", n_layers=4, n_samples=20)
    with opened(browser, link(server, "goes")) as page:
        drawn(page)
        shutil.rmtree(run)
        expect(page.locator(".bk-Figure")).to_have_count(0)
        page.wait_for_url(lambda url: "goes" not in url)


def test_files_and_the_python_of_a_plot(server: Server, browser: Browser, tmp_path: Path) -> None:
    with opened(browser, link(server, "made-before", tab="updates")) as page:
        page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        drawn(page)
        for kind, begin in (("PNG", b"\x89PNG"), ("SVG", b"<?xml"), ("CSV", b"language,")):
            button = page.get_by_role("button", name=kind, exact=True)
            expect(button).to_be_enabled()
            download = downloaded(page, button)
            assert download.suggested_filename == f"updates.{kind.lower()}"
            download.save_as(tmp_path / kind)
            assert (tmp_path / kind).read_bytes().startswith(begin)
        page.get_by_role("button", name="Python").click()
        shown = page.get_by_label("Python", exact=True).inner_text()
        assert "actkit.plots.layer_updates" in shown
        page.get_by_role("button", name="Copy").click()
        page.wait_for_function(
            "async (code) => (await navigator.clipboard.readText()).trim() === code", arg=shown.strip()
        )


def test_a_page_is_used_without_a_mouse(server: Server, browser: Browser) -> None:
    with opened(browser, link(server, "made-before", tab="norms", layer=2)) as page:
        drawn(page, 2)
        reached = []
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.append(str(page.evaluate(FOCUSED)).strip())
            if reached[-1] == "Layer":
                page.keyboard.press("ArrowRight")
                page.wait_for_url(re.compile("layer=3"))
            if reached[-1] == "Norms":  # one of several, which the arrows reach
                for name in ("Groups", "CKA"):
                    page.keyboard.press("ArrowRight")
                    assert page.evaluate(FOCUSED).strip() == name
                page.keyboard.press("Enter")
                page.wait_for_url(re.compile("tab=cka"))
                drawn(page)
            if "Python" in reached:
                break
        told = "\n".join(reached)
        for name in ("theme", "Explore", "Norms", "Layer", "Options", "PNG", "SVG", "CSV", "Python"):
            assert name.casefold() in told.casefold(), told


def test_markup_is_text(server: Server, browser: Browser) -> None:
    numbers = synthetic(n_layers=3, n_samples=8)
    texts = np.array([MARKUP] * 8, dtype=numbers.rows["text"].dtype)
    labels = np.array([MARKUP, "plain"] * 4, dtype=numbers.rows["gender"].dtype)
    rows = {**numbers.rows, "text": texts, "gender": labels}
    numbers = dataclasses.replace(numbers, rows=rows, labels={**numbers.labels, "gender": labels})
    run = server.workspace / "<b>bold"
    run.mkdir()
    writer = numbers.create(run)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    server.settings.data.mkdir(exist_ok=True)
    name = "<img src=nowhere onerror=alert(1)>.csv"
    (server.settings.data / name).write_text(f'text,language,gender\n"{MARKUP}",english,{MARKUP}\n')
    with opened(browser, server.url) as page:
        page.on("dialog", lambda dialog: pytest.fail(dialog.message))
        ready(page)
        expect(page.get_by_role("heading", name="<b>bold")).to_be_visible()
        page.get_by_role("combobox", name="Prompts").click()
        page.get_by_role("menuitem", name=name).click()
        expect(page.get_by_label("First rows")).to_contain_text(MARKUP)
        page.get_by_role("tab", name="Explore").click()
        page.get_by_role("combobox", name="Run").click()
        page.get_by_role("menuitem", name="<b>bold").click()
        drawn(page)
        page.get_by_role("button", name="Samples", exact=True).click()
        page.get_by_role("button", name=re.compile("onerror")).first.click()
        page.wait_for_url(re.compile("sample="))
        figure_box(page, 1)
        assert page.locator("img[src=nowhere]").count() == 0
        assert page.evaluate("window.owned") is None


def test_prompts_and_a_config_are_uploaded(server: Server, browser: Browser, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("question,lang,kind\nHow do I bake bread?,en,safe\nكيف أخبز الخبز؟,ar,safe\n")
    large = tmp_path / "large.csv"  # several pieces
    large.write_text("text\n" + f"{'a long line ' * 250}\n" * 4_000)
    (tmp_path / "good.yaml").write_text("model: the bundled model\nlayers: 2-4\nbatch_size: 7\nlimit: 2\n")
    (tmp_path / "bad.yaml").write_text("layers: !!python/object:os.system ls\n")
    with opened(browser, server.url) as page:
        ready(page)
        page.get_by_label("Limit", exact=True).fill("none")  # no plan is made while it is wrong
        page.get_by_label("Limit", exact=True).press("Enter")
        expect(page.get_by_text("'none' is not possible")).to_be_visible()
        files = page.locator("input[type=file]")
        files.nth(0).set_input_files(large)
        expect(page.get_by_text("4,000 rows")).to_be_visible()
        assert (server.settings.data / "large.csv").read_bytes() == large.read_bytes()
        files.nth(0).set_input_files(mine)
        expect(page.get_by_text("How do I bake bread?")).to_be_visible()
        assert (server.settings.data / "mine.csv").read_bytes() == mine.read_bytes()
        files.nth(1).set_input_files(tmp_path / "bad.yaml")
        refusal = page.get_by_text(re.compile("tag .*python/object.* is refused"))
        expect(refusal).to_be_visible()
        assert "/tmp" not in refusal.inner_text()
        files.nth(1).set_input_files(tmp_path / "good.yaml")
        expect(page.get_by_text("3 layers: 2-4")).to_be_visible()
        expect(page.get_by_text("2 in en, ar")).to_be_visible()
        expect(page.get_by_label("Batch size")).to_have_value("7")
        config = Path(downloaded(page, page.get_by_role("button", name="Download YAML")).path()).read_text()
        assert "mine.csv" in config
        assert "batch_size: 7" in config


def test_the_server_never_imports_torch(server: Server, browser: Browser) -> None:
    with opened(browser, link(server, "made-before", tab="groups")) as page:
        drawn(page)
        page.get_by_role("tab", name="Extract").click()
        ready(page)
    mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "numpy" in mapped
    assert "libtorch" not in mapped
