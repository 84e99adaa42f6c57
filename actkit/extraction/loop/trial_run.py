"""Trial run: a few batches of a run, measured to predict the cost of all of them."""

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

from ...batch_plan import Plan
from ...estimates import Rates, disk_bytes
from ...regular_files import MB
from ...samples import Samples
from ...schema import VARIABLES
from ...store.scratch_writer import ScratchWriter, WriteCost
from ..capture.device_copy import Transfer, allocate
from ..capture.token_metadata import token_arrays
from ..capture.window_buffer import WindowBuffer
from ..models.devices import share_cores
from ..models.loader import LoadedModel, load_model
from ..preflight.preparation import RunPlan
from ..preflight.run_size import size_run
from ..prompts.encoder import Prompt
from .batch_runner import BatchRunner
from .data_loader import Batch, batch_prompts, windows

SECONDS = 10.0  # for batches, once the model is loaded
_FEWEST, _MOST = 3, 32  # batches that count
_HEAPS = 50 * MB  # heaps of threads that the trial does not have
_CREATING = 3  # files of a new cube, as a multiple of those of a window
_CROSSING = 2**26  # bytes copied to the host to measure the rate


def run_trial(prepared: RunPlan, threads: int) -> RunPlan:
    """Load the model, run a few batches, and refine the estimate of the run.

    Parameters
    ----------
    prepared
        The run.
    threads
        Number of threads that compress.

    Returns
    -------
    RunPlan
        The same run, with ``rates`` and an ``estimate`` based on them.

    Raises
    ------
    ModelError, OutOfMemoryError, StorageError
        As in the run itself.

    Notes
    -----
    Outputs are compressed and written to unnamed files on the disk of the run, of which nothing remains
    however the trial ends.
    """
    with _Peak() as peak:
        started = time.perf_counter()
        model = load_model(prepared.spec.checkpoint, prepared.spec.architecture, prepared.config)
        loading, held = time.perf_counter() - started, peak.restart()
        share = share_cores(prepared.config, quantized=prepared.spec.quantized)
        held_by = {weights.device for weights in model.model.parameters()}
        devices = [device for device in held_by if device.type == "cuda"]
        for device in devices:
            torch.cuda.reset_peak_memory_stats(device)
        scratch_writer = closing(ScratchWriter(prepared.disk_folder, prepared.plan, threads=threads))
        with share.taken(), scratch_writer as writer:
            trial = _Trial(prepared, model, writer, devices)
            measured = _rates(prepared, trial.run())
        batch_bytes = max(peak.restart() - trial.buffer_bytes - held, 0)  # while a batch is computed
        host = max(held + share.batches * batch_bytes, held - prepared.plan.held_bytes) + _HEAPS
    rates = replace(
        measured,
        starting=prepared.checking + loading + trial.warming + _CREATING * measured.committing,
        reading=prepared.checking / prepared.plan.shape.sample * (1 - trial.cached),
        crossing=_seconds_per_byte(devices[0]) if devices else 0.0,
        at_once=share.batches,
        shares_cores=not devices,
        host=host,
        device=sum(map(torch.cuda.max_memory_allocated, devices)) if devices else None,
    )
    size = size_run(prepared.spec, batch_tokens=prepared.size.batch_tokens, rates=rates)
    return replace(prepared, size=size, rates=rates)


class _Peak:
    """Monitor of the peak memory of the process."""

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
        """Return the peak in bytes since the last call."""
        most, self._most = max(self._most, self._process.memory_info().rss), 0
        return most

    def _watch(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._process.memory_info().rss)


@dataclass(frozen=True)
class _Tried:
    """Time and size of one batch, written as a separate window."""

    samples: np.ndarray
    computing: float
    describing: float
    written: WriteCost


