"""Memory use of the devices, or of the machine if it has none."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil


@dataclass(frozen=True)
class Gauge:
    """Reading of one memory bar.

    Parameters
    ----------
    label
        What is measured.
    used, total
        Bytes.
    utilisation
        Utilisation of the device in percent; None if unknown.
    """

    label: str
    used: int
    total: int
    utilisation: int | None = None

    @property
    def share(self) -> float:
        """Fraction used, from 0 to 1."""
        return min(self.used / self.total, 1.0) if self.total else 0.0


def measure(process_bytes: int = 0) -> list[Gauge]:
    """Return a gauge per NVIDIA device, or else one of the machine and one of the process, if known.

    Parameters
    ----------
    process_bytes
        Memory used by the process of the run; 0 if unknown.
    """
    if devices := _devices():
        return devices
    memory = psutil.virtual_memory()
    measured = [Gauge("System memory", int(memory.total - memory.available), int(memory.total))]
    if process_bytes:
        measured.append(Gauge("Process of the run", process_bytes, int(memory.total)))
    return measured


def of_workers(workers: Mapping[str, Mapping[str, int]]) -> list[Gauge]:
    """Return a gauge per worker of a cluster, of its device or else of its process.

    Parameters
    ----------
    workers
        Memory by address, as in a status.
    """
    measured = []
    for address, sizes in workers.items():
        on_device = bool(sizes.get("total"))
        used, total = ("reserved", "total") if on_device else ("host_bytes", "host_total")
        measured.append(Gauge(f"Worker {address}", sizes.get(used, 0), sizes.get(total, 0)))
    return measured


def _devices() -> list[Gauge]:
    nvml = _nvml()
    if nvml is None:
        return []
    measured = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        name = name.decode() if isinstance(name, bytes) else name
        label = f"cuda:{index} {name}"
        measured.append(Gauge(label, int(memory.used), int(memory.total), _utilisation(nvml, handle)))
    return measured


def _utilisation(nvml: Any, handle: Any) -> int | None:
    """Return the utilisation of a device; None if it reports none, as MIG slices do."""
    try:
        return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:
        return None


@cache
def _nvml() -> Any:
    """Return NVIDIA's management library, initialised; None without a driver or the Python binding."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # drivers fail in various ways; treat all as having no devices
        return None
    return pynvml
