"""The model and the settings of a run in a worker of a cluster, where they serve all leases."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from distributed import get_worker

from ...errors import ActkitError, ChangedError, Fault, StorageError
from ...store.layout import CUBE
from ...store.shared_writer import SharedWriter
from ..loop.local_engine import LocalEngine, compression_threads
from ..loop.pipeline import compute
from ..models.devices import Share, share_heap
from ..monitoring.progress import Meter, Progress
from ..monitoring.run_log import logger
from ..preflight.preparation import RunPlan
from ..preflight.prompt_lengths import Measure
from ..preflight.run_metadata import RunSpec, machine_settings
from ..prompts.encoder import load_encoder
from .lease import Job, Lease, LeaseResult

_MOST_BATCHES = 4  # as in `share_cores`


class _EndedError(Exception):
    """The coordinator has ended the run."""


class WorkerSession:
    """A run in a worker.

    Parameters
    ----------
    job
        The run.
    """

    def __init__(self, job: Job) -> None:
        share_heap()
        here = machine_settings(job.config)
        if changed := [name for name, value in job.settings.items() if here[name] != value]:
            faults = [Fault(name, f"was {job.settings[name]!r}, is {here[name]!r}") for name in changed]
            raise ChangedError(faults, f"the worker on {socket.gethostname()} would compute other values")
        encoder, faults = load_encoder(job.checkpoint, job.architecture, job.config)
        if encoder is None:
            raise ChangedError(faults, f"the tokenizer cannot be loaded on {socket.gethostname()}")
        self.topic = job.topic
        self._job = job
        self._measure = Measure(job.config, job.architecture, encoder, vision=False)
        self._measure.first_is_content = job.first_is_content
        nothing = cast(Any, None)  # a worker has no data
        spec = RunSpec(
            job.config, nothing, nothing, job.checkpoint, job.architecture, encoder, job.layers, self._measure
        )
        self._prepared = RunPlan(spec, job.size, {}, Path(job.config.out), 0, 0.0)
        self._engine = LocalEngine(self._prepared)
        # more threads per batch would change the last bits
        threads = job.threads or torch.get_num_threads()
        batches = 1 if job.config.generate else min(_MOST_BATCHES, torch.get_num_threads() // threads)
        self._share = Share(max(batches, 1) if job.threads and not spec.quantized else 1, threads)

    def check_model(self, lease: Lease) -> LeaseResult:
        """Load the model and check it on the first batch of a lease."""
        with Share(1, self._job.cores).taken():
            sum_rule = self._engine.check_model(self._run_of(lease), lease.rows([0]))
        return LeaseResult(sum_rule=sum_rule)

    def compute(self, lease: Lease, listener: Callable[[Progress], None]) -> LeaseResult:
        """Compute the windows of a lease that are not committed."""
        model = self._engine.model
        prepared, started = self._run_of(lease), time.monotonic()
        windows = [window.window for window in lease.windows]
        threads = compression_threads()
        with closing(SharedWriter(prepared.run / CUBE, prepared.plan, windows, threads=threads)) as writer:
            if writer.seal != lease.seal:
                raise StorageError(f"{writer.path}: holds another cube on {socket.gethostname()}")
            todo = writer.recover()
            meter = Meter(lease.samples, [listener])
            meter.begin(0, self._engine.device_bytes)
            if todo:
                compute(prepared, model, writer, todo, meter, share=self._share, rows=lease.rows(todo))
        return LeaseResult(time.monotonic() - started, meter.bytes_written, meter.batch_tokens, tuple(todo))

    def _run_of(self, lease: Lease) -> RunPlan:
        for window in lease.windows:
            samples = self._prepared.plan.samples_of(window.window)
            self._measure.learn_images(samples, window.image_hashes)
        size = self._prepared.size
        return replace(self._prepared, size=replace(size, plan=lease.plan(size.plan)))


def leased(session: Callable[[], WorkerSession], lease: Lease, is_ended: Callable[[], bool]) -> LeaseResult:
    """Compute a lease, and report to the coordinator meanwhile."""
    if is_ended():
        return LeaseResult()
    try:
        with _reported_log() as topics:
            current = session()
            topics.append(current.topic)
            if not lease.seal:
                return current.check_model(lease)
            return current.compute(lease, _Reporter(current.topic, lease.number, is_ended))
    except ActkitError as error:  # another attempt would fail too
        return LeaseResult(error=error)
    except _EndedError:
        return LeaseResult()


class _Reporter:
    """Listener that sends the progress of a lease to the coordinator, at most once per second."""

    def __init__(self, topic: str, lease: int, is_ended: Callable[[], bool]) -> None:
        self._topic, self._lease, self._is_ended = topic, lease, is_ended
        self._last = -math.inf
        self._worker = get_worker()

    def __call__(self, event: Progress) -> None:
        if self._is_ended():
            raise _EndedError
        if time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            report = {
                "lease": self._lease,
                "worker": self._worker.address,
                "samples": event.samples,
                "tokens": event.tokens,
                "host_bytes": event.host_bytes,
                "host_total": psutil.virtual_memory().total,
                "device_bytes": dict(event.device_bytes),
            }
            self._worker.log_event(self._topic, report)


class _LogSender(logging.Handler):
    """Handler that sends log records to the coordinator."""

    def __init__(self, topics: list[str]) -> None:
        super().__init__(logging.INFO)
        self._topics = topics
        self._worker = get_worker()
        self._name = f"{socket.gethostname()} {os.getpid()}"

    def emit(self, record: logging.LogRecord) -> None:
        message = {"log": record.levelno, "text": f"[{self._name}] {record.getMessage()}"}
        for topic in self._topics:
            self._worker.log_event(topic, message)


@contextmanager
def _reported_log() -> Iterator[list[str]]:
    """Send log records to the coordinator, under the topics in the list that is yielded."""
    topics: list[str] = []
    handler = _LogSender(topics)
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield topics
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
