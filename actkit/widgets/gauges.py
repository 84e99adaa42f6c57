"""How full the memory of the devices is, or that of the machine where there are none."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import psutil


@dataclass(frozen=True)
class Gauge:
    """One bar.

    Parameters
    ----------
    label
        Of what.
    used, total
        Bytes.
    utilisation
        How busy the device is, in percent; None where nobody knows.
    """

    label: str
    used: int
    total: int
    utilisation: int | None = None

    @property
    def share(self) -> float:
        """How full it is, from 0 to 1."""
        return min(self.used / self.total, 1.0) if self.total else 0.0


def measure(process_bytes: int = 0) -> list[Gauge]:
    """Return a gauge for each NVIDIA device; without any, of the machine and, where it is known, a process.

    Parameters
    ----------
    process_bytes
        Memory of the process of an extraction.
    """
    if devices := _devices():
        return devices
    memory = psutil.virtual_memory()
    found = [Gauge("memory of the machine", int(memory.total - memory.available), int(memory.total))]
    if process_bytes:
        found.append(Gauge("memory of the extraction", process_bytes, int(memory.total)))
    return found


def _devices() -> list[Gauge]:
    nvml = _nvml()
    if nvml is None:
        return []
    found = []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        name = nvml.nvmlDeviceGetName(handle)
        name = name.decode() if isinstance(name, bytes) else name
        label = f"cuda:{index} {name}"
        found.append(Gauge(label, int(memory.used), int(memory.total), _utilisation(nvml, handle)))
    return found


def _utilisation(nvml: Any, handle: Any) -> int | None:
    """Return how busy a device is; not every one, such as a part of another, tells."""
    try:
        return int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    except nvml.NVMLError:
        return None


@cache
def _nvml() -> Any:
    """Return NVIDIA's library, begun; None where there is no driver, or no binding."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # each driver fails in its own way; there are no devices then
        return None
    return pynvml
