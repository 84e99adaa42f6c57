"""Pipeline of windows: one is read, one is computed, and one is compressed and written, concurrently."""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch

from ...store.writer import CubeWriter
from ..capture.device_copy import Transfer
from ..capture.nonfinite import check_findings
from ..capture.token_metadata import token_arrays
from ..capture.window_buffer import Dtypes, WindowBuffer
from ..models.devices import Share, share_cores, trim_heap
from ..models.loader import LoadedModel
from ..monitoring.progress import Meter
from ..monitoring.run_log import logger
from ..preflight.preparation import RunPlan
from .batch_runner import BatchRunner
from .data_loader import Batch, Rows, prefetched
from .moment_accumulator import MomentAccumulator

_TRIM_EVERY = 8  # batches


def compute(
    prepared: RunPlan,
    model: LoadedModel,
    writer: CubeWriter,
    todo: Sequence[int],
    meter: Meter,
    accumulator: MomentAccumulator | None = None,
    *,
    share: Share | None = None,
    rows: Rows | None = None,
) -> None:
    """Compute and commit windows.

    Parameters
    ----------
    prepared
        The run.
    model
        The model.
    writer
        Writer of the cube.
    todo
        Windows that are not committed yet.
    meter
        Counts every batch and window.
    accumulator
        Accumulates the moments of every window that is written.
    share
        Threads of each concurrent batch; by default, the cores of this process are divided.
    rows
        The rows of the windows; by default, they are read from the data.
    """
    share = share or share_cores(prepared.config, quantized=prepared.spec.quantized)
    threads = torch.get_num_threads()
    pipeline = _Pipeline(prepared, model, writer, meter, accumulator, share, n_buffers=min(2, len(todo)))
    try:
        with prefetched(prepared, todo, rows) as batches:
            for window, members in groupby(batches, key=attrgetter("window")):
                pipeline.begin(window)
                for batch in members:
                    pipeline.submit(batch)
                pipeline.end()
            pipeline.finish()
    finally:
        pipeline.close()
        torch.set_num_threads(threads)  # the share changed it for new threads


@dataclass(eq=False)
class _BufferedWindow:
    """A buffer, and the window that it holds until that is safely on disk."""

    buffer: WindowBuffer
    window: int = -1
    writing: Future[None] | None = None


class _Pipeline:
    """Threads that compute batches, and a thread that writes each window once it is computed."""

    def __init__(
        self,
        prepared: RunPlan,
        model: LoadedModel,
        writer: CubeWriter,
        meter: Meter,
        accumulator: MomentAccumulator | None,
        share: Share,
        *,
        n_buffers: int,
    ) -> None:
        self._prepared, self._model, self._writer, self._meter = prepared, model, writer, meter
        self._accumulator = accumulator
        self._several = share.batches > 1
        self._computed = 0
        self._most = share.batches + 1  # one more waits, so that no thread is idle
        transfer, self._dtypes = Transfer(), Dtypes()
        self._runner = BatchRunner(prepared, model, transfer, n_threads=share.batches)
        pinned = model.device.type == "cuda"
        self._buffered = deque(
            _BufferedWindow(
                WindowBuffer(
                    prepared.plan,
                    prepared.size.variables,
                    prepared.rules,
                    transfer,
                    pinned=pinned,
                    dtypes=self._dtypes,
                )
            )
            for _ in range(n_buffers)
        )
        self._workers = ThreadPoolExecutor(share.batches, "actkit-compute", initializer=share.take)
        self._pool = ThreadPoolExecutor(1, "actkit-write")
        # in order of submission: batches, and after the last batch of each window the window
        self._under_way: deque[tuple[Batch, Future[None]] | _BufferedWindow] = deque()

    def begin(self, window: int) -> None:
        """Start the next window, as soon as a buffer is free."""
        buffered = self._buffered[0]
        while buffered in self._under_way:
            self._step()
        if buffered.writing is not None:
            buffered.writing.result()
        buffered.window, buffered.writing = window, None
        plan = self._prepared.plan
        samples = plan.samples_of(window)
        buffered.buffer.begin(plan.order_of(window), plan.stored[samples.start : samples.stop])

    def submit(self, batch: Batch) -> None:
        """Submit a batch of the window, and wait while too many are under way."""
        if self._several and not self._dtypes.closed:
            self._runner.record_dtypes(batch, self._dtypes)
        future = self._workers.submit(self._runner.run, batch, self._buffered[0].buffer)
        self._under_way.append((batch, future))
        while len(self._under_way) > self._most:
            self._step()

    def end(self) -> None:
        """Mark the last batch of the window."""
        self._under_way.append(self._buffered[0])
        self._buffered.rotate()

    def finish(self) -> None:
        """Return once all windows are safely on disk."""
        while self._under_way:
            self._step()
        for buffered in self._buffered:
            if buffered.writing is not None:
                buffered.writing.result()

    def close(self) -> None:
        """End the threads after their current tasks, and drop waiting tasks."""
        self._workers.shutdown(cancel_futures=True)
        self._pool.shutdown()

    def _step(self) -> None:
        """Wait for the oldest batch, or submit a window whose batches are all computed for writing."""
        oldest = self._under_way.popleft()
        if isinstance(oldest, _BufferedWindow):
            oldest.buffer.complete()
            oldest.writing = self._pool.submit(self._write, oldest)
            return
        batch, future = oldest
        future.result()
        self._meter.batch_tokens = self._runner.largest
        self._meter.add(batch.samples, sum(len(prompt.ids) for prompt in batch.prompts))
        self._meter.emit()
        self._computed += 1
        if self._model.device.type == "cpu" and self._computed % _TRIM_EVERY == 0:
            trim_heap()
        for buffered in self._buffered:
            if buffered.writing is not None and buffered.writing.done():
                buffered.writing.result()  # a failed write ends the run now

    def _write(self, buffered: _BufferedWindow) -> None:
        prepared, buffer, window = self._prepared, buffered.buffer, buffered.window
        buffer.wait()
        started = time.monotonic()
        samples = prepared.plan.samples_of(window)
        check_findings(buffer, prepared.rules, samples.start, self._model.overflow_cause)
        described = token_arrays(
            buffer.prompts,
            buffer.kept,
            prepared.plan.shape.token,
            prepared.size.variables,
            prepared.spec.encoder,
        )
        arrays = {**described, **buffer.arrays()}
        self._meter.bytes_written += self._writer.write(window, arrays)
        if self._accumulator is not None:
            self._accumulator.add(window, arrays)
        self._meter.committed += len(samples)
        logger.info("window %d committed in %.2f s", window, time.monotonic() - started)
