"""Loader of prompts: reads and encodes rows again, and refuses rows that changed since the checks."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ...errors import ChangedError, Fault
from ...images import read_image
from ...samples import Samples, portions
from ..preflight.preparation import RunPlan
from ..prompts.encoder import Prompt


@dataclass(frozen=True)
class Batch:
    """Samples that pass through the model together.

    Parameters
    ----------
    window
        The window of the samples.
    samples
        Indices of the samples in the run.
    rows
        Positions of the samples in the window.
    prompts
        Encoded prompts of the samples.
    """

    window: int
    samples: np.ndarray
    rows: np.ndarray
    prompts: list[Prompt]

    @property
    def padded_tokens(self) -> int:
        """Number of positions that the model computes, padding included."""
        return len(self.prompts) * max(len(prompt.ids) for prompt in self.prompts)

    def halves(self) -> list["Batch"]:
        """Return two batches with half of the samples each."""
        middle = len(self.prompts) // 2
        parts = slice(0, middle), slice(middle, None)
        return [Batch(self.window, self.samples[part], self.rows[part], self.prompts[part]) for part in parts]


Rows = Iterable[tuple[int, Samples]]  # windows, and the rows of each


@contextmanager
def prefetched(prepared: RunPlan, todo: Sequence[int], rows: Rows | None = None) -> Iterator[Iterator[Batch]]:
    """Iterate over the batches of windows; each is read and encoded while the previous one is computed."""
    end = object()
    encoded = batches(prepared, todo, rows)
    with ThreadPoolExecutor(1, thread_name_prefix="actkit-read") as pool:

        def ahead() -> Iterator[Batch]:
            upcoming = pool.submit(next, encoded, end)
            while isinstance(batch := upcoming.result(), Batch):
                upcoming = pool.submit(next, encoded, end)
                yield batch

        yield ahead()


def batches(prepared: RunPlan, todo: Sequence[int], rows: Rows | None = None) -> Iterator[Batch]:
    """Yield the batches of windows, in order.

    Parameters
    ----------
    prepared
        The run.
    todo
        The windows.
    rows
        The rows of the windows; by default, they are read from the data.
    """
    for window, samples_of_window in windows(prepared, todo) if rows is None else rows:
        first = prepared.plan.samples_of(window).start
        for samples in prepared.plan.batches_of(window):
            prompts = batch_prompts(prepared, samples_of_window, first, samples)
            yield Batch(window, samples, samples - first, prompts)


def windows(prepared: RunPlan, todo: Sequence[int]) -> Iterator[tuple[int, Samples]]:
    """Yield windows and their rows.

    Parameters
    ----------
    prepared
        The run.
    todo
        Windows in order; rows of other windows are skipped.
    """
    first, size = min(todo), prepared.plan.window
    rows = portions(
        prepared.spec.source,
        prepared.scan,
        prepared.config,
        start=first * size,
        stop=(max(todo) + 1) * size,
        size=size,
        chosen={window - first for window in todo},
    )
    yield from zip(todo, rows, strict=True)


def batch_prompts(prepared: RunPlan, rows: Samples, first: int, batch: np.ndarray) -> list[Prompt]:
    """Return the prompts of a batch.

    Parameters
    ----------
    prepared
        The run.
    rows
        Rows of the window of the batch.
    first
        First sample of the window.
    batch
        Indices of the samples of the batch in the run.

    Raises
    ------
    ChangedError
        If a row changed since it was checked.
    """
    if (prompts := prepared.spec.measure.prompts(batch.tolist())) is not None:
        return prompts  # the hashes of their rows have been compared
    positions = (batch - first).tolist()
    images = None
    changed: dict[int, str] = {}
    if rows.images is not None:
        images = []
        for position in positions:
            image, fault, digest = read_image(rows.images[position], prepared.config.image_folder)
            if image is not None and prepared.spec.measure.knows_image(first + position, digest):
                images.append(image)
            else:
                changed[first + position] = fault or "is another image"
    encoded = (
        []
        if changed
        else prepared.spec.encoder.encode([rows.prompts[position] for position in positions], images)
    )
    lengths = prepared.plan.lengths
    unchanged = []
    for sample, prompt in zip(batch.tolist(), encoded, strict=not changed):
        if isinstance(prompt, str) or len(prompt.ids) != lengths[sample]:
            changed[sample] = prompt if isinstance(prompt, str) else "has another number of tokens"
        else:
            unchanged.append(prompt)
    if changed:
        faults = [Fault(f"sample {sample}", change) for sample, change in changed.items()]
        raise ChangedError(faults, "the data changed while they were read; committed windows are safe")
    return unchanged
