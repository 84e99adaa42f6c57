"""Progress events of a run, which all listeners receive."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from actkit.extraction.monitoring import progress
from actkit.extraction.monitoring.label_counts import LabelCounts
from actkit.extraction.monitoring.progress import Meter, Progress, StatusFile
from actkit.store.folders import Folder
from actkit.store.layout import CUBE
from actkit.store.run_folder import STATUS
from actkit.testing import write_cube


def test_a_meter_adds_batches_to_earlier_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    write_cube(tmp_path, n_samples=8)
    events: list[Progress] = []
    meter = Meter(8, [events.append, events.append])
    loading = meter.emit("loading")
    assert (loading.state, loading.samples, loading.total_samples) == ("loading", 0, 8)
    assert (loading.languages, loading.labels, loading.eta_seconds) == ({}, {}, None)
    clock[0] = 200.0
    memory = {"allocated": 5, "reserved": 6, "total": 7}
    meter.begin(4, lambda: memory, LabelCounts(tmp_path / CUBE, np.arange(8) < 4))
    meter.emit()
    clock[0] = 202.0
    meter.add(np.array([5, 4]), tokens=30)
    meter.add(np.array([7]), tokens=10)
    event = meter.emit()
    assert (event.samples, event.committed, event.tokens) == (7, 4, 40)
    assert (event.seconds, event.samples_per_second, event.tokens_per_second) == (2.0, 1.5, 20.0)
    assert event.eta_seconds == pytest.approx(1 / 1.5)
    assert event.device_bytes == memory
    # languages alternate by sample, and genders by pairs of samples that share an image
    assert event.languages == {"english": 3, "arabic": 4}
    assert event.labels["gender"] == {"male": 4, "female": 3}
    assert [heard.samples for heard in events] == [0, 0, 4, 4, 7, 7]
    # later events do not change an event
    assert events[2].languages == {"english": 2, "arabic": 2}


def test_the_status_file_has_the_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    write_cube(tmp_path, n_samples=8)
    meter = Meter(8, [StatusFile(Folder(tmp_path))])
    meter.begin(0, dict, LabelCounts(tmp_path / CUBE, np.zeros(8, dtype=bool)))
    meter.emit()
    meter.add(np.arange(8), tokens=1)
    meter.emit()

    def counted() -> object:
        status = json.loads((tmp_path / STATUS).read_text())
        return status["state"], status["languages"], status["labels"]["gender"]

    # within a second, only a change of state is written
    assert counted() == ("running", {"english": 0, "arabic": 0}, {"male": 0, "female": 0})
    meter.emit("done")
    assert counted() == ("done", {"english": 4, "arabic": 4}, {"male": 4, "female": 4})


def test_a_meter_works_without_label_counts() -> None:
    meter = Meter(2, [])
    meter.begin(0, dict)
    meter.add(np.array([0, 1]), tokens=3)
    event = meter.emit("done")
    assert (event.samples, event.tokens, event.languages, event.labels) == (2, 3, {}, {})
