"""Extractions into a bucket by the command line: the bytes of a local run, and no credential anywhere."""

import base64
import hashlib
import hmac
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import load

import actkit
from actkit.cli import main
from actkit.demo import CAPTIONS, MODEL
from actkit.errors import CorruptError, CubeError, IncompleteError, InputError, StorageError
from actkit.store.layout import CUBE
from actkit.store.object_folder import ObjectFolder
from actkit.testing import contents, write_cube
from tests.object_servers import SECRET, free_port, moto_server, new_bucket, options, proxy, wait_for

OPTIONS = ("--model", str(MODEL), "--data", str(CAPTIONS), "--limit", "12", "--window-samples", "4")
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def url(server: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A URL whose credentials are in the environment."""
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server}",
        "AWS_ACCESS_KEY_ID": "KeyOfTheTests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{new_bucket(server)}/runs/x"


def stored(url: str) -> dict[str, bytes]:
    """Return every object of a run."""
    folder = ObjectFolder(url)
    return {key: folder.get(key) for key in folder.entries()}


def cube_of(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {key.removeprefix(f"{CUBE}/"): value for key, value in objects.items() if key.startswith(CUBE)}


@pytest.mark.slow
def test_the_command_line_extracts_into_a_bucket(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = tmp_path / "local"
    assert main(["extract", *OPTIONS, "--out", str(local)]) == 0
    assert main(["plan", *OPTIONS, "--out", url, "--no-trial"]) == 0
    assert main(["extract", *OPTIONS, "--out", url]) == 0
    objects = stored(url)
    assert cube_of(objects) == contents(local / CUBE)
    assert {"config.yaml", "log.txt", "metadata.json", "status.json"} == {
        key for key in objects if not key.startswith(CUBE)
    }
    ObjectFolder(f"{url}/{CUBE}").remove("committed/c.1")
    for command in (
        ["extract", *OPTIONS, "--out", url],
        ["info", url],
        ["verify", url],
        ["export", url, "--format", "npz", "--layers", "2", "--out", str(tmp_path / "exported")],
    ):
        assert main(command) == 0, command
    assert cube_of(stored(url)) == contents(local / CUBE)
    assert (
        main(["export", str(local), "--format", "npz", "--layers", "2", "--out", str(tmp_path / "ours")]) == 0
    )
    assert contents(tmp_path / "exported") == contents(tmp_path / "ours")
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    files += [*stored(url).values(), "".join(capsys.readouterr()).encode()]
    assert not any(SECRET.encode() in content for content in files)


SMALL = {"model": str(MODEL), "data": str(CAPTIONS), "limit": 12, "window_samples": 4, "layers": "0-1"}


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of a folder for runs, in the memory of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"memory://{tmp_path.name}/runs"


def run(out: str | Path, **options: Any) -> None:
    actkit.extract(**{**SMALL, **options, "out": str(out)}, listeners=[])


@pytest.mark.slow
def test_parts_in_a_bucket_are_sealed(
    memory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The moments are those of a local run, and what is missing is named by part."""
    url = f"{memory}/parts"
    run(tmp_path / "local", whiten=True)
    with pytest.raises(CubeError, match="holds no cube"):
        actkit.seal(url)
    run(url, whiten=True, part="2/2")
    with pytest.raises(IncompleteError) as caught:
        actkit.seal(url)
    assert str(caught.value).splitlines() == [
        f"{url}: 2 of 3 windows are missing",
        "  - part 1/2: not started, lacks 2 windows: 0, 2 (run it with --part 1/2)",
    ]
    run(url, whiten=True, part="1/2")
    assert main(["info", url]) == 0
    assert "2: 1/2 done, 2/2 done" in capsys.readouterr().out
    cube = actkit.seal(url)
    assert cube.sizes["sample"] == 12
    objects = stored(url)
    assert cube_of(objects) == contents(tmp_path / "local" / CUBE)
    assert objects["moments.safetensors"] == (tmp_path / "local" / "moments.safetensors").read_bytes()
    assert {"parts/1-of-2/status.json", "parts/2-of-2/log.txt", "log.txt"} < objects.keys()
    status = json.loads(objects["status.json"])
    assert [status[name] for name in ("state", "committed")] == ["done", 12]
    actkit.seal(url, quick=True)  # once more
    (ObjectFolder(url) / CUBE).put("norm/c.0.1.0", objects[f"{CUBE}/norm/c.0.0.0"])
    with pytest.raises(CorruptError, match=r"norm/c\.0\.1\.0"):
        actkit.seal(url)


@pytest.mark.slow
def test_the_moments_of_a_run_in_a_bucket(memory: str, tmp_path: Path) -> None:
    run(tmp_path / "local", whiten=True)
    url = f"{memory}/x"
    run(url, whiten=True)
    moments = (tmp_path / "local" / "moments.safetensors").read_bytes()
    assert ObjectFolder(url).get("moments.safetensors") == moments
    # another machine, which has no moments yet, computes them from the cube
    shutil.rmtree(tmp_path / "cache")
    ObjectFolder(url).remove(f"{CUBE}/committed/c.1")
    run(url, whiten=True)
    first, again = load(moments), load(ObjectFolder(url).get("moments.safetensors"))
    assert again.keys() == first.keys()
    for name, values in first.items():
        np.testing.assert_allclose(again[name], values, rtol=1e-9, atol=1e-9 * abs(values).max())
    with pytest.raises(InputError, match="actkit pull"):
        actkit.Whitener.of_run(url, layer=1)
    actkit.pull(url, tmp_path / "pulled")
    assert (
        actkit.Whitener.of_run(tmp_path / "pulled", layer=1, shrinkage="ledoit-wolf").settings["layer"] == 1
    )


@pytest.mark.slow
def test_runs_in_a_bucket_are_extended_and_joined(memory: str, tmp_path: Path) -> None:
    """With the bytes that the same has in folders, and nothing else is left in the bucket."""
    run(f"{memory}/a")
    run(f"{memory}/b", layers="3")
    more = actkit.extend(f"{memory}/a", out=f"{memory}/more", layers="0-1 3", listeners=[])
    for name in ("a", "b"):
        actkit.pull(f"{memory}/{name}", tmp_path / name)
    for where in (memory, str(tmp_path)):
        cube = actkit.join([f"{where}/a", f"{where}/b"], dim="layer", out=f"{where}/both")
        assert cube.layer.values.tolist() == [0, 1, 3]
    assert cube_of(stored(f"{memory}/both")) == contents(tmp_path / "both" / CUBE)
    xr.testing.assert_equal(more.load().drop_attrs(), cube.load().drop_attrs())
    assert {key.split("/")[0] for key in stored(memory)} == {"a", "b", "more", "both"}
    settings = ObjectFolder(f"{memory}/more").get("config.yaml").decode()
    assert f"out: {memory}/more" in settings
    for attempt in (
        lambda: actkit.extend(f"{memory}/a", out=f"{memory}/both", layers="0-2"),
        lambda: actkit.join([f"{memory}/a", f"{memory}/b"], dim="layer", out=f"{memory}/both"),
    ):
        with pytest.raises(InputError, match=r"runs/both already exists \(name a new URL\)"):
            attempt()
    # a cube in a bucket and one in a folder
    mixed = actkit.join([f"{memory}/a", str(tmp_path / "b")], dim="layer")
    assert mixed.residual.sel(layer=3).notnull().any()


def test_a_server_that_refuses_access_is_named_once(server: int, tmp_path: Path) -> None:
    with proxy(server) as refusing:
        refusing.fault = lambda _request: "403"
        url = f"s3://{new_bucket(server)}/runs/x"
        source = write_cube(tmp_path / "run", n_samples=4)
        with pytest.raises(StorageError) as caught:
            actkit.push(source, url, storage_options=options(refusing.port))
    message, _, kept = str(caught.value).partition("; what was copied")
    assert message == f"cannot push to {url}: access was denied; check the credentials in the environment"
    assert kept


@pytest.mark.nightly
def test_a_report_of_a_run_in_a_bucket(url: str, tmp_path: Path) -> None:
    assert main(["extract", *OPTIONS, "--out", url]) == 0
    assert main(["report", url, "--out", str(tmp_path / "report.html")]) == 0
    assert SECRET not in (tmp_path / "report.html").read_text()


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_at_random_moments(url: str, tmp_path: Path) -> None:
    assert main(["extract", *OPTIONS, "--out", str(tmp_path / "local")]) == 0
    command = [sys.executable, "-m", "actkit.cli", "extract", *OPTIONS, "--out", url]
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.monotonic() - started
    moments = np.random.default_rng(0).uniform(0.3, 1, 20) * whole
    for number, moment in enumerate(moments):
        target = f"{url}-{number}"
        process = subprocess.Popen(
            [*command[:-1], target], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert main(["extract", *OPTIONS, "--out", target]) == 0
        assert cube_of(stored(target)) == contents(tmp_path / "local" / CUBE), moment


@pytest.mark.skipif(shutil.which("azurite-blob") is None, reason="needs Node.js and `npm install -g azurite`")
def test_a_run_in_azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    command = [
        "azurite-blob",
        "--skipApiVersionCheck",
        "--blobPort",
        str(port),
        "--silent",
        "--inMemoryPersistence",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    try:
        wait_for(port, process)
        storage_options = {
            "account_name": "devstoreaccount1",
            "account_key": AZURITE_KEY,
            "endpoint": f"http://127.0.0.1:{port}/devstoreaccount1",
        }
        _create_container(port, "box")
        run, url = write_cube(tmp_path / "run", n_samples=10), "az://box/runs/x"
        for present in (0, 3):
            assert actkit.push(run, url, storage_options=storage_options).present == present
        assert actkit.pull(url, tmp_path / "back", storage_options=storage_options).windows == 3
        assert contents(tmp_path / "back" / CUBE) == contents(run / CUBE)
        cube = actkit.open_cube(url, storage_options=storage_options).compute()
        assert cube.identical(actkit.open_cube(run).compute())
        assert actkit.verify(url, storage_options=storage_options).ok
    finally:
        process.kill()
        process.wait()


def _create_container(port: int, name: str) -> None:
    """Create a container; obstore has no request for that."""
    date, version = formatdate(usegmt=True), "2021-08-06"
    resource = f"/devstoreaccount1/devstoreaccount1/{name}\nrestype:container"
    text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n{resource}"
    digest = hmac.new(base64.b64decode(AZURITE_KEY), text.encode(), hashlib.sha256).digest()
    headers = {
        "x-ms-date": date,
        "x-ms-version": version,
        "Content-Length": "0",
        "Authorization": f"SharedKey devstoreaccount1:{base64.b64encode(digest).decode()}",
    }
    url = f"http://127.0.0.1:{port}/devstoreaccount1/{name}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers)).close()
