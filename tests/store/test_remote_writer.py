"""Windows written to an object store, by one process or several, disturbed or killed at every request."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

import actkit
from actkit.errors import ActkitError, ChangedError, StorageError
from actkit.store.layout import CUBE
from actkit.store.object_folder import ObjectFolder, Upload
from actkit.store.remote_run import RemoteRun
from actkit.testing import Synthetic, synthetic
from tests.object_servers import FAULTS, Proxy, first_attempts, moto_server, new_bucket, options, proxy

IN_CI = ("cut creates", "lost answers")
LATER = sorted(FAULTS.keys() - IN_CI)


class KilledError(BaseException):
    """The process would end here."""


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    with moto_server() as port:
        yield port


@pytest.fixture
def disturbed(server: int) -> Iterator[Proxy]:
    with proxy(server) as passing:
        yield passing


@pytest.fixture
def memory() -> str:
    return f"memory://{uuid4().hex}/runs/x"


def write(run: RemoteRun, numbers: Synthetic, order: slice = slice(None)) -> list[int]:
    """Do what an extraction does, and return the windows that it computed."""
    if run.cube() is None:
        run.create(numbers.plan, **numbers.arguments)
    with closing(run.writer(numbers.plan, None, threads=1)) as writer:
        writer.restore(numbers.coords, numbers.labels, [numbers.rows])
        left = writer.recover()
        for window in left[order]:
            writer.write(window, numbers.part(window))
    return left


def stored(run: RemoteRun) -> dict[str, bytes]:
    """Return every object of the cube of a run."""
    folder = run.place / CUBE
    return {key: folder.get(key) for key in folder.entries()}


def check_safe(run: RemoteRun) -> None:
    """What is committed can be read: no window is committed before all of it is there."""
    if run.cube() is not None:
        cube = actkit.open_cube(run.place.url, partial=True)
        for window in np.unique(cube.sample.values // 4):
            assert f"committed/c.{window}" in (run.place / CUBE).entries()
        assert actkit.verify(run.place.url).ok


@contextmanager
def killed(monkeypatch: pytest.MonkeyPatch, number: int, *, after: bool) -> Iterator[Counter[str]]:
    """End the process before or after the request of a number."""
    requests, counts, lock = ObjectFolder._requests, Counter[str](), threading.Lock()

    @contextmanager
    def counted(folder: ObjectFolder, name: str) -> Iterator[Any]:
        with lock:
            counts["requests"] += 1
            is_last, is_over = counts["requests"] == number, counts["requests"] > number
        if is_over or (is_last and not after):
            raise KilledError
        with requests(folder, name) as client:
            yield client
        if is_last:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(ObjectFolder, "_requests", counted)
        yield counts


def test_the_bytes_are_those_of_a_local_cube(
    numbers: Synthetic, undisturbed: dict[str, bytes], memory: str
) -> None:
    run = RemoteRun(memory)
    assert write(run, numbers) == [0, 1, 2]
    assert stored(run) == undisturbed
    assert write(run, numbers) == []


def kill_everywhere(numbers: Synthetic, whole: dict[str, bytes], patch: pytest.MonkeyPatch, step: int) -> int:
    """Kill a writer at every so many requests, before and after; return the number of trials."""
    with killed(patch, 10**9, after=False) as counts:
        write(RemoteRun(f"memory://{uuid4().hex}/runs/x"), numbers)
    trials = range(1, counts["requests"] + 1, step)
    for number in trials:
        run = RemoteRun(f"memory://{uuid4().hex}/runs/x")
        with killed(patch, number, after=bool(number % 2)), suppress(KilledError):
            write(run, numbers)
        check_safe(run)
        write(run, numbers)
        assert stored(run) == whole, number
    return len(trials)


def test_a_writer_killed_at_some_requests(
    numbers: Synthetic, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kill_everywhere(numbers, undisturbed, monkeypatch, 41) > 2


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_writer_killed_at_every_request(
    numbers: Synthetic, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kill_everywhere(numbers, undisturbed, monkeypatch, 1) > 100


@pytest.mark.parametrize("name", [*IN_CI, *(pytest.param(n, marks=pytest.mark.nightly) for n in LATER)])
def test_faults_of_the_network_change_no_byte(
    name: str, numbers: Synthetic, undisturbed: dict[str, bytes], server: int, disturbed: Proxy
) -> None:
    url = f"s3://{new_bucket(server)}/runs/x"
    disturbed.fault = first_attempts(FAULTS[name])
    write(RemoteRun(url, options(disturbed.port)), numbers)
    assert sum(disturbed.injected.values()) >= 3, disturbed.injected
    assert stored(RemoteRun(url, options(server))) == undisturbed


@pytest.mark.parametrize("seconds", [0.5, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_server_that_is_away_is_waited_for(
    seconds: float, numbers: Synthetic, undisturbed: dict[str, bytes], server: int, disturbed: Proxy
) -> None:
    url = f"s3://{new_bucket(server)}/runs/x"
    run = RemoteRun(url, options(disturbed.port))
    run.create(numbers.plan, **numbers.arguments)
    for part in ("residual/c", r"receipt\.0", r"committed/c\.1"):  # an object, a receipt, flags

        def leave(request: Any, part: str = part) -> str:
            if part.replace("\\", "") in request.path and request.method == "PUT":
                disturbed.fault = lambda _request: ""
                disturbed.is_down = True
                threading.Timer(seconds, setattr, (disturbed, "is_down", False)).start()
                return "cut"
            return ""

        disturbed.fault = leave
        with closing(run.writer(numbers.plan, None, threads=1)) as writer:
            window = writer.recover()[0]
            writer.write(window, numbers.part(window))
        assert disturbed.injected["cut"]
    assert disturbed.injected["down"]
    assert stored(RemoteRun(url, options(server))) == undisturbed


def race(numbers: Synthetic, whole: dict[str, bytes], rounds: int) -> None:
    """Two processes write all windows in opposite orders; in odd rounds one is killed."""
    for number in range(rounds):
        url = f"memory://{uuid4().hex}/runs/x"
        errors: list[BaseException] = []

        def compute(order: slice, dies: bool, url: str = url, errors: list[BaseException] = errors) -> None:
            try:
                run = RemoteRun(url)
                if dies:
                    run.writer(numbers.plan, None, threads=1).write(2, numbers.part(2))
                else:
                    write(run, numbers, order)
            except BaseException as error:
                errors.append(error)

        RemoteRun(url).create(numbers.plan, **numbers.arguments)
        threads = [
            threading.Thread(target=compute, args=(slice(None), False)),
            threading.Thread(target=compute, args=(slice(None, None, -1), bool(number % 2))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert stored(RemoteRun(url)) == whole


def test_two_writers_of_the_same_windows(numbers: Synthetic, undisturbed: dict[str, bytes]) -> None:
    race(numbers, undisturbed, 2)


@pytest.mark.nightly
def test_two_writers_of_the_same_windows_often(numbers: Synthetic, undisturbed: dict[str, bytes]) -> None:
    race(numbers, undisturbed, 50)


def test_a_window_that_another_process_computed_differently_is_an_error(
    numbers: Synthetic, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RemoteRun(memory)
    write(run, numbers)
    flags = (run.place / CUBE).get("committed/c.1")
    with closing(run.writer(numbers.plan, None, threads=1)) as writer:
        (run.place / CUBE).remove("committed/c.1")
        assert writer.recover() == [1]
        values = numbers.part(1)
        values["pooled"] = np.asarray(values["pooled"]) + 1
        commit = writer._commit

        def late(window: int, files: Any) -> int:
            (run.place / CUBE).put("committed/c.1", flags)  # the other process commits meanwhile
            monkeypatch.setattr(writer, "_is_committed", lambda _window: False)
            return commit(window, files)

        monkeypatch.setattr(writer, "_commit", late)
        with pytest.raises(
            StorageError, match=r"computed other values for window 1.*remove committed/receipt\.1\.json"
        ):
            writer.write(1, values)


def test_the_receipt_of_another_kind_of_machine_is_respected(
    numbers: Synthetic, undisturbed: dict[str, bytes], memory: str
) -> None:
    """It may be storing the files of the window at this moment; a user who knows better removes it."""
    run = RemoteRun(memory)
    write(run, numbers, slice(0, 2))
    before = stored(run)
    (run.place / CUBE).put("committed/receipt.2.json", b"{}")
    with pytest.raises(StorageError, match=r"if no other is running, remove committed/receipt\.2\.json"):
        write(run, numbers)
    (run.place / CUBE).remove("committed/receipt.2.json")
    assert stored(run) == before
    assert write(run, numbers) == [2]
    assert stored(run) == undisturbed


@pytest.mark.parametrize("moment", ["before the receipt", "after the receipt", "after the flags"])
def test_two_kinds_of_machine_never_mix_their_files(
    moment: str, numbers: Synthetic, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A window whose last bits differ is that of the first of them, whole."""
    run = RemoteRun(memory)
    run.create(numbers.plan, **numbers.arguments)
    other = numbers.part(0)
    other["pooled"] = np.asarray(other["pooled"]) + 1
    writers = [run.writer(numbers.plan, None, threads=1) for _ in range(2)]
    number = ["before the receipt", "after the receipt", "after the flags"].index(moment)
    placed = Upload.place_new

    def place_new(upload: Upload) -> bool:
        monkeypatch.setattr(Upload, "place_new", placed)
        if moment == "before the receipt":
            writers[1].write(0, other)
            return upload.place_new()
        result = upload.place_new()
        with pytest.raises(StorageError, match="computed other values for window 0"):
            writers[1].write(0, other)
        return result

    if moment != "after the flags":
        monkeypatch.setattr(Upload, "place_new", place_new)
    if number == 0:
        with pytest.raises(StorageError, match="computed other values for window 0"):
            writers[0].write(0, numbers.part(0))
    else:
        writers[0].write(0, numbers.part(0))
    if moment == "after the flags":
        assert writers[1].write(0, other) == 0
    for writer in writers:
        writer.close()
    assert actkit.verify(memory).ok
    cube = actkit.open_cube(memory, partial=True)
    expected = (other if number == 0 else numbers.part(0))["pooled"]
    np.testing.assert_array_equal(cube.pooled.values, expected)


