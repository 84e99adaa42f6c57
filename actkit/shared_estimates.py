"""Estimates for runs that several processes compute: files, requests to an object store, network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .batch_plan import Plan
from .estimates import disk_bytes, readable_bytes, readable_seconds
from .regular_files import MB
from .schema import VARIABLES

# larger objects are uploaded in parts, with a request to begin and one to complete
SINGLE_BYTES = 64 * MB
UPLOAD_BYTES = 32 * MB
_RECORDS = 2  # the receipt and the flags of a window
_GIGABIT = 125_000_000  # bytes


@dataclass(frozen=True)
class FileCounts:
    """Files that the windows of a run are written to.

    Parameters
    ----------
    windows
        Number of windows.
    per_window
        Files of a window, including its receipt and its flags.
    requests_per_window
        Requests that write these files as objects.
    largest
        Size of the largest file, in bytes.
    """

    windows: int
    per_window: int
    requests_per_window: int
    largest: int

    @property
    def files(self) -> int:
        """Number of files of all windows."""
        return self.windows * self.per_window

    @property
    def requests(self) -> int:
        """Number of requests for all windows."""
        return self.windows * self.requests_per_window

    def __str__(self) -> str:
        return (
            f"{self.files:,}, {self.per_window} a window, the largest about {readable_bytes(self.largest)}; "
            f"as objects {self.requests:,} requests, {self.requests_per_window} a window"
        )


def count_files(
    plan: Plan, variables: Sequence[str], *, layers: Mapping[str, int], value_bytes: int
) -> FileCounts:
    """Count the files of the windows of a run; parameters as for :func:`~actkit.estimates.estimate`."""
    share = min(plan.window, plan.shape.sample) / plan.shape.sample
    sizes = [
        0 if variable.dtype == "str" else int(share * _disk(plan, variable.name, layers, value_bytes))
        for variable in (VARIABLES[name] for name in variables)
    ]
    requests = sum(1 if size < SINGLE_BYTES else -(-size // UPLOAD_BYTES) + 2 for size in sizes)
    return FileCounts(plan.n_windows, len(sizes) + _RECORDS, requests + _RECORDS, max(sizes, default=0))


def _disk(plan: Plan, name: str, layers: Mapping[str, int], value_bytes: int) -> int:
    return disk_bytes(plan, VARIABLES[name], layers=layers, value_bytes=value_bytes)


@dataclass(frozen=True)
class SharedTime:
    """Duration of a run in parts, all of which run at once and write over one network.

    Parameters
    ----------
    parts
        Number of parts.
    disk
        Size of the cube on disk, in bytes.
    requests
        Requests that write it as objects.
    seconds
        Duration of the run in one part, in seconds; None if unknown.
    network
        Bandwidth that the parts share, in gigabits per second; None if unknown.
    """

    parts: int
    disk: int
    requests: int
    seconds: float | None = None
    network: float | None = None

    @property
    def computing(self) -> float | None:
        """Seconds that the parts take if the network does not hold them up."""
        return None if self.seconds is None else self.seconds / self.parts

    @property
    def transfer(self) -> float | None:
        """Seconds that the network takes at least."""
        return None if self.network is None else self.disk / (self.network * _GIGABIT)

    @property
    def total(self) -> float | None:
        """Seconds that the run takes at least; None if nothing is known."""
        known = [seconds for seconds in (self.computing, self.transfer) if seconds is not None]
        return max(known, default=None)

    @property
    def binds(self) -> str:
        """The bottleneck: ``computing`` or ``network``; empty if either is unknown."""
        if self.computing is None or self.transfer is None:
            return ""
        return "network" if self.transfer > self.computing else "computing"

    @property
    def requests_per_second(self) -> float:
        """Requests per second to an object store; NaN while the duration is unknown."""
        return self.requests / self.total if self.total else float("nan")

    def __str__(self) -> str:
        texts = []
        if self.computing is not None:
            keeps_up = readable_bytes(self.disk / self.computing) if self.computing else "any"
            texts.append(f"{readable_seconds(self.computing)} each, at which {keeps_up}/s are written")
        if self.network is not None and self.transfer is not None:
            texts.append(f"the network of {self.network:g} Gbit/s takes {readable_seconds(self.transfer)}")
        if self.total:
            texts.append(f"{self.requests_per_second:,.0f} requests/s to an object store")
        bottleneck = {"network": "the network is the bottleneck", "computing": "computing is the bottleneck"}
        return (
            "; ".join([*texts, *([bottleneck[self.binds]] if self.binds else [])])
            or "unknown without a trial"
        )
