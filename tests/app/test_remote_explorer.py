"""A run in a bucket is explored in a real browser, with the credentials of the server."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

import actkit
from actkit.testing import write_cube
from tests.app.server import IN_BROWSER, Server, drawn, opened
from tests.object_servers import SECRET, moto_server, new_bucket

pytestmark = IN_BROWSER


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a bucket with two runs, whose credentials are in the environment."""
    with moto_server() as port:
        variables = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "KeyOfTheTests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        bucket = f"s3://{new_bucket(port)}"
        run = write_cube(tmp_path / "pushed", n_layers=5, n_samples=40, n_tokens=6)
        for name in ("runs/x", "shared/y"):
            actkit.push(run, f"{bucket}/{name}")
        yield bucket


@pytest.fixture
def remote_server(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("ACTKIT_URLS", f"{bucket}/runs/x {bucket}/shared/")
    server = Server(tmp_path / "app" / "runs")
    yield server
    server.stop()


def test_a_run_in_a_bucket_is_explored(
    remote_server: Server, bucket: str, browser: Browser, tmp_path: Path
) -> None:
    pages: list[Any] = []
    with opened(browser, f"{remote_server.url}?page=explore&run={bucket}/runs/x") as page:
        expect(page.get_by_text("40 samples, 5 layers")).to_be_visible()
        drawn(page)
        field = page.get_by_label("Run at a URL")
        field.fill(f"{bucket}/private/z")
        field.press("Enter")
        expect(page.get_by_text("may not be opened here")).to_be_visible()
        field.fill(f"{bucket}/shared/y")
        field.press("Enter")
        page.wait_for_function("location.search.includes('shared%2Fy')")
        drawn(page)
        pages.append(page.content())
    files = [path.read_bytes() for path in (tmp_path / "app").rglob("*") if path.is_file()]
    everything = [*files, json.dumps(pages).encode()]
    assert not any(SECRET.encode() in content for content in everything)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
