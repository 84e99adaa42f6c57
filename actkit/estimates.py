"""Estimates of the disk space, memory and time of a run, by arithmetic or from the rates of a trial."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .batch_plan import Plan
from .regular_files import MB
from .schema import VARIABLES, K, Variable, component_of

# fraction of a value's informative bytes left after bitshuffle and lz4, by the number of these bytes;
# measured on trained weights (benchmarks/engine.py)
COMPRESSED = {2: 0.75, 4: 0.9}
# the same for the largest entries of vectors, sorted by size; and what is left of the information in their
# indices; measured on the bundled model and MiniLM
COMPRESSED_ENTRIES = {2: 0.65, 4: 0.82}
_COMPRESSED_INDEX = 1.07
PROGRAM_BYTES = 700 * MB
# copies of a variable that zarr holds while writing it, in addition to the variable itself
_WRITTEN = 2.5
# speed of a batch among concurrent ones, which share memory and Python's lock, relative to a batch alone;
# benchmarks/plan.py measured 0.77, 0.88 and 0.94 for three models on two cores
_TOGETHER = 0.87


@dataclass(frozen=True)
class Rates:
    """Rates measured in a trial, valid for the run and for runs that differ only in what they save.

    Parameters
    ----------
    starting
        Seconds before the first batch.
    reading
        Seconds per sample to read it and turn it into a prompt.
    computing
        Seconds per position that the model computes, including padding, for a batch alone.
    at_once
        Number of concurrent batches.
    depth
        Number of blocks that each position passed through.
    crossing
        Seconds per byte copied from the device; 0 if the device is the host.
    writing
        Seconds per byte on disk, including compression.
    describing, committing
        Seconds per sample and per window for everything else that is written.
    busy
        Fraction of the writing time during which a core is busy.
    shares_cores
        Whether the model runs on the cores that read and compress.
    compressed
        Bytes on disk of each variable, relative to :func:`disk_bytes`.
    strings
        Bytes on disk per sample of string variables.
    host
        Peak memory of the process, without windows.
    device
        Peak memory on the device; None if it is the host.
    """

    starting: float
    reading: float
    computing: float
    at_once: int
    depth: int
    crossing: float
    writing: float
    describing: float
    committing: float
    busy: float
    shares_cores: bool
    compressed: Mapping[str, float] = field(default_factory=dict)
    strings: float = 0.0
    host: int = 0
    device: int | None = None


@dataclass(frozen=True)
class Time:
    """Estimated duration of a run, in seconds.

    Parameters
    ----------
    starting
        Checking the input, loading the model and creating the cube.
    computing, crossing, writing
        Each step by itself: the forward passes; copying to the host, 0 if the device is the host; compressing
        and writing.
    total
        From start to end, with concurrent steps overlapping.
    """

    starting: float
    computing: float
    crossing: float
    writing: float
    total: float

    @property
    def binds(self) -> str:
        """The bottleneck: ``computing``, ``crossing`` or ``writing``."""
        return max(("computing", "crossing", "writing"), key=lambda name: float(getattr(self, name)))

    def __str__(self) -> str:
        parts = [f"{readable_seconds(self.computing)} computing"]
        if self.crossing:
            parts.append(f"{readable_seconds(self.crossing)} copying to the host")
        parts.append(f"{readable_seconds(self.writing)} writing concurrently")
        bottleneck = "copying" if self.binds == "crossing" else self.binds
        return f"{readable_seconds(self.total)}: {', '.join(parts)}; {bottleneck} is the bottleneck"


@dataclass(frozen=True)
class Estimate:
    """Estimated size of a run, in bytes, and its duration.

    Parameters
    ----------
    disk
        Size of the cube, compressed.
    dense
        Size of the same arrays, uncompressed and padded.
    host
        Peak host memory: the program, the windows, and the model if it runs on the host.
    device
        Peak memory of the device; None if it is the host.
    time
        Duration; None without a trial.
    """

    disk: int
    dense: int
    host: int
    device: int | None = None
    time: Time | None = None


def estimate(
    plan: Plan,
    variables: Sequence[str],
    *,
    layers: Mapping[str, int],
    value_bytes: int,
    host_bytes: int,
    loading_bytes: int = 0,
    device_bytes: int | None = None,
    depth: int = 0,
    gathered: int = 0,
    rates: Rates | None = None,
) -> Estimate:
    """Estimate the disk space, memory and time of a run.

    Parameters
    ----------
    plan
        The plan of the run.
    variables, layers
        As for :func:`~actkit.batch_plan.footprint`; layers at which a component is not captured take no disk
        space.
    value_bytes
        Bytes of a value of `residual` that carry information: 2 for bfloat16 weights.
    host_bytes, device_bytes
        Memory of the model on the host and on the device, by arithmetic; None if the device is the host.
    loading_bytes
        Peak host memory while the model is loaded, before there are any windows.
    depth
        Number of blocks that each position passes through.
    gathered
        Bytes of moments, which are held in memory and then saved.
    rates
        Rates of a trial, used in place of arithmetic.
    """
    disk = dense = beside = 0
    for variable in (VARIABLES[name] for name in variables if VARIABLES[name].dtype != "str"):
        expected = disk_bytes(plan, variable, layers=layers, value_bytes=value_bytes)
        size = int(expected * rates.compressed.get(variable.name, 1)) if rates else expected
        disk += size
        beside += 0 if variable.is_full else size
        dense += _cells(plan, variable) * np.dtype(variable.dtype).itemsize
    host = (rates.host if rates else PROGRAM_BYTES + host_bytes) + plan.held_bytes
    host += _scratch(plan, variables) + gathered
    if rates is None:
        host = max(host, PROGRAM_BYTES + loading_bytes)
        return Estimate(disk + gathered, dense, host, device_bytes)
    time = _time(plan, disk - beside, depth, rates)
    return Estimate(disk + gathered + int(rates.strings * plan.shape.sample), dense, host, rates.device, time)


def disk_bytes(plan: Plan, variable: Variable, *, layers: Mapping[str, int], value_bytes: int) -> int:
    """Return the size of a variable on disk, by arithmetic; parameters as for :func:`estimate`."""
    real, shape = _cells(plan, variable), plan.shape_of(variable)
    if "token" in variable.dims and not variable.group:
        real = real * int(plan.stored.sum()) // (shape.sample * shape.token)
    component = component_of(variable.name) if variable.dims[-1] == K else variable.name
    if component in layers:
        real = real * layers[component] // shape.layer
    if variable.other_dtype:  # indices along hidden
        return int(real * math.log2(max(shape.hidden, 2)) / 8 * _COMPRESSED_INDEX)
    carried = value_bytes if variable.is_full else 4
    compressed = COMPRESSED_ENTRIES if variable.dims[-1] == K else COMPRESSED
    return int(real * carried * compressed[carried])


def _cells(plan: Plan, variable: Variable) -> int:
    shape = plan.shape_of(variable)
    return math.prod(shape[dim] for dim in variable.dims)


def _scratch(plan: Plan, variables: Sequence[str]) -> int:
    """Return the scratch memory for writing a window, in which variables without token vectors are padded."""
    small = [VARIABLES[name] for name in variables]
    sizes = [
        4 * _cells(plan, variable) * min(plan.window, plan.shape.sample) // plan.shape.sample
        for variable in small
        if not variable.is_full and variable.dtype != "str"
    ]
    return sum(sizes) + int(_WRITTEN * max(sizes, default=0))


def _time(plan: Plan, disk: int, depth: int, rates: Rates) -> Time:
    """Simulate a run, in which a window is computed while the previous one is written."""
    positions, samples, stored = plan.by_window()
    speed = rates.at_once * _TOGETHER if rates.at_once > 1 else 1
    computing = positions * rates.computing / speed * depth / rates.depth
    reading = samples * rates.reading
    crossing = stored / stored.max() * plan.window_bytes * rates.crossing if stored.any() else 0 * stored
    bytes_written = disk * stored / max(stored.sum(), 1)
    writing = bytes_written * rates.writing + samples * rates.describing + rates.committing
    before = done = safe = 0.0  # end times of: writing two windows back, computing this one, writing this one
    for window in range(plan.n_windows):
        busy = rates.busy * writing[window - 1] if window else 0.0
        took = computing[window]
        if rates.shares_cores:  # one batch waits while another thread occupies its core
            took += (reading[window] + busy) / rates.at_once
        done = max(done, before) + max(took, reading[window], crossing[window])
        before, safe = safe, max(done, safe) + writing[window]
    sums = [float(part.sum()) for part in (computing, crossing, writing)]
    return Time(rates.starting, sums[0], sums[1], sums[2], float(rates.starting + safe))


def readable_bytes(size: float) -> str:
    """Format a size with a suitable unit.

    Examples
    --------
    >>> readable_bytes(999), readable_bytes(12_345_678)
    ('999 bytes', '12.3 MB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def readable_seconds(seconds: float) -> str:
    """Format a duration with suitable units.

    Examples
    --------
    >>> [readable_seconds(seconds) for seconds in (0.05, 9.96, 250, 7260)]
    ['0.1 s', '10 s', '4 min 10 s', '2 h 1 min']
    """
    if seconds < 9.95:
        return f"{max(seconds, 0.1):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