class _Trial:
    """Trial of batches of a plan, one after the other, in one buffer."""

    def __init__(
        self, prepared: RunPlan, model: LoadedModel, writer: ScratchWriter, devices: Sequence[torch.device]
    ) -> None:
        self._prepared, self._writer, self._devices = prepared, writer, devices
        plan, measure = prepared.plan, prepared.spec.measure

        def is_uncached(window: int) -> bool:
            return measure.prompts([plan.samples_of(window)[-1]]) is None

        # Tokens of short texts are cached from the first sample on, up to a limit; if not even the first
        # window is cached, it is read again.
        cached = bisect.bisect_left(range(plan.n_windows), True, key=is_uncached)
        self._rows: Samples | None = None if cached else next(windows(prepared, [0]))[1]
        self._within = plan.samples_of(max(cached, 1) - 1).stop
        self.cached = self._within / plan.shape.sample if cached else 0.0
        self.warming = 0.0  # seconds of the first pass, which is slow in the run too
        batches = plan.batches[: self._within]
        most = np.bincount(batches, weights=plan.stored[: self._within]).max()
        count = int(np.bincount(batches).max())
        room = self._alone(np.zeros(count, dtype=np.int64))
        room = replace(room, stored=np.full(count, -(-int(most) // count)))
        self._room = replace(prepared, size=replace(prepared.size, plan=room))
        transfer = Transfer()
        self._buffer = WindowBuffer(
            self._room.plan,
            prepared.size.variables,
            prepared.rules,
            transfer,
            pinned=model.device.type == "cuda",
        )
        self._runner = BatchRunner(prepared, model, transfer)

    def run(self) -> list[_Tried]:
        """Try a single prompt, then the largest batch, then others until time is up."""
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
        """Size of the buffer in bytes."""
        plan, prepared = self._room.plan, self._prepared
        return (
            int(plan.stored.sum()) * prepared.size.token_bytes
            + plan.shape.sample * prepared.size.sample_bytes
        )

    def _choose(self) -> Iterator[np.ndarray]:
        """Yield the samples of the largest batch, then of a representative selection."""
        batches = self._prepared.plan.batches[: self._within]
        positions = self._prepared.plan.batch_positions[: int(batches.max()) + 1]
        ends = np.cumsum(positions)
        yield np.flatnonzero(batches == positions.argmax())
        for number in range(1, min(_MOST, max(_FEWEST, len(positions) // 2)) + 1):
            # van der Corput sequence: evenly spread over all positions, wherever it is cut off
            fraction = sum(int(bit) / 2 ** (place + 1) for place, bit in enumerate(reversed(f"{number:b}")))
            yield np.flatnonzero(batches == np.searchsorted(ends, fraction * ends[-1], side="right"))

    def _alone(self, samples: np.ndarray) -> Plan:
        """Return a plan that holds the given samples as one batch in one window."""
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
        cached = self._prepared.spec.measure.prompts(samples.tolist())
        if cached is not None:
            return cached
        assert self._rows is not None
        return batch_prompts(self._prepared, self._rows, 0, samples)

    def _try(self, samples: np.ndarray) -> _Tried:
        """Compute and write one batch."""
        prompts = self._prompts(samples)
        count, buffer, room = len(samples), self._buffer, self._room
        started = time.perf_counter()
        buffer.begin(np.arange(count), self._prepared.plan.stored[samples])
        self._runner.run(Batch(0, samples, np.arange(count), prompts), buffer)
        for device in self._devices:  # copies to the host overlap with the next batch
            torch.cuda.current_stream(device).synchronize()
        computed = time.perf_counter()
        buffer.complete()
        buffer.wait()
        arrived = time.perf_counter()
        described = token_arrays(
            buffer.prompts, buffer.kept, room.plan.shape.token, room.size.variables, room.spec.encoder
        )
        values = {**described, **buffer.arrays()}
        ready = time.perf_counter()
        return _Tried(samples, computed - started, ready - arrived, self._writer.write(values, count))


def _rates(prepared: RunPlan, tried: Sequence[_Tried]) -> Rates:
    """Return the rates of the batches that were tried; those of other parts of the run are 0."""
    plan = prepared.plan
    samples = np.concatenate([batch.samples for batch in tried])
    written, expected = Counter[str](), Counter[str]()
    for batch in tried:
        written.update(batch.written.sizes)
    whole = replace(
        plan,
        shape=replace(plan.shape, sample=len(samples)),
        stored=plan.stored[samples],
        vision=plan.vision and replace(plan.vision, sample=len(samples)),
    )
    numbers = [VARIABLES[name] for name in written if VARIABLES[name].dtype != "str"]
    for variable in numbers:
        expected[variable.name] = disk_bytes(
            whole, variable, layers=prepared.size.kept, value_bytes=prepared.size.value_bytes
        )
    # variables stored by token
    large = max(sum(written[variable.name] for variable in numbers if variable.is_full), 1)
    seconds = sum(batch.written.seconds for batch in tried)
    computed = sum(int(plan.batch_positions[plan.batches[batch.samples[0]]]) for batch in tried)
    return Rates(
        starting=0.0,
        reading=0.0,
        computing=sum(batch.computing for batch in tried) / computed,
        at_once=1,
        depth=prepared.rules.axis[-1] + 1,
        crossing=0.0,
        writing=seconds / large,
        describing=sum(batch.describing for batch in tried) / len(samples),
        committing=sum(batch.written.other_seconds for batch in tried) / len(tried),
        busy=sum(batch.written.busy for batch in tried) / seconds if seconds else 0.0,
        shares_cores=True,
        compressed={name: written[name] / size for name, size in expected.items() if size},
        strings=sum(written[name] for name in written if VARIABLES[name].dtype == "str") / len(samples),
    )


def _seconds_per_byte(device: torch.device) -> float:
    """Return the seconds that it takes to copy a byte from a CUDA device into pinned memory."""
    values = torch.zeros(_CROSSING, dtype=torch.uint8, device=device)
    target = allocate(values.shape, values.dtype, pinned=True)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(2):  # the first copy is slow
        begin.record(torch.cuda.current_stream(device))
        target.copy_(values, non_blocking=True)
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1000 / _CROSSING
