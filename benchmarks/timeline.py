"""Timeline of a device: when it computes, and when it copies to the host."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

WIDTH = 60
_SHADES = " ░▒▓█"


@dataclass(frozen=True)
class Interval:
    """Time of one kernel or copy on the device, in microseconds.

    Parameters
    ----------
    copies
        Whether it copies to the host.
    """

    start: float
    end: float
    copies: bool


def recorded(action: Callable[[], object]) -> list[Interval]:
    """Return what a device did during an action, of all threads; nothing without a device."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    return intervals(profile.events() or [])


def intervals(events: Sequence[Any]) -> list[Interval]:
    """Return kernels and copies to the host among the events of a profile; other copies are left out."""
    found = []
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CUDA:
            continue
        copies = "Memcpy DtoH" in event.name
        if copies or not event.name.startswith(("Memcpy", "Memset")):
            found.append(Interval(event.time_range.start, event.time_range.end, copies))
    return sorted(found, key=lambda interval: interval.start)


def union(found: Sequence[Interval]) -> list[tuple[float, float]]:
    """Return the disjoint stretches that intervals, sorted by their start, cover."""
    stretches: list[tuple[float, float]] = []
    for interval in found:
        if stretches and interval.start <= stretches[-1][1]:
            stretches[-1] = stretches[-1][0], max(stretches[-1][1], interval.end)
        else:
            stretches.append((interval.start, interval.end))
    return stretches


def covered(stretches: Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Return the time between two moments that stretches cover."""
    return sum(max(min(last, end) - max(first, start), 0.0) for first, last in stretches)


def overlap(found: Sequence[Interval]) -> float:
    """Return the fraction of the copying time in which the device also computes; NaN without copies."""
    copies = union([interval for interval in found if interval.copies])
    kernels = union([interval for interval in found if not interval.copies])
    total = sum(end - start for start, end in copies)
    return sum(covered(kernels, *copy) for copy in copies) / total if total else float("nan")


def timeline(found: Sequence[Interval], width: int = WIDTH) -> dict[str, str]:
    """Return a line of computing and one of copying, from the first copy to the last, darker if busier."""
    copies = [interval for interval in found if interval.copies] or list(found)
    edges = np.linspace(copies[0].start, max(interval.end for interval in copies), width + 1)
    lines = {}
    for name, is_copy in (("computing", False), ("copying to the host", True)):
        stretches = union([interval for interval in found if interval.copies == is_copy])
        shares = [covered(stretches, *pair) / (pair[1] - pair[0]) for pair in pairwise(edges)]
        lines[f"timeline of {(edges[-1] - edges[0]) / 1000:.1f} ms: {name}"] = "".join(
            _SHADES[min(int(np.ceil(share * (len(_SHADES) - 1))), len(_SHADES) - 1)] for share in shares
        )
    return lines
