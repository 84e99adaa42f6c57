"""Runs in parts: the cube is that of one process, in whatever order the parts run and whoever is killed."""

import errno
import fcntl
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from actkit import extract, open_cube, seal, verify
from actkit.cli import main
from actkit.errors import ChangedError, IncompleteError, InputError
from actkit.extraction import run as extraction_run
from actkit.extraction.preflight import run_metadata
from actkit.store.layout import CUBE
from actkit.store.parts import Part, describe_parts, read_parts
from actkit.store.run_folder import CONFIG, LOG, STATUS, read_status
from actkit.testing import contents
from tests.runs.extractions import REFUSED, WINDOWS, Options, extract_part, flags
from tests.trials import trials

StartPart = Callable[..., BaseProcess]
NIGHTLY = [pytest.mark.nightly, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def start_part(options: Options, server: Any) -> StartPart:
    """Start a part in a process of its own, by default on a file system without working locks."""

    def start(run: Path, part: str, locks: bool = False) -> BaseProcess:
        process: BaseProcess = server.Process(target=extract_part, args=(options, run, part, locks))
        process.start()
        return process

    return start


def kill_once(process: BaseProcess, run: Path, windows: int, seconds: float) -> None:
    """Kill a process a moment after so many windows are committed, unless it ends before."""
    while process.is_alive() and flags(run) < windows:
        time.sleep(0.001)
    time.sleep(seconds)
    process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(60, marks=NIGHTLY)])
def test_parts_in_any_order_some_of_which_are_killed(
    tmp_path: Path, start_part: StartPart, undisturbed: dict[str, bytes], rounds: int
) -> None:
    chance = random.Random(rounds)
    killed = 0
    with trials("four parts in any order at once, two killed (kill -9) and run again, sealed") as trial:
        for number in range(rounds):
            run = tmp_path / str(number)
            with trial(number):
                parts = [f"{part}/4" for part in chance.sample(range(1, 5), 4)]
                processes = {part: start_part(run, part) for part in parts}
                for part in parts[:2]:
                    kill_once(processes[part], run, chance.randint(0, 8), chance.uniform(0, 0.1))
                for process in processes.values():
                    process.join()
                ended = [process.exitcode for process in processes.values()]
                killed += ended.count(-signal.SIGKILL)
                assert set(ended) <= {0, -signal.SIGKILL}
                assert verify(run).ok
                for part in parts[:2]:
                    again = start_part(run, part)
                    again.join()
                    assert again.exitcode == 0
                seal(run)
                assert contents(run / CUBE) == undisturbed
                assert verify(run).ok
            shutil.rmtree(run)
    assert killed >= rounds // 2


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, pytest.param(60, marks=NIGHTLY)])
def test_two_writers_of_one_part_one_of_which_is_killed(
    tmp_path: Path, start_part: StartPart, undisturbed: dict[str, bytes], rounds: int
) -> None:
    chance = random.Random(rounds)
    with trials("two processes of one part at once, one killed (kill -9)") as trial:
        for number in range(rounds):
            run = tmp_path / str(number)
            with trial(number):
                first, second = start_part(run, "1/1"), start_part(run, "1/1")
                kill_once(first, run, chance.randint(0, 10), chance.uniform(0, 0.1))
                second.join()
                assert second.exitcode == 0  # the one that lives is not disturbed
                seal(run)
                assert contents(run / CUBE) == undisturbed
            shutil.rmtree(run)


@pytest.mark.slow
def test_a_second_process_of_a_part_is_refused_where_locks_work(
    tmp_path: Path, options: Options, start_part: StartPart
) -> None:
    run = tmp_path / "run"
    first = start_part(run, "1/1", locks=True)
    while first.is_alive() and not flags(run):
        time.sleep(0.001)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGSTOP)  # it would be done before a second one starts on a busy machine
    second = start_part(run, "1/1", locks=True)
    second.join()
    assert second.exitcode == REFUSED
    os.kill(first.pid, signal.SIGCONT)
    first.join()
    assert first.exitcode == 0
    assert flags(run) == WINDOWS


@pytest.mark.slow
def test_what_a_part_leaves(half: Path) -> None:
    assert (half / CONFIG).exists()
    assert not (half / STATUS).exists()
    assert sorted(path.name for path in (half / "parts" / "1-of-2").iterdir()) == [".lock", LOG, STATUS]
    status, faults = read_status(half / "parts" / "1-of-2")
    assert not faults
    assert [status[name] for name in ("state", "samples", "total_samples", "run_samples")] == [
        "done",
        32,
        32,
        60,
    ]
    assert sum(status["languages"].values()) == 32
    assert describe_parts(half) == "2: 1/2 done, 2/2 not started"


