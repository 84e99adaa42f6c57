"""A few batches of a run, for real: what they take tells what all of them will take."""

import bisect
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import psutil
import torch

from ..config import MB
from ..estimates import Rates, disk_bytes
from ..planning import Plan
from ..samples import Samples
from ..schema import VARIABLES
from ..store.nameless import NamelessWriter, Written
from .batching import Batcher
from .buffers import WindowBuffer
from .feeding import Batch, batch_prompts, windows
from .models.loading import LoadedModel, load_model
from .preparing import Prepared
from .prompts.encoding import Prompt
from .sharing import share_cores
from .sizing import size_up
from .token_arrays import token_arrays
from .transfer import Transfer, allocate

SECONDS = 10.0  # for batches, once the model is loaded
_FEWEST, _MOST = 3, 32  # batches that count
_HEAPS = 50 * MB  # what threads that the trial lacks keep in heaps of their own
_CREATING = 3  # a new cube has so many times the files of a window
_CROSSING = 2**26  # bytes that are sent to the host, to see how long that takes


def try_out(prepared: Prepared, threads: int) -> Prepared:
    """Load the model, run a few batches, and say better what the whole run will take.

    Parameters
    ----------
    prepared
        The run.
    threads
        How many threads compress.

    Returns
    -------
    Prepared
        The same run, with ``rates`` and an ``estimate`` by them.

    Raises
    ------
    ModelError, OutOfMemoryError, StorageError
        As the run itself would.

    Notes
    -----
    What the batches give is compressed and written, but to files without a name on the disk of the run:
    nothing of it is left, however the trial ends.
    """
    with _Peak() as peak:
        started = time.perf_counter()
        model = load_model(prepared.checkpoint, prepared.architecture, prepared.config)
        loading, held = time.perf_counter() - started, peak.restart()
        share = share_cores(prepared.config)
        held_by = {weights.device for weights in model.model.parameters()}
        devices = [device for device in held_by if device.type == "cuda"]
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        naming = closing(NamelessWriter(prepared.disk_folder, prepared.plan, threads=threads))
        with share.taken(), naming as writer:
            trial = _Trial(prepared, model, writer, devices)
            summed = _sum_up(prepared, trial.run())
        one = max(peak.restart() - trial.buffer_bytes - held, 0)  # what a batch takes on its way
        host = max(held + share.batches * one, held - prepared.plan.held_bytes) + _HEAPS
    rates = replace(
        summed,
        starting=prepared.checking + loading + trial.warming + _CREATING * summed.committing,
        reading=prepared.checking / prepared.plan.shape.sample * (1 - trial.remembered),
        crossing=_seconds_a_byte(devices[0]) if devices else 0.0,
        at_once=share.batches,
        shares_cores=not devices,
        host=host,
        device=sum(map(torch.cuda.max_memory_allocated, devices)) if devices else None,
    )
    sized = size_up(prepared, batch_tokens=prepared.batch_tokens, rates=rates)
    return replace(prepared, **vars(sized), rates=rates)


