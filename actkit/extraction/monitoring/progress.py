"""Progress events of a run, and the listeners that show or store them."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import psutil
from tqdm.auto import tqdm

from ...errors import StorageError
from ...store.folders import Folder
from ...store.run_folder import write_status
from .label_counts import LabelCounts


@dataclass(frozen=True)
class Progress:
    """Progress of a run.

    Parameters
    ----------
    state
        ``queued``, ``loading``, ``running``, ``done``, ``failed`` or ``interrupted``.
    samples, total_samples
        Samples computed, including earlier sessions, and samples in total.
    committed
        Samples safely on disk.
    tokens
        Real tokens computed in this session.
    seconds
        Time since computation began in this session.
    samples_per_second, tokens_per_second
        Rates of this session.
    eta_seconds
        Remaining time at that rate; None while unknown.
    bytes_written
        Bytes written in this session.
    batch_tokens
        Positions of the largest batch of this session, padding included.
    host_bytes
        Memory of this process, and of the workers of a cluster.
    device_bytes
        Memory of the accelerator, or of those of all workers: ``allocated``, ``reserved``, ``total``; empty
        on the CPU.
    workers
        Memory of each worker of a cluster: ``host_bytes``, ``host_total`` and those of ``device_bytes``.
    languages
        Samples computed of each language, including earlier sessions; empty until the cube is created.
    labels
        Samples computed of each value, for each label with few values.
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
    workers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    languages: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


Listener = Callable[[Progress], None]


class Meter:
    """Counters of a session, reported to its listeners.

    Parameters
    ----------
    total
        Number of samples of the run.
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
        label_counts: LabelCounts | None = None,
    ) -> None:
        """Start the clock of this session.

        Parameters
        ----------
        committed
            Samples that earlier sessions committed.
        device_memory
            Returns ``device_bytes`` of :class:`Progress`.
        label_counts
            Counts by language and label, which already include the committed samples.
        """
        self._before = committed
        self._device_memory = device_memory
        self._label_counts = label_counts
        # monotonic, so that a clock that is set back cannot make rates negative
        self._start = time.monotonic()
        self.committed = committed
        # of other processes: samples and tokens of batches that are not added yet, and memory
        self.under_way = (0, 0)
        self.workers: dict[str, dict[str, int]] = {}
        self.samples = self.tokens = self.bytes_written = self.batch_tokens = 0

    def add(self, samples: np.ndarray, tokens: int) -> None:
        """Count a computed batch.

        Parameters
        ----------
        samples
            Indices of its samples.
        tokens
            Number of real tokens of all samples.
        """
        self.samples += len(samples)
        self.tokens += tokens
        if self._label_counts is not None:
            self._label_counts.add(samples)

    def emit(self, state: str = "running") -> Progress:
        """Send the current progress to every listener, and return it."""
        seconds = time.monotonic() - self._start
        samples, tokens = self.samples + self.under_way[0], self.tokens + self.under_way[1]
        rate = samples / seconds if seconds > 0 else 0.0
        left = self._total - self._before - samples
        event = Progress(
            state=state,
            samples=self._before + samples,
            total_samples=self._total,
            committed=self.committed,
            tokens=tokens,
            seconds=seconds,
            samples_per_second=rate,
            tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
            eta_seconds=left / rate if rate else None,
            bytes_written=self.bytes_written,
            batch_tokens=self.batch_tokens,
            host_bytes=self._process.memory_info().rss
            + sum(each["host_bytes"] for each in self.workers.values()),
            device_bytes=self._device_memory(),
            workers=self.workers,
            languages=self._label_counts.languages if self._label_counts else {},
            labels=self._label_counts.labels if self._label_counts else {},
        )
        for listener in self._listeners:
            listener(event)
        return event


class StatusFile:
    """Listener that writes the status file of a run folder, at most once per second.

    Parameters
    ----------
    run
        The run folder, or that of a part.
    run_samples
        Number of samples of the whole run, for a part.
    """

    def __init__(self, run: Folder, run_samples: int = 0) -> None:
        self._run = run
        self._more = {"run_samples": run_samples} if run_samples else {}
        self._last = 0.0
        self._state = ""

    def __call__(self, event: Progress) -> None:  # noqa: D102
        now = time.monotonic()
        if event.state != self._state or now - self._last >= 1:
            with suppress(StorageError):  # only failed writes of data end a run
                write_status(self._run, {**asdict(event), **self._more})
            self._last, self._state = now, event.state


class Bar:
    """Progress bar in a terminal or notebook.

    Parameters
    ----------
    part
        The part of a run whose progress it shows.
    title
        Title for a whole run.
    """

    def __init__(self, part: object = None, title: str = "extract") -> None:
        self._title = f"part {part}" if part else title
        self._bar: Any = None

    def __call__(self, event: Progress) -> None:  # noqa: D102
        if event.state == "running":
            if self._bar is None:
                self._bar = tqdm(
                    total=event.total_samples,
                    initial=event.samples,
                    unit=" samples",
                    desc=self._title,
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