@pytest.mark.slow
def test_a_part_returns_its_samples(begun: Path, options: Options) -> None:
    cube = extract(**options, out=str(begun), part="1/2", listeners=[])
    assert cube.sample.values.tolist() == [n for n in range(60) if n // 4 % 2 == 0]
    assert cube.residual.load().notnull().any()
    none = extract(**options, out=str(begun), part="400/400", listeners=[])
    assert none.sizes["sample"] == 0


@pytest.mark.slow
def test_seal_names_the_parts_and_windows_that_are_missing(begun: Path) -> None:
    with pytest.raises(IncompleteError) as caught:
        seal(begun)
    first, second = str(caught.value).splitlines()
    assert first == f"{begun}: 7 of 15 windows are missing"
    what = "not started, lacks 7 windows: 1, 3, 5, 7, 9, 11, 13 (run it with --part 2/2)"
    assert second == f"  - part 2/2: {what}"
    assert read_status(begun)[0] == {}


@pytest.mark.slow
@pytest.mark.parametrize("whole", [False, True], ids=["part", "whole"])
def test_a_run_in_parts_is_completed(
    begun: Path, options: Options, undisturbed: dict[str, bytes], whole: bool, capsys: Any
) -> None:
    """By the other part, or by a process that computes all that is left."""
    extract(**options, out=str(begun), listeners=[], **({} if whole else {"part": "2/2"}))
    if not whole:
        (begun / CUBE / "residual" / f"c.0.3.0.0.{'0' * 32}.partial").write_bytes(b"left by a killed part")
        assert main(["seal", str(begun)]) == 0
    assert contents(begun / CUBE) == undisturbed
    status, _ = read_status(begun)
    assert [status[name] for name in ("state", "samples", "committed")] == ["done", 60, 60]
    assert status["languages"] == {"english": 30, "arabic": 30}
    assert main(["info", str(begun)]) == 0
    assert "2, all done" in capsys.readouterr().out
    seal(begun, quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["threads", "device_name", "model_revision", "weights_dtype", "layers"])
def test_a_part_of_another_machine_or_model_is_refused_by_name(
    begun: Path, options: Options, setting: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed: dict[str, Any] = {}
    if setting == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    elif setting == "device_name":
        monkeypatch.setattr(run_metadata, "device_description", lambda _: "NVIDIA H200")
    elif setting == "model_revision":
        changed["model"] = str(shutil.copytree(options["model"], tmp_path / "model"))
        about = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps({**about, "rms_norm_eps": 1e-3}))
    elif setting == "weights_dtype":
        changed["dtype"] = "bfloat16"
    else:
        changed["layers"] = "0"
    with pytest.raises(ChangedError) as caught:
        extract(**{**options, **changed}, out=str(begun), part="2/2", listeners=[])
    assert setting in {fault.where for fault in caught.value.faults}
    assert flags(begun) == 8


@pytest.mark.slow
def test_a_part_that_loses_the_race_to_create_the_cube_joins_or_is_refused(
    begun: Path,
    options: Options,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    create = extraction_run.create_cube
    run = tmp_path / "run"

    def late(*arguments: Any, **keywords: Any) -> None:
        shutil.copytree(begun / CUBE, run / CUBE)
        create(*arguments, **keywords)

    monkeypatch.setattr(extraction_run, "create_cube", late)
    with pytest.raises(ChangedError, match="layers: was '0-2', is now '0'"):
        extract(**options, out=str(run), layers="0", part="2/2", listeners=[])
    assert not (run / CONFIG).exists()
    shutil.rmtree(run)
    extract(**options, out=str(run), part="2/2", listeners=[])
    seal(run)
    assert contents(run / CUBE) == undisturbed
    assert sorted(path.name for path in run.iterdir()) == [".lock", CONFIG, CUBE, LOG, "parts", STATUS]


@pytest.mark.slow
def test_a_file_system_without_locks(
    options: Options, undisturbed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lustre is mounted without `-o flock`."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    run = tmp_path / "run"
    extract(**options, out=str(run), part="1/1", listeners=[])
    seal(run)
    assert contents(run / CUBE) == undisturbed
    assert read_status(run)[0]["state"] == "done"


@pytest.mark.slow
def test_the_moments_of_a_run_in_parts_are_those_of_one_process(options: Options, tmp_path: Path) -> None:
    asked = {**options, "whiten": True, "limit": 24, "listeners": []}
    extract(**asked, out=str(tmp_path / "whole"))
    for part in (2, 1):
        extract(**asked, out=str(tmp_path / "parts"), part=(part, 2))
    seal(tmp_path / "parts")
    moments = [(tmp_path / name / "moments.safetensors").read_bytes() for name in ("whole", "parts")]
    assert moments[0] == moments[1]


@pytest.mark.parametrize("spec", ["0/4", "5/4", "1", "", "1/4/2", "a/b", "-1/4", (1, 2, 3), (True, 2), "1/0"])
def test_what_is_no_part(spec: Any, options: Options, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="part"):
        extract(**options, out=str(tmp_path / "run"), part=spec)
    assert not (tmp_path / "run").exists()


def test_every_window_belongs_to_one_part() -> None:
    for count in (1, 3, 16, 40):
        windows = [w for number in range(count) for w in Part(count, number + 1).windows(37)]
        assert sorted(windows) == list(range(37))


@pytest.mark.slow
def test_a_run_without_parts_can_be_sealed(run: Path) -> None:
    assert read_parts(run) == {}
    assert open_cube(seal(run).encoding["source"]).sizes["sample"] == 60