class _Peak:
    """Watches how much memory the process holds."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="actkit-memory", daemon=True)
        self._most = 0

    def __enter__(self) -> "_Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def restart(self) -> int:
        """Return the most bytes that were held since the last time."""
        most, self._most = max(self._most, self._process.memory_info().rss), 0
        return most

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)


@dataclass(frozen=True)
class _Tried:
    """What one batch took, as a window of its own."""

    samples: np.ndarray
    computing: float
    describing: float
    written: Written


class _Trial:
    """Runs batches of a plan, one after the other, through one buffer."""

    def __init__(
        self, prepared: Prepared, model: LoadedModel, writer: NamelessWriter, devices: Sequence[torch.device]
    ) -> None:
        self._prepared, self._writer, self._devices = prepared, writer, devices
        plan, measure = prepared.plan, prepared.measure

        def is_forgotten(window: int) -> bool:
            return measure.prompts([plan.samples_of(window)[-1]]) is None

        # Short texts are remembered as they were tokenized, from the first on, while there is room; where
        # not even those of the first window are, it is read again.
        known = bisect.bisect_left(range(plan.n_windows), True, key=is_forgotten)
        self._rows: Samples | None = None if known else next(windows(prepared, [0]))[1]
        self._within = plan.samples_of(max(known, 1) - 1).stop
        self.remembered = self._within / plan.shape.sample if known else 0.0
        self.warming = 0.0  # seconds of the first pass, which is slow for the run too
        batches = plan.batches[: self._within]
        most = np.bincount(batches, weights=plan.stored[: self._within]).max()
        count = int(np.bincount(batches).max())
        room = self._alone(np.zeros(count, dtype=np.int64))
        self._room = replace(prepared, plan=replace(room, stored=np.full(count, -(-int(most) // count))))
        transfer = Transfer()
        self._buffer = WindowBuffer(
            self._room.plan,
            prepared.variables,
            prepared.rules,
            transfer,
            pinned=model.device.type == "cuda",
        )
        self._batcher = Batcher(prepared, model, transfer)

    def run(self) -> list[_Tried]:
        """Try a prompt alone, then the largest batch, then others while there is time."""
        deadline = time.perf_counter() + SECONDS
        chosen = self._choose()
        largest = next(chosen)
        self.warming = self._try(largest[:1]).computing
        self._try(largest)
        tried: list[_Tried] = []
        for samples in chosen:
            tried.append(self._try(samples))
            if len(tried) >= _FEWEST and time.perf_counter() > deadline:
                break
        return tried

    @property
    def buffer_bytes(self) -> int:
        """Memory that the buffer takes."""
        plan, prepared = self._room.plan, self._prepared
        return int(plan.stored.sum()) * prepared.token_bytes + plan.shape.sample * prepared.sample_bytes

    def _choose(self) -> Iterator[np.ndarray]:
        """Yield the samples of the largest batch, then of some that stand for all."""
        batches = self._prepared.plan.batches[: self._within]
        positions = self._prepared.plan.batch_positions[: int(batches.max()) + 1]
        ends = np.cumsum(positions)
        yield np.flatnonzero(batches == positions.argmax())
        for turn in range(1, min(_MOST, max(_FEWEST, len(positions) // 2)) + 1):
            # wherever this ends, they lie evenly between the first position that is computed and the last
            place = sum(int(bit) / 2 ** (at + 1) for at, bit in enumerate(reversed(f"{turn:b}")))
            yield np.flatnonzero(batches == np.searchsorted(ends, place * ends[-1], side="right"))

    def _alone(self, samples: np.ndarray) -> Plan:
        """Return a plan in which samples are one batch in one window."""
        plan, count = self._prepared.plan, len(samples)
        return replace(
            plan,
            shape=replace(plan.shape, sample=count),
            lengths=plan.lengths[samples],
            stored=plan.stored[samples],
            window=count,
            batches=np.zeros(count, dtype=np.int32),
            vision=plan.vision and replace(plan.vision, sample=count),
        )

    def _prompts(self, samples: np.ndarray) -> list[Prompt]:
        known = self._prepared.measure.prompts(samples.tolist())
        if known is not None:
            return known
        assert self._rows is not None
        return batch_prompts(self._prepared, self._rows, 0, samples)

    def _try(self, samples: np.ndarray) -> _Tried:
        """Compute and write one batch."""
        prompts = self._prompts(samples)
        count, buffer, room = len(samples), self._buffer, self._room
        started = time.perf_counter()
        buffer.begin(np.arange(count), self._prepared.plan.stored[samples])
        self._batcher.run(Batch(0, samples, np.arange(count), prompts), buffer)
        for device in self._devices:  # what is still on its way to the host runs beside the next batch
            torch.cuda.current_stream(device).synchronize()
        computed = time.perf_counter()
        buffer.complete()
        buffer.wait()
        arrived = time.perf_counter()
        described = token_arrays(
            buffer.prompts, buffer.kept, room.plan.shape.token, room.variables, room.encoder
        )
        values = {**described, **buffer.arrays()}
        ready = time.perf_counter()
        return _Tried(samples, computed - started, ready - arrived, self._writer.write(values, count))


def _sum_up(prepared: Prepared, tried: Sequence[_Tried]) -> Rates:
    """Return the rates of what was tried, as far as that tells them."""
    plan = prepared.plan
    samples = np.concatenate([one.samples for one in tried])
    written, expected = Counter[str](), Counter[str]()
    for one in tried:
        written.update(one.written.sizes)
    whole = replace(
        plan,
        shape=replace(plan.shape, sample=len(samples)),
        stored=plan.stored[samples],
        vision=plan.vision and replace(plan.vision, sample=len(samples)),
    )
    numbers = [VARIABLES[name] for name in written if VARIABLES[name].dtype != "str"]
    for variable in numbers:
        expected[variable.name] = disk_bytes(
            whole, variable, layers=prepared.kept, value_bytes=prepared.value_bytes
        )
    # what is kept token by token
    large = max(sum(written[variable.name] for variable in numbers if variable.is_full), 1)
    seconds = sum(one.written.seconds for one in tried)
    computed = sum(int(plan.batch_positions[plan.batches[one.samples[0]]]) for one in tried)
    return Rates(
        starting=0.0,
        reading=0.0,
        computing=sum(one.computing for one in tried) / computed,
        at_once=1,
        depth=prepared.rules.axis[-1] + 1,
        crossing=0.0,
        writing=seconds / large,
        describing=sum(one.describing for one in tried) / len(samples),
        committing=sum(one.written.beside for one in tried) / len(tried),
        busy=sum(one.written.busy for one in tried) / seconds if seconds else 0.0,
        shares_cores=True,
        compressed={name: written[name] / size for name, size in expected.items() if size},
        strings=sum(written[name] for name in written if VARIABLES[name].dtype == "str") / len(samples),
    )


def _seconds_a_byte(device: torch.device) -> float:
    """Return how long a byte takes from a CUDA device into pinned memory."""
    values = torch.zeros(_CROSSING, dtype=torch.uint8, device=device)
    target = allocate(values.shape, values.dtype, pinned=True)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(2):  # the first one is slow
        begin.record(torch.cuda.current_stream(device))
        target.copy_(values, non_blocking=True)
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / _CROSSING
