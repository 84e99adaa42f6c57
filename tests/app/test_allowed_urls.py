"""Which URLs a browser may open."""

import pytest

from actkit.errors import InputError
from app.allowed_urls import allowed, has_folders, named
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
