"""What a notebook shows of a run is what its events say."""

from pathlib import Path
from typing import Any

import pytest

from actkit import extract
from actkit.extraction.monitoring.progress import Progress
from actkit.widgets import Watch, progress_widget


@pytest.fixture(autouse=True)
def displayed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    shown: list[Any] = []
    monkeypatch.setattr(progress_widget, "display", shown.append)
    return shown


def texts(watch: Watch) -> str:
    return " ".join(child.value for child in watch.children if isinstance(child.value, str))


def test_it_appears_once_and_counts(displayed: list[Any]) -> None:
    watch = Watch()
    assert displayed == []
    watch(Progress("loading", total_samples=200))
    watch(Progress("running", samples=50, total_samples=200, samples_per_second=12.5, eta_seconds=12))
    assert displayed == [watch]
    assert (watch.bar.value, watch.bar.max) == (50, 200)
    assert "50 of 200 samples · 12.5 samples/s" in texts(watch)
    assert "12 s left" in texts(watch)
    assert "System memory" in texts(watch)


def test_many_events_in_a_moment_are_one_but_the_last_is_shown() -> None:
    watch = Watch()
    for samples in (1, 2, 3):
        watch(Progress("running", samples=samples, total_samples=4))
    assert watch.bar.value == 1
    watch(Progress("running", samples=4, total_samples=4))
    assert watch.bar.value == 4


@pytest.mark.parametrize(
    ("state", "style", "text"),
    [
        ("done", "success", ""),
        ("interrupted", "warning", "2 samples are committed; run the cell again to resume"),
        ("failed", "danger", "2 samples are committed; fix the error below"),
    ],
)
def test_how_it_ended(state: str, style: str, text: str) -> None:
    watch = Watch()
    watch(Progress(state, samples=3, committed=2, total_samples=4))
    assert watch.bar.bar_style == style
    assert f"class='state {state}'" in texts(watch)
    assert text in texts(watch)
    assert "left" not in texts(watch)


def test_names_are_text() -> None:
    watch = Watch()
    watch(Progress("running", samples=1, total_samples=2, languages={"<b>bold": 1}))
    assert "&lt;b&gt;bold 1" in texts(watch)


def test_the_device_is_said() -> None:
    watch = Watch()
    watch(Progress("running", samples=1, total_samples=2, device_bytes={"allocated": 2 * 10**9}))
    assert "2.0 GB allocated on device" in texts(watch)


@pytest.mark.slow
def test_a_run_is_watched(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    watch = Watch()
    extract(model=tiny_model, data=prompts, out=tmp_path / "run", device="cpu", listeners=[watch])
    assert watch.bar.value == watch.bar.max == 6
    assert "english" in texts(watch)
    assert "class='state done'" in texts(watch)
