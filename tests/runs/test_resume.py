"""Whole extractions, ended at any moment and started again: the cube is the one of an undisturbed run."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from actkit import extract, open_cube, verify
from actkit.cli import main
from actkit.errors import ChangedError, LockedError, StorageError
from actkit.extraction.loop import local_engine
from actkit.extraction.monitoring.progress import Progress
from actkit.store.layout import CUBE
from actkit.store.run_folder import CONFIG, LOG, read_status
from actkit.store.writer import CREATING
from actkit.testing import contents, flip_bit
from tests.runs.extractions import SLOW, WINDOWS, Options, Stop, command, flags, is_stopped
from tests.trials import trials

Start = Callable[..., BaseProcess]


def wait_for(sign: Callable[[], bool], process: BaseProcess | subprocess.Popen[str]) -> None:
    """Wait for a sign in the run folder, or for the end of the process."""
    while not sign() and (
        process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
    ):
        time.sleep(0.001)


def moment(chance: random.Random, run: Path) -> tuple[Callable[[], bool], float]:
    """Choose when to kill: the sign to wait for, and the seconds to wait after it."""
    if not (run / CUBE).exists() and chance.random() < 0.6:
        return lambda: any(run.glob(f"{CUBE}*")), chance.uniform(0, 0.15)
    if chance.random() < 0.2:
        return lambda: True, chance.uniform(0, 1)
    enough = flags(run) + chance.randint(1, 4)
    return lambda: flags(run) >= enough, chance.uniform(0, 0.1)


def seen(run: Path) -> str:
    """Say how far a killed run had come, and make sure that what is there is sound."""
    if not (run / CUBE).exists():
        return "creating" if (run / CREATING).exists() else "before"
    assert verify(run).ok
    assert open_cube(run, partial=True).residual.load().sizes["sample"] == 4 * flags(run)
    return str(flags(run))


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [8, pytest.param(300, marks=[pytest.mark.nightly, pytest.mark.timeout(7200)])]
)
def test_kills_at_random_moments(
    tmp_path: Path, start: Start, undisturbed: dict[str, bytes], count: int
) -> None:
    chance = random.Random(count)
    kills: list[str] = []
    with trials("kill -9 of an extraction at random moments, and again until it ends") as trial:
        while len(kills) < count and not trial.failures:
            run = tmp_path / str(len(kills))
            with trial(run.name):
                kills += kill_until_it_ends(run, start, chance)
                assert contents(run / CUBE) == undisturbed
            shutil.rmtree(run)
            trial.count = len(kills)
    print(f"so many windows were committed: {dict(Counter(kills))}")


def kill_until_it_ends(run: Path, start: Start, chance: random.Random) -> list[str]:
    """Start a run again and again, and kill it each time unless it is faster; return how far it had come."""
    kills = []
    while True:
        sign, seconds = moment(chance, run)
        process = start(run)
        wait_for(sign, process)
        time.sleep(seconds)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0
            return kills
        kills.append(seen(run))


@pytest.mark.slow
@pytest.mark.parametrize(
    "ends",
    [
        [signal.SIGINT],
        pytest.param(
            [signal.SIGKILL, signal.SIGTERM, signal.SIGINT],
            marks=[pytest.mark.nightly, pytest.mark.timeout(7200)],
        ),
    ],
    ids=["interrupted", "several"],
)
def test_fresh_processes(
    tmp_path: Path, options: Options, undisturbed: dict[str, bytes], ends: list[signal.Signals]
) -> None:
    run = tmp_path / "run"
    for windows, end in enumerate(ends, start=1):
        fresh = [sys.executable, "-c", SLOW, *command(options, run)]
        # what a shell starts in the background ignores SIGINT
        heard = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        with subprocess.Popen(fresh, stderr=subprocess.PIPE, text=True, **heard) as process:
            wait_for(lambda least=2 * windows: flags(run) >= least, process)
            process.send_signal(end)
            _, output = process.communicate()
        codes = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 143, signal.SIGINT: 130}
        assert process.returncode == codes[end], output
        assert 2 * windows <= flags(run) < WINDOWS
        seen(run)
    assert output.splitlines()[-1] == "actkit: interrupted; run the same command again to continue"
    assert "Traceback" not in output
    assert read_status(run)[0]["state"] == "interrupted"

    extract(**options, out=str(run), listeners=[])
    assert contents(run / CUBE) == undisturbed


@pytest.mark.slow
def test_a_second_writer_is_refused(
    tmp_path: Path,
    options: Options,
    start: Start,
    undisturbed: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = start(tmp_path, Stop())
    pid = first.pid
    assert pid is not None
    try:
        wait_for(lambda: is_stopped(pid), first)
        assert 0 < flags(tmp_path) < WINDOWS
        before = contents(tmp_path)
        assert main(command(options, tmp_path)) == 1
        assert contents(tmp_path) == before
        with pytest.raises(LockedError):
            extract(**options, out=str(tmp_path), listeners=[])
    finally:
        os.kill(pid, signal.SIGCONT)
    held = f"is being written by process {pid} on {socket.gethostname()}; wait for it, or end it"
    assert capsys.readouterr().err == f"actkit: {tmp_path}: {held}\n"
    first.join()
    assert contents(tmp_path / CUBE) == undisturbed


def test_a_complete_run_computes_nothing(
    run: Path, options: Options, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(local_engine, "load_model", load)
    before = {path: path.stat().st_mtime_ns for path in (run / CUBE).rglob("*")}
    cube = extract(**options, out=str(run), listeners=[])
    assert cube.sizes["sample"] == 60
    assert {path: path.stat().st_mtime_ns for path in (run / CUBE).rglob("*")} == before
    assert contents(run / CUBE) == undisturbed


@pytest.mark.slow
def test_only_what_is_lost_is_computed_again(
    run: Path, options: Options, undisturbed: dict[str, bytes]
) -> None:
    lost = ["residual/c.0.3.0.0", "norm/c.0.3.0", "embedding/c.7.0.0", "committed/c.14"]
    for name in lost:
        (run / CUBE / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in (run / CUBE).rglob("c.*")}
    events: list[Progress] = []
    extract(**options, out=str(run), listeners=[events.append])
    assert contents(run / CUBE) == undisturbed
    written = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert all(path.name.startswith(("c.3", "c.0.3", "c.7", "c.0.7", "c.14", "c.0.14")) for path in written)
    running = [event for event in events if event.state == "running"]
    assert running[0].samples == 60 - 3 * 4 + 4
    assert events[-1].state == "done"


@contextmanager
def changed(path: Path) -> Iterator[None]:
    flip_bit(path, -8)
    try:
        yield
    finally:
        flip_bit(path, -8)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        ({"limit": 40}, ["limit"]),
        ({"layers": "0-1"}, ["layers"]),
        ({"max_tokens": 20}, ["max_tokens", "truncated_samples"]),
        ({"batch_size": 2}, ["batch_size"]),
        ({"window_samples": 8}, ["window_samples"]),
        ({"languages": "arabic"}, ["languages"]),
        ({"labels": "gender", "storage": "bfloat16"}, ["labels", "storage"]),
        ({"dtype": "bfloat16"}, ["dtype", "weights_dtype"]),
        ({"save": "norm,pooled"}, ["save"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_another_question_is_refused(run: Path, options: Options, change: Options, fields: list[str]) -> None:
    before = contents(run / CUBE), (run / CONFIG).read_bytes()
    with pytest.raises(ChangedError, match="contains a cube made with other settings") as caught:
        extract(**{**options, **change}, out=str(run), listeners=[])
    assert [fault.where for fault in caught.value.faults] == fields
    assert (contents(run / CUBE), (run / CONFIG).read_bytes()) == before


@pytest.mark.parametrize(
    ("name", "field"), [("model/model.safetensors", "model_revision"), ("prompts.csv", "data_sha256")]
)
def test_other_weights_or_prompts_are_refused(run: Path, options: Options, name: str, field: str) -> None:
    before = contents(run / CUBE)
    with (
        changed(Path(options["data"]).parent / name),
        pytest.raises(ChangedError, match=field) as caught,
    ):
        extract(**options, out=str(run), listeners=[])
    assert [fault.where for fault in caught.value.faults] == [field]
    assert contents(run / CUBE) == before


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_a_disk_that_fills_up(
    small_disk: Path, options: Options, undisturbed: dict[str, bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    run, ballast = small_disk / "run", small_disk / "ballast"

    def fill(event: Progress) -> None:
        if event.committed and not ballast.exists():
            for path in (ballast, run / LOG):  # to the last byte, so that no log fits either
                with suppress(OSError), path.open("ab") as file:
                    file.write(b"\n" * 2**23)

    message = "cannot write window .*: No space left on device; committed windows are safe"
    with pytest.raises(StorageError, match=message):
        extract(**options, out=str(run), listeners=[fill])
    assert 0 < flags(run) < WINDOWS
    assert verify(run).ok
    assert "Traceback" not in capfd.readouterr().err
    ballast.unlink()
    extract(**options, out=str(run), listeners=[])
    assert contents(run / CUBE) == undisturbed


@pytest.mark.slow
def test_damaged_coordinates_are_restored(run: Path, options: Options, undisturbed: dict[str, bytes]) -> None:
    for name in ("text/c.0", "gender/c.0", "layer/c.0", "has_residual/c.0"):
        flip_bit(run / CUBE / name, 40)
    (run / CUBE / "batch" / "c.0").unlink()
    assert len(verify(run).faults) == 5
    extract(**options, out=str(run), listeners=[])
    assert contents(run / CUBE) == undisturbed
