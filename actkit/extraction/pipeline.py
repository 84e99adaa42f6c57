"""Windows on their way: one is read, one is computed, and one is compressed and written, at once."""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import attrgetter

from ..store.writing import CubeWriter
from .batching import Batcher
from .buffers import WindowBuffer
from .feeding import fed
from .findings import check_findings
from .logs import logger
from .models.loading import LoadedModel
from .preparing import Prepared
from .progress import Meter
from .token_arrays import token_arrays
from .transfer import Transfer


def compute(
    prepared: Prepared, model: LoadedModel, writer: CubeWriter, todo: Sequence[int], meter: Meter
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
    """
    transfer = Transfer()
    pinned = model.device.type == "cuda"
    buffers = [
        WindowBuffer(prepared.plan, prepared.variables, prepared.rules, transfer, pinned=pinned)
        for _ in range(min(2, len(todo)))
    ]
    writing: list[Future[None] | None] = [None] * len(buffers)
    batcher = Batcher(prepared, model, transfer)

    def write(window: int, buffer: WindowBuffer) -> None:
        buffer.wait()
        started = time.monotonic()
        samples = prepared.plan.samples_of(window)
        check_findings(buffer, prepared.rules, samples.start, model.overflow_cause)
        described = token_arrays(
            buffer.prompts, buffer.kept, prepared.plan.shape.token, prepared.variables, prepared.encoder
        )
        meter.bytes_written += writer.write(window, {**described, **buffer.arrays()})
        meter.committed += len(samples)
        logger.info("window %d committed in %.2f s", window, time.monotonic() - started)

    with ThreadPoolExecutor(1, thread_name_prefix="actkit-write") as pool, fed(prepared, todo) as batches:
        for turn, (window, own) in enumerate(groupby(batches, key=attrgetter("window"))):
            slot = turn % len(buffers)
            if (before := writing[slot]) is not None:
                before.result()  # its buffer is free again
            buffers[slot].begin(len(prepared.plan.samples_of(window)))
            for batch in own:
                batcher.run(batch, buffers[slot])
                meter.batch_tokens = batcher.largest
                meter.add(batch.samples, sum(len(prompt.ids) for prompt in batch.prompts))
                meter.tell()
                for future in writing:
                    if future is not None and future.done():
                        future.result()  # a disk that refuses ends the run now
            buffers[slot].complete()
            writing[slot] = pool.submit(write, window, buffers[slot])
        for future in writing:
            if future is not None:
                future.result()
