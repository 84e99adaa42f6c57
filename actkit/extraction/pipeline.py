"""Windows on their way: one is read, one is computed, and one is compressed and written, at once."""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import torch

from ..store.writing import CubeWriter
from .batching import Batcher
from .buffers import Dtypes, WindowBuffer
from .feeding import Batch, fed
from .findings import check_findings
from .heap import trim_heap
from .logs import logger
from .models.loading import LoadedModel
from .preparing import Prepared
from .progress import Meter
from .sharing import Share, share_cores
from .token_arrays import token_arrays
from .transfer import Transfer
from .whitening import Gathering

_TRIM_EVERY = 8  # batches


def compute(
    prepared: Prepared,
    model: LoadedModel,
    writer: CubeWriter,
    todo: Sequence[int],
    meter: Meter,
    gathering: Gathering | None = None,
) -> None:
    """Compute and commit windows.

    Parameters
    ----------
    prepared
        The run.
    model
        Its model.
    writer
        Of its cube.
    todo
        The windows that are not committed yet.
    meter
        Is told of every batch and window.
    gathering
        Takes in every window that is written.
    """
    share, threads = share_cores(prepared.config), torch.get_num_threads()
    pipeline = _Pipeline(prepared, model, writer, meter, gathering, share, n_buffers=min(2, len(todo)))
    try:
        with fed(prepared, todo) as batches:
            for window, own in groupby(batches, key=attrgetter("window")):
                pipeline.begin(window)
                for batch in own:
                    pipeline.submit(batch)
                pipeline.end()
            pipeline.finish()
    finally:
        pipeline.close()
        torch.set_num_threads(threads)  # those of threads to come were changed


@dataclass(eq=False)
class _Slot:
    """A buffer and the window that it holds, until that is safely on disk."""

    buffer: WindowBuffer
    window: int = -1
    writing: Future[None] | None = None


class _Pipeline:
    """Batches in the hands of several threads, and windows that are written as soon as they are computed."""

    def __init__(
        self,
        prepared: Prepared,
        model: LoadedModel,
        writer: CubeWriter,
        meter: Meter,
        gathering: Gathering | None,
        share: Share,
        *,
        n_buffers: int,
    ) -> None:
        self._prepared, self._model, self._writer, self._meter = prepared, model, writer, meter
        self._gathering = gathering
        self._several = share.batches > 1
        self._computed = 0
        self._most = share.batches + 1  # one more waits, so that no thread does
        transfer, self._dtypes = Transfer(), Dtypes()
        self._batcher = Batcher(prepared, model, transfer, at_once=share.batches)
        pinned = model.device.type == "cuda"
        self._slots = deque(
            _Slot(
                WindowBuffer(
                    prepared.plan,
                    prepared.variables,
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
        # in the order in which they were submitted: batches, and behind the last of each window its slot
        self._under_way: deque[tuple[Batch, Future[None]] | _Slot] = deque()

    def begin(self, window: int) -> None:
        """Take the next window, as soon as there is room for it."""
        slot = self._slots[0]
        while slot in self._under_way:
            self._step()
        if slot.writing is not None:
            slot.writing.result()
        slot.window, slot.writing = window, None
        plan = self._prepared.plan
        samples = plan.samples_of(window)
        slot.buffer.begin(plan.order_of(window), plan.stored[samples.start : samples.stop])

    def submit(self, batch: Batch) -> None:
        """Have a batch of that window computed, while there are not too many."""
        if self._several and not self._dtypes.closed:
            self._batcher.learn(batch, self._dtypes)
        future = self._workers.submit(self._batcher.run, batch, self._slots[0].buffer)
        self._under_way.append((batch, future))
        while len(self._under_way) > self._most:
            self._step()

    def end(self) -> None:
        """Note that no more batches of that window come."""
        self._under_way.append(self._slots[0])
        self._slots.rotate()

    def finish(self) -> None:
        """Return once all windows are safely on disk."""
        while self._under_way:
            self._step()
        for slot in self._slots:
            if slot.writing is not None:
                slot.writing.result()

    def close(self) -> None:
        """End the threads: what they are at is done, what waits is dropped."""
        self._workers.shutdown(cancel_futures=True)
        self._pool.shutdown()

    def _step(self) -> None:
        """Wait for the oldest batch; or let the window be written whose batches are all computed."""
        oldest = self._under_way.popleft()
        if isinstance(oldest, _Slot):
            oldest.buffer.complete()
            oldest.writing = self._pool.submit(self._write, oldest)
            return
        batch, future = oldest
        future.result()
        self._meter.batch_tokens = self._batcher.largest
        self._meter.add(batch.samples, sum(len(prompt.ids) for prompt in batch.prompts))
        self._meter.tell()
        self._computed += 1
        if self._model.device.type == "cpu" and self._computed % _TRIM_EVERY == 0:
            trim_heap()
        for slot in self._slots:
            if slot.writing is not None and slot.writing.done():
                slot.writing.result()  # a disk that refuses ends the run now

    def _write(self, slot: _Slot) -> None:
        prepared, buffer, window = self._prepared, slot.buffer, slot.window
        buffer.wait()
        started = time.monotonic()
        samples = prepared.plan.samples_of(window)
        check_findings(buffer, prepared.rules, samples.start, self._model.overflow_cause)
        described = token_arrays(
            buffer.prompts, buffer.kept, prepared.plan.shape.token, prepared.variables, prepared.encoder
        )
        arrays = {**described, **buffer.arrays()}
        self._meter.bytes_written += self._writer.write(window, arrays)
        if self._gathering is not None:
            self._gathering.add(window, arrays)
        self._meter.committed += len(samples)
        logger.info("window %d committed in %.2f s", window, time.monotonic() - started)
