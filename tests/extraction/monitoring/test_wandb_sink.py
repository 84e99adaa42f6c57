"""Runs in Weights & Biases, read back from its offline files."""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from actkit import extract
from actkit.batch_plan import Shape
from actkit.config import Config, Tracking
from actkit.errors import InputError
from actkit.extraction.monitoring import wandb_sink
from actkit.extraction.monitoring.progress import Progress
from actkit.extraction.monitoring.wandb_sink import Tracker, check_tracking, metrics, tracked
from actkit.store.layout import CUBE
from actkit.store.run_folder import CONFIG, LOG
from actkit.testing import contents
from tests.extraction.wandb_logs import Told, read_log

Processes = Callable[[], list[psutil.Process]]

KEY = "0123456789abcdefghijklmnopqrstuvwxyzABCD"
NAMES = {
    "samples",
    "progress",
    "samples_per_sec",
    "gpu_memory_allocated_gb",
    "english/samples_processed",
    "arabic/samples_processed",
    "gender_male_count",
    "gender_female_count",
}
OFFLINE = {"project": "test", "mode": "offline"}


@pytest.fixture(autouse=True)
def wandb_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Isolate the settings, keys and files of Weights & Biases from this machine."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "told"
    folder.mkdir()
    monkeypatch.setenv("WANDB_DIR", str(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(wandb_sink, "INTERVAL", 0.01)
    return folder


@pytest.fixture
def tracked_runs(wandb_files: Path) -> Callable[[], list[Told]]:
    """Read every run back."""
    return lambda: [read_log(path) for path in sorted(wandb_files.rglob("*.wandb"))]


@pytest.fixture
def processes() -> Processes:
    """Find the processes of this test; others of the same worker may have left some, such as Python's own."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: [process for process in psutil.Process().children(recursive=True) if process not in before]


@pytest.fixture
def options(tiny_model: Path, prompts: Path, tmp_path: Path) -> dict[str, Any]:
    """Six prompts in windows of two, a batch each."""
    asked = {"model": tiny_model, "data": prompts, "out": tmp_path / "some-run", "device": "cpu"}
    return {**asked, "window_samples": 2, "batch_size": 1}


def opened(pid: int | str, number: int) -> str:
    return os.readlink(f"/proc/{pid}/fd/{number}")


def wait_until_told(run: Path) -> None:
    while "Weights & Biases" not in (run / LOG).read_text():
        time.sleep(0.01)


def wait_until_it_says_where(caplog: pytest.LogCaptureFixture) -> None:
    while not caplog.records:
        time.sleep(0.01)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def running(samples: int, **languages: int) -> Progress:
    languages = languages or {"english": samples}
    return Progress("running", samples=samples, total_samples=100, languages=languages)


def line_of(event: Progress) -> dict[str, Any]:
    return {"state": event.state, "metrics": metrics(event) if event.languages else {}}


@pytest.mark.slow
def test_a_run_is_tracked_correctly(
    options: dict[str, Any],
    tracked_runs: Callable[[], list[Told]],
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: Processes,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    events: list[Progress] = []
    seen: set[psutil.Process] = set()
    write, written = wandb_sink._write, []

    def noted(stdin: Any, line: Any) -> None:
        write(stdin, line)
        written.append(line)

    def listen(event: Progress) -> None:
        if event.state == "running":
            wait_until_told(options["out"])
            while written[-1] != line_of(events[-1]):  # each event is sent before the next
                time.sleep(0.01)
            seen.update(processes())
        events.append(event)

    monkeypatch.setattr(wandb_sink, "_write", noted)

    cube = extract(**options, wandb={"project": "test"}, listeners=[listen])
    [run] = tracked_runs()
    assert run.about == {"project": "test", "group": "some-run", "name": "some-run"}
    # every row is an event, none is sent twice, and the last is included
    possible = [metrics(event) for event in events]
    places = [possible.index(row) for row in run.rows]
    assert places == sorted(set(places))
    assert len(places) > 3
    assert run.rows[-1] == metrics(events[-1])
    assert all(row.keys() == NAMES for row in run.rows)
    # what it comes to is in the data
    data = pd.read_csv(prompts)
    last = run.rows[-1]
    assert (last["samples"], last["progress"], last["gpu_memory_allocated_gb"]) == (len(data), 1, 0)
    for language, count in data.language.value_counts().items():
        assert last[f"{language}/samples_processed"] == count
    for gender, count in data.gender.value_counts().items():
        assert last[f"gender_{gender}_count"] == count
    assert last["samples_per_sec"] == events[-1].samples_per_second > 0
    # the summary
    shape = [cube.sizes[dim] for dim in ("sample", "token", "hidden")]
    assert {name: value for name, value in run.summary.items() if name.startswith("layer")} == {
        f"layer_{layer}_shape": shape for layer in cube.layer.values
    }
    assert (run.summary["state"], run.exit_code) == ("done", 0)
    asked = Config(**{**options, **{name: str(options[name]) for name in ("model", "data", "out")}})
    run.config.pop("_wandb", None)
    assert run.config == asked.model_dump(mode="json", exclude={"wandb"})
    # nothing of it remains
    assert len(seen) >= 2
    psutil.wait_procs(seen)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert str(tmp_path / "told") in (options["out"] / LOG).read_text()


@pytest.mark.slow
def test_each_session_is_a_run_of_one_group(
    options: dict[str, Any], tracked_runs: Callable[[], list[Told]], tmp_path: Path
) -> None:
    def interrupt(event: Progress) -> None:
        if event.state == "running":
            wait_until_told(options["out"])
            if event.committed:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(**options, wandb=OFFLINE, listeners=[interrupt])
    frozen = (options["out"] / CONFIG).read_text()
    assert "project: test" in frozen
    # a rerun may change where it is tracked
    extract(**options, wandb="project=other,group=some-run,name=second,mode=offline", listeners=[])
    extract(**options, listeners=[])
    extract(**{**options, "out": tmp_path / "untold"}, listeners=[])
    assert contents(options["out"] / CUBE) == contents(tmp_path / "untold" / CUBE)
    assert (options["out"] / CONFIG).read_text() == frozen

    first, second = tracked_runs()
    assert first.about == {"project": "test", "group": "some-run", "name": "some-run"}
    assert second.about == {"project": "other", "group": "some-run", "name": "second"}
    assert (first.summary["state"], first.exit_code) == ("interrupted", 1)
    assert (second.summary["state"], second.exit_code) == ("done", 0)
    assert 0 < first.rows[-1]["samples"] < 6
    # earlier sessions count
    assert all(row["samples"] >= 2 for row in second.rows)
    assert second.rows[-1]["samples"] == 6
    for row in [*first.rows, *second.rows]:
        for ending in ("/samples_processed", "_count"):
            assert sum(count for name, count in row.items() if name.endswith(ending)) == row["samples"]


@pytest.mark.slow
def test_an_unreachable_service_does_not_delay_a_run(
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    processes: Processes,
) -> None:
    with socket.socket() as closed:  # no server listens there
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setattr(wandb_sink, "PATIENCE", 2)
        cube = extract(**options, wandb={"project": "test"}, listeners=[])
    assert cube.sizes["sample"] == 6
    # the run ended first: its process was still trying
    (warning,) = warnings(caplog)
    assert warning.startswith("Weights & Biases: had not finished 2 s after the run, and was ended")
    psutil.wait_procs(processes())
    assert KEY not in (options["out"] / LOG).read_text()


@pytest.mark.slow
def test_a_missing_login_is_reported_with_all_other_faults(options: dict[str, Any], no_weights: None) -> None:
    with pytest.raises(InputError) as caught:
        extract(**options, wandb={"project": "test"}, limit=0, text_column="words")
    faults = [str(fault) for fault in caught.value.faults]
    assert faults[0].startswith("limit: 0 is not possible")
    assert "wandb: No API key configured" in " ".join(faults)
    assert "words" in " ".join(faults)
    assert not options["out"].exists()


def test_the_package_is_missing(
    options: dict[str, Any], no_weights: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError) as caught:
        extract(**options, wandb=OFFLINE)
    what = "wandb: the package is not installed (pip install wandb, or omit the option)"
    assert [str(fault) for fault in caught.value.faults] == [what]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "mode", "fault"),
    [
        pytest.param({}, "offline", "", marks=pytest.mark.nightly),
        ({}, None, "No API key configured"),
        ({"WANDB_MODE": "offline"}, None, ""),
        pytest.param({"WANDB_MODE": "disabled"}, None, "", marks=pytest.mark.nightly),
        pytest.param({"WANDB_MODE": "offline"}, "online", "No API key configured", marks=pytest.mark.nightly),
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}, "online", ""),
        ({"WANDB_API_KEY": "short"}, None, "WANDB_API_KEY invalid"),
    ],
)
def test_options_are_checked(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], mode: Any, fault: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    faults = check_tracking(Tracking(project="test", mode=mode))
    assert len(faults) == bool(fault)
    if fault:
        assert str(faults[0]).startswith(f"wandb: {fault}")
        assert str(faults[0]).endswith(" (or set mode: offline)")
        assert "short" not in str(faults[0])


@pytest.mark.slow
def test_only_the_latest_event_is_sent_and_always_the_last(
    tracked_runs: Callable[[], list[Told]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "actkit")
    monkeypatch.setattr(wandb_sink, "INTERVAL", 3600)  # ends when the tracker is closed
    tracker = Tracker(OFFLINE, {})
    wait_until_it_says_where(caplog)
    tracker(Progress("loading", total_samples=100))
    for samples in range(60):
        tracker(running(samples))
    tracker(Progress("failed", samples=100, total_samples=100))
    tracker.close()
    [run] = tracked_runs()
    assert [row["samples"] for row in run.rows] == [100]
    assert (run.summary["state"], run.exit_code) == ("failed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_abandoned(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    processes: Processes,
    sent: signal.Signals,
) -> None:
    caplog.set_level(logging.INFO, "actkit")
    tracker = Tracker(OFFLINE, {})
    wait_until_it_says_where(caplog)
    children = processes()
    assert len(children) >= 2
    child = tracker._process
    pipes = {opened("self", pipe.fileno()) for pipe in (child.stdin, child.stdout) if pipe}
    for process in children:
        assert os.getsid(process.pid) != os.getsid(0)  # Ctrl-C in a terminal does not reach it
        if process.pid != child.pid:  # which another process would keep open
            assert pipes.isdisjoint(opened(process.pid, number) for number in range(3))
    if sent == signal.SIGSTOP:
        monkeypatch.setattr(wandb_sink, "PATIENCE", 1)
    os.kill(child.pid, sent)
    assert child.stdin is not None
    tracker(running(1, **{f"language_{number}": number for number in range(5000)}))
    while sent == signal.SIGSTOP and select.select([], [child.stdin], [], 0)[1]:
        time.sleep(0.01)  # until the pipe is full
    for samples in range(20):  # would wait for ever if it wrote to the pipe itself
        tracker(running(samples))
    tracker.close()
    what = {
        signal.SIGKILL: "its process ended with -9; the run continues without it",
        signal.SIGSTOP: "had not finished 1 s after the run, and was ended",
    }
    [warning] = warnings(caplog)
    assert warning.startswith(f"Weights & Biases: {what[sent]}")
    psutil.wait_procs(children)


@pytest.mark.parametrize(
    ("command", "what"),
    [
        (["/nowhere/python"], "[Errno 2] No such file or directory: '/nowhere/python'"),
        ([sys.executable, "-c", "raise SystemExit(3)"], "its process ended with 3"),
        ([sys.executable, "-c", "print('{'); raise SystemExit(1)"], "its process ended with 1"),
        ([sys.executable, "-c", 'print(\'{"fault": "Sorry."}\'); raise SystemExit(1)'], "Sorry"),
    ],
)
def test_a_process_that_cannot_begin(
    command: list[str], what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_sink, "_COMMAND", command)
    config = Config(model="m", data="d", out="o", wandb=Tracking(project="test"))
    with tracked(config, [0], Shape(1, 2, 3, 4)) as listeners:
        for listener in listeners:
            listener(running(1))
    assert warnings(caplog) == [f"Weights & Biases: {what}; the run continues without it"]


def test_no_process_is_started_without_the_option(processes: Processes) -> None:
    with tracked(Config(model="m", data="d", out="o"), [0], Shape(1, 2, 3, 4)) as listeners:
        assert listeners == []
        assert processes() == []
    assert check_tracking(None) == []


def test_metrics_of_an_accelerator() -> None:
    event = Progress("running", samples=1, total_samples=3, device_bytes={"allocated": 1_500_000_000})
    shown = metrics(event)
    assert shown["gpu_memory_allocated_gb"] == 1.5
    assert shown["progress"] == 1 / 3
