"""Runs in an object store: copied there and back, opened, verified; requests are counted and disturbed."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

import actkit
from actkit.cli import main
from actkit.errors import (
    ActkitError,
    ChangedError,
    CorruptError,
    CubeError,
    IncompleteError,
    InputError,
    StorageError,
)
from actkit.store.layout import CUBE
from actkit.store.object_folder import ObjectFolder
from actkit.store.xarray_backend import CubeBackend
from actkit.testing import contents, flip_bit, write_cube
from tests.object_servers import (
    FAULTS,
    RETRY,
    SECRET,
    Proxy,
    first_attempts,
    moto_server,
    new_bucket,
    options,
    proxy,
)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def url(server: int) -> str:
    return f"s3://{new_bucket(server)}/runs/x"


@pytest.fixture
def disturbed(server: int) -> Iterator[Proxy]:
    with proxy(server) as passing:
        yield passing


def stored(url: str, port: int) -> dict[str, bytes]:
    """Return every object of the cube of a run."""
    folder = ObjectFolder(url, options(port)) / CUBE
    return {key: folder.get(key) for key in folder.entries()}


def test_a_pushed_run_has_the_bytes_of_the_local_one(run: Path, url: str, server: int) -> None:
    (run / "config.yaml").write_text("model: x\n")
    copied = actkit.push(run, url, storage_options=options(server))
    assert (copied.windows, copied.present, copied.missing) == (3, 0, 0)
    assert stored(url, server) == contents(run / CUBE)
    assert ObjectFolder(url, options(server)).read("config.yaml", -1) == b"model: x\n"
    again = actkit.push(run, url, storage_options=options(server))
    assert (again.windows, again.present) == (0, 3)


def test_a_pulled_run_has_the_bytes_of_the_pushed_one(
    run: Path, url: str, server: int, tmp_path: Path
) -> None:
    actkit.push(run, url, storage_options=options(server))
    copied = actkit.pull(url, tmp_path / "back", storage_options=options(server))
    assert copied.windows == 3
    assert contents(tmp_path / "back" / CUBE) == contents(run / CUBE)
    assert actkit.pull(url, tmp_path / "back", storage_options=options(server)).present == 3


def test_a_partial_run_is_continued(url: str, server: int, tmp_path: Path) -> None:
    part = write_cube(tmp_path / "run", n_samples=10, windows=[1])
    assert actkit.push(part, url, storage_options=options(server)).missing == 2
    with pytest.raises(IncompleteError, match="4 of 10 samples"):
        actkit.open_cube(url, storage_options=options(server))
    cube = actkit.open_cube(url, partial=True, storage_options=options(server))
    assert cube.sample.values.tolist() == [4, 5, 6, 7]
    actkit.pull(url, tmp_path / "back", storage_options=options(server))
    write_cube(tmp_path / "whole", n_samples=10)
    assert actkit.push(tmp_path / "whole", url, storage_options=options(server)).windows == 2
    assert actkit.pull(url, tmp_path / "back", storage_options=options(server)).windows == 2
    assert contents(tmp_path / "back" / CUBE) == contents(tmp_path / "whole" / CUBE)


def test_another_cube_at_the_url_is_refused(run: Path, url: str, server: int, tmp_path: Path) -> None:
    actkit.push(run, url, storage_options=options(server))
    other = write_cube(tmp_path / "other")
    with pytest.raises(ChangedError, match="data_sha256"):
        actkit.push(other, url, storage_options=options(server))
    with pytest.raises(InputError, match="holds another cube"):
        actkit.pull(url, other, storage_options=options(server))


@pytest.mark.parametrize("group", ["", "vision"])
def test_a_remote_cube_reads_as_the_local_one(
    intact: Path, url: str, server: int, tmp_path: Path, group: str
) -> None:
    actkit.push(intact, url, storage_options=options(server))
    expected = actkit.open_cube(intact, group=group).compute()
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        cube = actkit.open_cube(url, group=group, storage_options=options(server), cache=cache)
        xr.testing.assert_identical(cube.compute(), expected)
        assert cube.encoding["source"] == f"{url}/{CUBE}"
    lazy = xr.open_dataset(url, engine=CubeBackend, group=group, storage_options=options(server))
    xr.testing.assert_identical(lazy.compute(), expected)


def test_few_requests_open_a_cube_and_read_a_layer(
    tmp_path: Path, url: str, server: int, disturbed: Proxy
) -> None:
    run = write_cube(tmp_path / "run", n_samples=40, n_layers=34, n_tokens=6, hidden=8, window=4)
    actkit.push(run, url, storage_options=options(server))
    cube = actkit.open_cube(url, storage_options=options(disturbed.port))
    assert disturbed.count() <= 12
    disturbed.requests.clear()
    assert cube.n_tokens.variable.values.max() == 6
    assert disturbed.count() <= 10
    disturbed.requests.clear()
    layer = cube.residual.sel(layer=22).variable.compute()
    assert disturbed.count() <= 2 * 10
    assert layer.identical(actkit.open_cube(run).residual.sel(layer=22).variable.compute())


def test_the_cache_saves_requests_and_survives_damage(
    intact: Path, url: str, server: int, disturbed: Proxy, tmp_path: Path
) -> None:
    actkit.push(intact, url, storage_options=options(server))
    counts = []
    for attempt in range(3):
        cube = actkit.open_cube(url, storage_options=options(disturbed.port), cache=tmp_path / "cache")
        disturbed.requests.clear()
        xr.testing.assert_identical(cube.norm.compute(), actkit.open_cube(intact).norm.compute())
        counts.append(disturbed.count())
        if attempt == 1:
            for path in (tmp_path / "cache").rglob("*"):
                if path.is_file():
                    flip_bit(path, 3)
    assert counts[1] < counts[0] == counts[2]


def test_verify_names_damaged_and_missing_objects(intact: Path, url: str, server: int) -> None:
    actkit.push(intact, url, storage_options=options(server))
    result = actkit.verify(url, storage_options=options(server))
    assert result.ok
    assert result.files == actkit.verify(intact).files
    folder = ObjectFolder(url, options(server)) / CUBE
    content = folder.get("norm/c.0.1.0")
    folder.put("norm/c.0.1.0", content[:40] + bytes([content[40] ^ 1]) + content[41:])
    folder.put("pooled/c.0.0.0", folder.get("pooled/c.0.1.0"))
    folder.remove("last/c.0.2.0")
    faults = actkit.verify(url, storage_options=options(server)).faults
    assert sorted(fault.where for fault in faults) == ["last/c.0.2.0", "norm/c.0.1.0", "pooled/c.0.0.0"]
    with pytest.raises(CorruptError, match=r"last/c\.0\.2\.0: is missing"):
        actkit.open_cube(url, storage_options=options(server))


def test_reading_damage_names_the_object(intact: Path, url: str, server: int) -> None:
    actkit.push(intact, url, storage_options=options(server))
    folder = ObjectFolder(url, options(server)) / CUBE
    content = folder.get("residual/c.0.1.0.0")
    folder.put("residual/c.0.1.0.0", content[:100] + bytes([content[100] ^ 1]) + content[101:])
    cube = actkit.open_cube(url, storage_options=options(server))
    with pytest.raises(CorruptError, match=r"residual/c\.0\.1\.0\.0"):
        cube.residual.compute()


def test_a_cube_that_is_replaced_while_it_is_open_is_noticed(
    intact: Path, url: str, server: int, tmp_path: Path
) -> None:
    actkit.push(intact, url, storage_options=options(server))
    cube = actkit.open_cube(url, storage_options=options(server))
    folder = ObjectFolder(url, options(server)) / CUBE
    folder.put("norm/c.0.0.0", folder.get("norm/c.0.1.0"))
    with pytest.raises(CubeError, match="was replaced meanwhile; open the cube again"):
        cube.norm.compute()


def test_damage_is_not_pushed_or_pulled(run: Path, url: str, server: int, tmp_path: Path) -> None:
    flip_bit(run / CUBE / "norm/c.0.1.0", 99)
    with pytest.raises(CorruptError, match="is not the file that was committed"):
        actkit.push(run, url, storage_options=options(server))
    flip_bit(run / CUBE / "norm/c.0.1.0", 99)
    actkit.push(run, url, storage_options=options(server))
    folder = ObjectFolder(url, options(server)) / CUBE
    folder.put("norm/c.0.2.0", folder.get("norm/c.0.1.0"))
    with pytest.raises(CorruptError, match=r"norm/c\.0\.2\.0: is not the file that was committed"):
        actkit.pull(url, tmp_path / "back", storage_options=options(server))
    assert sorted(p.name for p in (tmp_path / "back" / CUBE / "committed").glob("c.*")) == ["c.0", "c.1"]


def test_workers_in_other_processes_read_it(intact: Path, url: str, server: int) -> None:
    actkit.push(intact, url, storage_options=options(server))
    cube = actkit.open_cube(url, storage_options=options(server))
    copy = pickle.loads(pickle.dumps(cube))
    xr.testing.assert_identical(copy.compute(), actkit.open_cube(intact).compute())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_an_error_instead_of_waiting_forever(
    intact: Path, url: str, server: int
) -> None:
    actkit.push(intact, url, storage_options=options(server))
    cube = actkit.open_cube(url, storage_options=options(server))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            cube.norm.compute(scheduler="synchronous")
            os.write(writing, b"read")
        except StorageError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"start workers by `spawn`" in os.read(reading, 1000)


@pytest.mark.parametrize("name", ["cut requests"])
def test_faults_of_the_network_change_no_byte(
    name: str, run: Path, url: str, server: int, disturbed: Proxy
) -> None:
    disturbed.fault = first_attempts(FAULTS[name])
    actkit.push(run, url, storage_options=options(disturbed.port))
    assert sum(disturbed.injected.values()) >= 3, disturbed.injected
    assert stored(url, server) == contents(run / CUBE)


def test_a_server_that_ignores_conditions_is_refused_by_name(run: Path, url: str, disturbed: Proxy) -> None:
    disturbed.fault = lambda request: "ignore" if request.is_create else ""
    with pytest.raises(InputError, match=rf"the server 127\.0\.0\.1:{disturbed.port} ignores If-None-Match"):
        actkit.push(run, url, storage_options=options(disturbed.port))


def test_a_server_that_stays_away_is_named_and_a_rerun_continues(
    run: Path, url: str, server: int, disturbed: Proxy
) -> None:
    short = {**RETRY, "max_retries": 1}
    disturbed.fault = lambda request: "503" if "c.0.1.0" in request.path else ""
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:\d+ answered 503; what was copied is safe"):
        actkit.push(run, url, storage_options=options(disturbed.port, retry_config=short))
    disturbed.fault = lambda _request: ""
    assert actkit.push(run, url, storage_options=options(disturbed.port)).present == 1
    assert stored(url, server) == contents(run / CUBE)


def test_a_bucket_that_does_not_exist_is_named(run: Path, server: int) -> None:
    with pytest.raises(StorageError, match="the bucket does not exist"):
        actkit.push(run, "s3://no-such-bucket/runs/x", storage_options=options(server))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket", "names no bucket, or no path in it"),
        ("http://host/x", "has the unknown scheme http://"),
        (f"s3://key:{SECRET}@bucket/x", "has credentials, a query or a fragment"),
        (f"az://box/x?sig={SECRET}", "has credentials, a query or a fragment"),
        ("s3://bucket/a/../b", "has an empty part"),
    ],
)
def test_bad_urls_are_refused_without_repeating_credentials(url: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        actkit.open_cube(url)
    assert SECRET not in str(caught.value)


def test_errors_and_files_hold_no_credential(
    run: Path,
    url: str,
    server: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = [
        {"endpoint": "http://127.0.0.1:9"},
        {"no_such_option": SECRET},
        {"secret_access_key": [SECRET]},
        {"client_options": {"timeout": SECRET}},
    ]
    for wrong in bad:
        short = options(server, retry_config={**RETRY, "max_retries": 0}) | wrong
        with pytest.raises(ActkitError) as caught:
            actkit.open_cube(url, storage_options=short)
        shown = f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"
        assert SECRET not in shown, wrong
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KeyOfTheTests")
    assert main(["push", str(run), url]) == 0
    assert main(["pull", url, str(tmp_path / "back")]) == 0
    assert main(["info", url]) == 0
    assert main(["verify", url]) == 0
    assert SECRET not in "".join(capsys.readouterr())
    cube = actkit.open_cube(url)
    assert SECRET not in repr(cube) + json.dumps(cube.attrs) + repr(cube.encoding)
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in content for content in [*files, *stored(url, server).values()])


def test_without_obstore_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['obstore'] = None; import actkit; actkit.open_cube('s3://bucket/x')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "actkit[remote]"' in result.stderr


def test_options_are_refused_for_folders(intact: Path) -> None:
    with pytest.raises(InputError, match="is for object stores only"):
        actkit.open_cube(intact, storage_options={"endpoint": "x"})
