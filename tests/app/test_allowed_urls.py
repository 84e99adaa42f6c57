"""Which URLs a browser may open."""

from pathlib import Path

import pytest

import actkit
from actkit.errors import InputError
from actkit.testing import write_cube
from app import services
from app.allowed_urls import allowed, has_folders, named
from app.jobs import Jobs
from app.page import Page
from app.settings import Settings

URLS = ("s3://bucket/runs/x", "s3://bucket/shared/", "az://open/")


@pytest.mark.parametrize(
    "url", ["s3://bucket/runs/x", "s3://bucket/runs/x/", "s3://bucket/shared/a/b", "az://open/runs/y"]
)
def test_allowed(url: str) -> None:
    assert allowed(URLS, url) == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/runs/xy", "may not be opened here"),
        ("s3://bucket/shared", "may not be opened here"),
        ("s3://bucket/shared-too/a", "may not be opened here"),
        ("s3://other/shared/a", "may not be opened here"),
        ("s3://bucket/shared/../runs/y", "`..` in its path"),
        ("s3://bucket/shared/a?x=1", "has credentials, a query or a fragment"),
        ("s3://key:secret@bucket/shared/a", "has credentials, a query or a fragment"),
        ("file:///etc/passwd", "has the unknown scheme"),
        ("/etc/passwd", "is not the URL of a run"),
        ("s3://bucket/shared/a\n", "is not the URL of a run"),
        ("s3://bucket/shared/" + "a" * 600, "is not the URL of a run"),
    ],
)
def test_not_allowed(url: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        allowed(URLS, url)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_setting() -> None:
    settings = Settings.of({"ACTKIT_URLS": " ".join(URLS)})
    assert settings.urls == URLS
    assert named(settings.urls) == ["s3://bucket/runs/x"]
    assert has_folders(settings.urls)
    assert not has_folders(URLS[:1])
    assert Settings.of({}).urls == ()
    for wrong in ("runs/x", "http://host/runs", "s3://key:secret@bucket/x"):
        with pytest.raises(InputError, match="ACTKIT_URLS"):
            Settings.of({"ACTKIT_URLS": wrong})


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    """A page on a server that allows a run, and all runs of a folder, in the memory of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = f"memory://{tmp_path.name}"
    for name in ("runs/x", "shared/y"):
        actkit.push(write_cube(tmp_path / name, n_layers=3, n_samples=8), f"{store}/{name}")
    settings = Settings(workspace=tmp_path / "app", urls=(f"{store}/runs/x", f"{store}/shared/"))
    monkeypatch.setattr(services, "settings", lambda: settings)
    jobs = Jobs(settings)
    monkeypatch.setattr(services, "jobs", lambda: jobs)
    monkeypatch.setattr(Page, "_fill_tab", lambda page: page._list_runs())  # without the form
    return Page()


def test_a_run_is_chosen_or_typed(page: Page, tmp_path: Path) -> None:
    store = f"memory://{tmp_path.name}"
    assert page._url.visible
    assert page._first.options == ["", f"{store}/runs/x"]
    page._first.value = f"{store}/runs/x"
    page._url.value = f"{store}/private/z"
    assert page._said.visible
    assert "may not be opened here" in page._said.title
    assert page._first.value == f"{store}/runs/x"
    page._url.value = f"{store}/shared/y/"
    assert page._first.value == f"{store}/shared/y"
    assert not page._said.visible
    (explorer,) = page._explorers
    assert explorer.path == f"{store}/shared/y"
    page._url.value = f"{store}/shared/none"
    assert "holds no cube" in page._said.title
