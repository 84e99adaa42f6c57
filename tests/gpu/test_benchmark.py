"""The program that `make gpu-check` ends with, tried without a device, and the timeline that it prints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, timeline
from benchmarks.timeline import Interval, intervals, overlap
from benchmarks.timing import Child


@pytest.mark.slow
def test_the_program_runs_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, and without the trials of `plan`, which take seconds."""
    monkeypatch.setattr(gpu, "in_child", lambda function, *given: Child(function(*given), 0.0, 0))
    monkeypatch.setattr("actkit.extraction.loop.trial_run.SECONDS", 0.0)
    gpu.main(
        ["--device", "cpu", "--shape", "tiny", "--tokens", "300", "--rounds", "1", "--out", str(tmp_path)]
    )
    lines = capsys.readouterr().out.strip().splitlines()
    names = [line.split("|")[1].strip() for line in lines]
    assert names[0] == ""
    for part in (
        "to the bare forward",
        "tokens/s",
        "binds, each alone",
        "host memory: peak, planned",
        "timeline",
    ):
        assert any(part in name for name in names), part
    assert {line.count("|") for line in lines} == {3}  # one table
    assert list(tmp_path.iterdir()) == []


def event(name: str, start: float, end: float, *, cuda: bool = True) -> Any:
    kinds = torch.autograd.DeviceType
    time_range = SimpleNamespace(start=start, end=end)
    return SimpleNamespace(name=name, time_range=time_range, device_type=kinds.CUDA if cuda else kinds.CPU)


def test_the_timeline_shows_what_runs_at_the_same_time() -> None:
    found = intervals(
        [
            event("aten::mm", 0, 100, cuda=False),
            event("gemm", 0, 40),
            event("gemm", 30, 60),
            event("Memcpy DtoH (Device -> Pinned)", 50, 70),
            event("Memcpy HtoD (Pinned -> Device)", 0, 5),
            event("Memset (Device)", 0, 1),
            event("gemm", 80, 100),
            event("Memcpy DtoH (Device -> Pinned)", 90, 100),
        ]
    )
    assert [interval.copies for interval in found] == [False, False, True, False, True]
    assert overlap(found) == pytest.approx(20 / 30)
    computing, copying = timeline.timeline(found, width=5).items()
    assert computing == ("timeline of 0.1 ms: computing", "█  ██")
    assert copying == ("timeline of 0.1 ms: copying to the host", "██  █")


def test_no_copies_is_not_full_overlap() -> None:
    assert overlap([Interval(0, 1, False)]) != overlap([Interval(0, 1, False)])  # NaN
