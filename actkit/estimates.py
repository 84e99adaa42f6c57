"""What a run will take: by arithmetic, and more closely by what a trial measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .config import MB
from .planning import Plan
from .schema import VARIABLES, Variable

# what bitshuffle and lz4 leave of a value's bytes, by how many of them carry information; measured
# on trained weights (benchmarks/engine.py)
COMPRESSED = {2: 0.75, 4: 0.9}
PROGRAM_BYTES = 700 * MB
# zarr holds a variable it writes this often, beside the variable itself
_WRITTEN = 2.5
# How fast a batch is beside others, which share memory and Python's lock, to how fast it is alone; between
# what benchmarks/plan.py showed of three models on two cores: 0.77, 0.88 and 0.94
_TOGETHER = 0.87


@dataclass(frozen=True)
class Rates:
    """What a trial measured: of a run, and of those that differ from it in what they keep.

    Parameters
    ----------
    starting
        Seconds before the first batch.
    reading
        Seconds a sample, to read it and make it a prompt.
    computing
        Seconds a position that the model computes, pads included, of a batch alone.
    at_once
        How many batches are computed at once.
    depth
        Blocks that each position went through.
    crossing
        Seconds a byte on its way from the device; 0 where the device is the host.
    writing
        Seconds a byte on disk, compressing included.
    describing, committing
        Seconds a sample and a window, for all that is written beside.
    busy
        The part of the time of writing in which a core is busy.
    shares_cores
        Whether the model is computed by the cores that read and compress.
    compressed
        Of each variable, bytes on disk as a ratio to what :func:`disk_bytes` expects.
    strings
        Bytes on disk a sample, of variables that hold strings.
    host
        Most memory that the process held, without windows.
    device
        Most memory that was held on the device; None where it is the host.
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
    """How long a run will take, in seconds.

    Parameters
    ----------
    starting
        Checking, loading the model, and creating the cube.
    computing, crossing, writing
        What each takes by itself: the model; values on their way to the host, which is 0 where they are
        there; compressing and writing.
    total
        From the start to the end: what is done at once counts once.
    """

    starting: float
    computing: float
    crossing: float
    writing: float
    total: float

    @property
    def binds(self) -> str:
        """What the run waits for: ``computing``, ``crossing`` or ``writing``."""
        return max(("computing", "crossing", "writing"), key=lambda name: float(getattr(self, name)))

    def __str__(self) -> str:
        parts = [f"{readable_seconds(self.computing)} computing"]
        if self.crossing:
            parts.append(f"{readable_seconds(self.crossing)} crossing to the host")
        parts.append(f"{readable_seconds(self.writing)} writing beside it")
        return f"{readable_seconds(self.total)}: {', '.join(parts)}; {self.binds} binds"


@dataclass(frozen=True)
class Estimate:
    """What a run will take, in bytes.

    Parameters
    ----------
    disk
        The cube, compressed.
    dense
        The same arrays, uncompressed and padded.
    host
        Peak host memory: the program, the model where the host computes it, and the windows.
    device
        Peak memory of the device; None where it is the host.
    time
        None before a trial.
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
    device_bytes: int | None = None,
    depth: int = 0,
    gathered: int = 0,
    rates: Rates | None = None,
) -> Estimate:
    """Predict what a run takes.

    Parameters
    ----------
    plan
        The plan of the run.
    variables, layers
        As for :func:`~actkit.planning.footprint`; layers of the axis at which a component is not kept
        take no disk.
    value_bytes
        Bytes of a value of `residual` that carry information: 2 from bfloat16 weights.
    host_bytes, device_bytes
        What the model takes of either memory, by arithmetic; None where the device is the host.
    depth
        Blocks that each position goes through.
    gathered
        Bytes of moments, which are held and then kept.
    rates
        What a trial measured, which then says more than arithmetic.
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
        return Estimate(disk + gathered, dense, host, device_bytes)
    time = _time(plan, disk - beside, depth, rates)
    return Estimate(disk + gathered + int(rates.strings * plan.shape.sample), dense, host, rates.device, time)


def disk_bytes(plan: Plan, variable: Variable, *, layers: Mapping[str, int], value_bytes: int) -> int:
    """Return what a variable takes on disk, by arithmetic; parameters as for :func:`estimate`."""
    real, shape = _cells(plan, variable), plan.shape_of(variable)
    if "token" in variable.dims and not variable.group:
        real = real * int(plan.stored.sum()) // (shape.sample * shape.token)
    if variable.name in layers:
        real = real * layers[variable.name] // shape.layer
    carried = value_bytes if variable.is_full else 4
    return int(real * carried * COMPRESSED[carried])


def _cells(plan: Plan, variable: Variable) -> int:
    shape = plan.shape_of(variable)
    return math.prod(shape[dim] for dim in variable.dims)


def _scratch(plan: Plan, variables: Sequence[str]) -> int:
    """Return what writing a window takes beside it: variables without a vector for each token are padded."""
    small = [VARIABLES[name] for name in variables]
    sizes = [
        4 * _cells(plan, variable) * min(plan.window, plan.shape.sample) // plan.shape.sample
        for variable in small
        if not variable.is_full and variable.dtype != "str"
    ]
    return sum(sizes) + int(_WRITTEN * max(sizes, default=0))


def _time(plan: Plan, disk: int, depth: int, rates: Rates) -> Time:
    """Let the windows go through a run: one is computed while the one before is written."""
    positions, samples, stored = plan.by_window()
    speed = rates.at_once * _TOGETHER if rates.at_once > 1 else 1
    computing = positions * rates.computing / speed * depth / rates.depth
    reading = samples * rates.reading
    crossing = stored / stored.max() * plan.window_bytes * rates.crossing if stored.any() else 0 * stored
    bytes_written = disk * stored / max(stored.sum(), 1)
    writing = bytes_written * rates.writing + samples * rates.describing + rates.committing
    before = done = safe = 0.0  # when the window before last is written, this one computed, and written
    for window in range(plan.n_windows):
        busy = rates.busy * writing[window - 1] if window else 0.0
        took = computing[window]
        if rates.shares_cores:  # while another thread has a core, one of the batches waits
            took += (reading[window] + busy) / rates.at_once
        done = max(done, before) + max(took, reading[window], crossing[window])
        before, safe = safe, max(done, safe) + writing[window]
    sums = [float(part.sum()) for part in (computing, crossing, writing)]
    return Time(rates.starting, sums[0], sums[1], sums[2], float(rates.starting + safe))


def readable_bytes(size: float) -> str:
    """Write a size with a fitting unit.

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
    """Write a time with fitting units.

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
