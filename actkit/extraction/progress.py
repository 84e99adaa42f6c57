"""One stream of events; the bar, the status file and whoever else wants it listen to the same."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from tqdm.auto import tqdm

from ..errors import StorageError
from ..store.runs import write_status
from .tally import Tally


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Parameters
    ----------
    state
        ``queued``, ``loading``, ``running``, ``done``, ``failed`` or ``interrupted``.
    samples, total_samples
        Samples computed, those of earlier sessions included; and all.
    committed
        Samples safely on disk.
    tokens
        Real tokens computed in this session.
    seconds
        Time since this session began to compute.
    samples_per_second, tokens_per_second
        Of this session.
    eta_seconds
        Time left at that rate; None while it is unknown.
    bytes_written
        Of this session.
    batch_tokens
        Positions of the largest batch of this session, pads included.
    host_bytes
        Memory of this process.
    device_bytes
        Memory of the accelerator: ``allocated``, ``reserved``, ``total``; empty on the CPU.
    languages
        Samples computed of each language, those of earlier sessions included; empty until the cube is
        there.
    labels
        The same for each label of few values: name, then value.
    """

    state: str
    samples: int = 0
    total_samples: int = 0
    committed: int = 0
    tokens: int = 0
    seconds: float = 0.0
    samples_per_second: float = 0.0
    tokens_per_second: float = 0.0
    eta_seconds: float | None = None
    bytes_written: int = 0
    batch_tokens: int = 0
    host_bytes: int = 0
    device_bytes: Mapping[str, int] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


Listener = Callable[[Progress], None]


class Meter:
    """Counts, and tells its listeners.

    Parameters
    ----------
    total
        Samples of the run.
    listeners
        Called with every event, in order.
    """

    def __init__(self, total: int, listeners: Sequence[Listener]) -> None:
        self._total = total
        self._listeners = listeners
        self._process = psutil.Process()
        self.begin(0, dict)

    def begin(
        self,
        committed: int,
        device_memory: Callable[[], Mapping[str, int]],
        tally: Tally | None = None,
    ) -> None:
        """Start the clock of this session.

        Parameters
        ----------
        committed
            Samples that earlier sessions committed.
        device_memory
            Returns what :class:`Progress` calls ``device_bytes``.
        tally
            Counts by language and label; those samples are already in it.
        """
        self._before = committed
        self._device_memory = device_memory
        self._tally = tally
        # monotonic: a clock that jumps must not make rates negative
        self._start = time.monotonic()
        self.committed = committed
        self.samples = self.tokens = self.bytes_written = self.batch_tokens = 0

    def add(self, samples: np.ndarray, tokens: int) -> None:
        """Count a batch that was computed.

        Parameters
        ----------
        samples
            Their indices.
        tokens
            The real tokens of all of them.
        """
        self.samples += len(samples)
        self.tokens += tokens
        if self._tally is not None:
            self._tally.add(samples)

    def tell(self, state: str = "running") -> Progress:
        """Send the present state to every listener, and return it."""
        seconds = time.monotonic() - self._start
        rate = self.samples / seconds if seconds > 0 else 0.0
        left = self._total - self._before - self.samples
        event = Progress(
            state=state,
            samples=self._before + self.samples,
            total_samples=self._total,
            committed=self.committed,
            tokens=self.tokens,
            seconds=seconds,
            samples_per_second=rate,
            tokens_per_second=self.tokens / seconds if seconds > 0 else 0.0,
            eta_seconds=left / rate if rate else None,
            bytes_written=self.bytes_written,
            batch_tokens=self.batch_tokens,
            host_bytes=self._process.memory_info().rss,
            device_bytes=self._device_memory(),
            languages=self._tally.languages if self._tally else {},
            labels=self._tally.labels if self._tally else {},
        )
        for listener in self._listeners:
            listener(event)
        return event


class StatusFile:
    """Keeps the heartbeat of a run folder, at most once a second.

    Parameters
    ----------
    run
        The run folder.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._last = 0.0
        self._state = ""

    def __call__(self, event: Progress) -> None:  # noqa: D102
        now = time.monotonic()
        if event.state != self._state or now - self._last >= 1:
            with suppress(StorageError):  # a disk that refuses its data ends a run, not its heartbeat
                write_status(self._run, asdict(event))
            self._last, self._state = now, event.state


class Bar:
    """A progress bar, in the terminal or the notebook."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: Progress) -> None:  # noqa: D102
        if event.state == "running":
            if self._bar is None:
                self._bar = tqdm(
                    total=event.total_samples,
                    initial=event.samples,
                    unit=" samples",
                    desc="extract",
                )
            memory = {
                "tok/s": f"{event.tokens_per_second:,.0f}",
                "host": f"{event.host_bytes / 1e9:.1f} GB",
            }
            if event.device_bytes:
                memory["device"] = f"{event.device_bytes['allocated'] / 1e9:.1f} GB"
            self._bar.set_postfix(memory, refresh=False)
            self._bar.update(event.samples - self._bar.n)
        elif self._bar is not None:
            self._bar.close()
            self._bar = None
