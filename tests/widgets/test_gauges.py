"""Gauges say what the driver says, and stand for the machine where there is none."""

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from actkit.widgets import gauges
from actkit.widgets.gauges import measure


class NVMLError(Exception):
    """What NVIDIA's binding raises."""


def nvml(busy: Any) -> Any:
    """Stand for NVIDIA's binding on a machine with two devices."""

    def rates(handle: int) -> Any:
        if isinstance(busy, Exception):
            raise busy
        return SimpleNamespace(gpu=busy + handle)

    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=10 * (handle + 1), total=80),
        nvmlDeviceGetName=lambda handle: (b"NVIDIA H100", "NVIDIA H200")[handle],
        nvmlDeviceGetUtilizationRates=rates,
    )


def test_each_device_has_a_gauge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_nvml", lambda: nvml(50))
    first, second = measure(5)
    assert (first.label, first.used, first.total, first.utilisation) == ("cuda:0 NVIDIA H100", 10, 80, 50)
    assert (second.label, second.share, second.utilisation) == ("cuda:1 NVIDIA H200", 0.25, 51)


def test_a_device_that_does_not_say_how_busy_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_nvml", lambda: nvml(NVMLError("not supported")))
    assert [gauge.utilisation for gauge in measure()] == [None, None]


def test_without_devices_it_is_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_nvml", lambda: None)
    (machine,) = measure()
    assert machine.total == psutil.virtual_memory().total
    assert 0 < machine.share < 1
    machine, process = measure(10**8)
    assert (process.label, process.used) == ("Process of the run", 10**8)
