"""Coordinator of the workers of a cluster: leases of windows, and the progress of all of them."""

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from distributed import Client, Future, KilledWorker

from ...errors import ClusterError
from ...store.writer import CubeWriter
from ..loop.data_loader import windows
from ..loop.moment_accumulator import MomentAccumulator
from ..monitoring.progress import Meter
from ..monitoring.run_log import logger
from ..preflight.preparation import RunPlan
from ..preflight.run_metadata import machine_settings
from .connection import connected
from .lease import Job, Lease, LeaseResult, WindowInput
from .tasks import end, run_lease

SECONDS = 30.0  # that a lease should take
_MOST_WINDOWS = 16  # of a lease
_PER_WORKER = 2  # leases submitted, so that no worker waits for the coordinator
_RETRIES = 5  # of leases that fail with an error that is not ours


class ClusterEngine:
    """Computes windows on the workers of a cluster, as :class:`LocalEngine` does in this process.

    Parameters
    ----------
    prepared
        The run.
    cluster
        Name of the cluster, as checked by :func:`~.connection.check_cluster`.

    Notes
    -----
    Workers read no data and know no lengths but those of their leases: the coordinator reads the rows of all
    windows once, in order, and hands them out. The cube is the only record of what is done.
    """

    def __init__(self, prepared: RunPlan, cluster: str) -> None:
        self._prepared, self._cluster = prepared, cluster
        self._key = f"actkit-{uuid4().hex}"
        self._stack = ExitStack()
        self._events: SimpleQueue[Future[Any] | dict[str, Any]] = SimpleQueue()
        self._leases: dict[Future[Any], Lease] = {}
        self._reports: dict[int, dict[str, Any]] = {}  # of leases that are not done
        self._memory: dict[str, dict[str, Any]] = {}  # last report of each worker
        self._count = 0
        self._rate = 0.0  # positions per second and worker

    @cached_property
    def _client(self) -> Client:
        device = str(self._prepared.attrs["device"])
        client = self._stack.enter_context(connected(self._cluster, device))
        client.subscribe_topic(self._key, lambda event: self._events.put(event[1]))
        return client

    @cached_property
    def _job(self) -> bytes:
        prepared, settings = self._prepared, machine_settings(self._prepared.config)
        job = Job.of(prepared, topic=self._key, settings=settings, cores=torch.get_num_threads())
        return pickle.dumps(job)

    def start(self) -> None:
        """Connect to the cluster, or start it, unless that is done."""
        _ = self._client

    def check_model(self) -> dict[str, str | float]:
        """Load the model in a worker, check it there, and return the result as attributes."""
        (window, rows), *_ = islice(windows(self._prepared, [0]), 1)
        self._submit(Lease(self._next(), (WindowInput.of(self._prepared, window, rows),)))
        while True:
            event = self._event(timeout=1.0)
            if event is None:
                self._n_workers()  # fails if the scheduler is lost
            if result := self._result(event):
                return result[1].sum_rule

    def compute(
        self,
        writer: CubeWriter,
        todo: Sequence[int],
        meter: Meter,
        accumulator: MomentAccumulator | None = None,
    ) -> None:
        """Compute and commit windows on the workers.

        Raises
        ------
        ClusterError
            If workers die again and again, or the scheduler is lost; committed windows are safe.
        """
        assert accumulator is None, "moments are computed from the cube"
        inputs = (WindowInput.of(self._prepared, *entry) for entry in windows(self._prepared, todo))
        left = len(todo)
        event = None
        while left or self._leases:
            if not isinstance(event, dict):  # a lease has ended, or nothing has happened for a second
                n_workers = self._n_workers()
                while left and len(self._leases) < _PER_WORKER * n_workers:
                    taken = self._take(inputs, left, n_workers)
                    left -= len(taken)
                    self._submit(Lease(self._next(), taken, writer.seal))
            event = self._event(timeout=1.0)
            if result := self._result(event):
                self._count_lease(*result, meter)
            self._emit(meter)

    def device_bytes(self) -> Mapping[str, int]:
        """Return the memory of the accelerators of all workers."""
        total: dict[str, int] = {}
        for report in self._memory.values():
            for name, size in report["device_bytes"].items():
                total[name] = total.get(name, 0) + size
        return total

    def close(self) -> None:
        """End the work of the workers, and the cluster if it was started here."""
        if "_client" in vars(self):
            with suppress(Exception):  # the scheduler may be gone
                for future in self._leases:
                    future.cancel()
                self._client.run(end, self._key, on_error="ignore")
        self._stack.close()

    def _n_workers(self) -> int:
        """Return the number of workers, at least 1: leases wait for the first one."""
        try:
            present = self._client.nthreads()
        except OSError as error:
            raise self._lost() from error
        self._memory = {address: report for address, report in self._memory.items() if address in present}
        return max(len(present), 1)

    def _lost(self) -> ClusterError:
        return ClusterError(f"the scheduler of {self._cluster} was lost; run the same command to continue")

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _take(self, inputs: Iterator[WindowInput], left: int, n_workers: int) -> tuple[WindowInput, ...]:
        """Take the windows of the next lease: fewer towards the end, so that all workers end together."""
        most = min(_MOST_WINDOWS, math.ceil(left / (_PER_WORKER * n_workers))) if self._rate else 1
        taken: list[WindowInput] = []
        positions = 0
        for entry in inputs:
            taken.append(entry)
            positions += int(entry.lengths.sum())
            if len(taken) >= most or positions >= SECONDS * self._rate:
                break
        return tuple(taken)

    def _submit(self, lease: Lease) -> None:
        future = self._client.submit(
            run_lease,
            self._key,
            self._job,
            pickle.dumps(lease),
            key=f"{self._key}-{lease.number}",
            pure=False,
            retries=_RETRIES,
        )
        self._leases[future] = lease
        future.add_done_callback(self._events.put)

    def _event(self, timeout: float) -> Future[Any] | dict[str, Any] | None:
        with suppress(Empty):
            return self._events.get(timeout=timeout)
        return None

    def _result(self, event: Future[Any] | dict[str, Any] | None) -> tuple[Lease, LeaseResult] | None:
        """Return the result of a lease if the event is its end; otherwise, take note of it."""
        if isinstance(event, dict):
            if "log" in event:
                logger.log(int(event["log"]), "%s", event["text"])
            else:
                self._reports[event["lease"]] = self._memory[event["worker"]] = event
        if not isinstance(event, Future):
            return None
        lease = self._leases.pop(event)
        if event.status not in ("finished", "error"):
            raise self._lost()
        try:
            result: LeaseResult = event.result()
        except KilledWorker as error:
            named = ", ".join(str(entry.window) for entry in lease.windows)
            raise ClusterError(f"workers died again and again at windows {named}: {error}") from error
        if result.error is not None:
            raise result.error
        return lease, result

    def _count_lease(self, lease: Lease, result: LeaseResult, meter: Meter) -> None:
        self._reports.pop(lease.number, None)
        if result.computed and result.seconds:
            positions = sum(
                int(entry.lengths.sum()) for entry in lease.windows if entry.window in result.computed
            )
            self._rate = positions / result.seconds
        plan = self._prepared.plan
        samples = np.concatenate([np.asarray(plan.samples_of(entry.window)) for entry in lease.windows])
        meter.add(samples, lease.tokens)
        meter.committed += len(samples)
        meter.bytes_written += result.bytes_written
        meter.batch_tokens = max(meter.batch_tokens, result.batch_tokens)

    def _emit(self, meter: Meter) -> None:
        running = {lease.number for lease in self._leases.values()}
        reports = [report for number, report in self._reports.items() if number in running]
        meter.under_way = tuple(sum(report[name] for report in reports) for name in ("samples", "tokens"))
        meter.workers = {
            address.partition("://")[2]: {
                **{name: report[name] for name in ("host_bytes", "host_total")},
                **report["device_bytes"],
            }
            for address, report in sorted(self._memory.items())
        }
        meter.emit()