def test_lost_objects_are_computed_again(
    numbers: Synthetic, undisturbed: dict[str, bytes], memory: str
) -> None:
    run = RemoteRun(memory)
    write(run, numbers)
    for key in ("norm/c.0.1.0", "committed/c.2", "text/c.0"):
        (run.place / CUBE).remove(key)
    assert write(run, numbers) == [1, 2]
    assert stored(run) == undisturbed


def test_another_cube_at_the_url_is_refused(numbers: Synthetic, memory: str) -> None:
    run = RemoteRun(memory)
    write(run, numbers)
    other = synthetic(n_layers=3, n_samples=10, n_tokens=6, hidden=8, window=4, everything=True, seed=1)
    with pytest.raises(ChangedError, match="data_sha256: differs"):
        run.create(other.plan, **other.arguments)


def test_an_endless_fault_names_the_object(numbers: Synthetic, server: int, disturbed: Proxy) -> None:
    url = f"s3://{new_bucket(server)}/runs/x"
    short = {"max_retries": 1, "retry_timeout": timedelta(seconds=1)}
    run = RemoteRun(url, options(disturbed.port, retry_config=short))
    run.create(numbers.plan, **numbers.arguments)
    disturbed.fault = lambda request: "503" if "norm/c" in request.path else ""
    with pytest.raises(
        StorageError, match=rf"window 0 {url}/{CUBE}/norm/c\.0\.0\.0: the server .* answered 503"
    ):
        write(run, numbers)
    disturbed.fault = lambda _request: ""
    write(run, numbers)
    assert actkit.verify(url, storage_options=options(server)).ok


@pytest.mark.nightly
def test_more_than_a_thousand_objects_are_listed(server: int) -> None:
    folder = ObjectFolder(f"s3://{new_bucket(server)}/runs/x", options(server))
    for number in range(2100):
        folder.put(f"c.{number}", b"1")
    assert len(folder.entries()) == 2100


def test_large_objects_are_stored_in_parts(
    server: int, disturbed: Proxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("actkit.store.object_folder.SINGLE_BYTES", 2**20)
    monkeypatch.setattr("actkit.store.object_folder._PART_BYTES", 5 * 2**20)
    folder = ObjectFolder(f"s3://{new_bucket(server)}/runs/x", options(disturbed.port))
    content = np.random.default_rng(0).bytes(11 * 2**20)
    with closing(folder.partial("a")) as file:
        file.write(content)
        file.place()
    assert disturbed.count("PUT", "partNumber") == 3
    assert folder.get("a") == content


def test_errors_are_of_actkit(memory: str) -> None:
    with pytest.raises(ActkitError, match="holds no cube"):
        actkit.open_cube(memory)
