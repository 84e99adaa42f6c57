"""Rows to the prompts of a batch, a second time: as they were when they were checked, or not at all."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..errors import ChangedError, Fault
from ..images import read_image
from ..samples import Samples, portions
from .preparing import Prepared
from .prompts.encoding import Prompt


@dataclass(frozen=True)
class Batch:
    """Samples that go through the model at once.

    Parameters
    ----------
    window
        Theirs.
    samples
        Their indices in the run.
    rows
        Their positions in the window.
    prompts
        What the model reads.
    """

    window: int
    samples: np.ndarray
    rows: np.ndarray
    prompts: list[Prompt]

    @property
    def padded_tokens(self) -> int:
        """Positions that the model computes, pads included."""
        return len(self.prompts) * max(len(prompt.ids) for prompt in self.prompts)

    def halves(self) -> list["Batch"]:
        """Return two batches of half the samples."""
        middle = len(self.prompts) // 2
        parts = slice(0, middle), slice(middle, None)
        return [Batch(self.window, self.samples[part], self.rows[part], self.prompts[part]) for part in parts]


@contextmanager
def fed(prepared: Prepared, todo: Sequence[int]) -> Iterator[Iterator[Batch]]:
    """Give the batches of windows, in order; each is read and encoded while the one before is computed."""
    end = object()
    made = batches(prepared, todo)
    with ThreadPoolExecutor(1, thread_name_prefix="actkit-read") as pool:

        def ahead() -> Iterator[Batch]:
            coming = pool.submit(next, made, end)
            while isinstance(batch := coming.result(), Batch):
                coming = pool.submit(next, made, end)
                yield batch

        yield ahead()


def batches(prepared: Prepared, todo: Sequence[int]) -> Iterator[Batch]:
    """Yield the batches of windows, in order.

    Parameters
    ----------
    prepared
        The run.
    todo
        The windows.
    """
    for window, rows in windows(prepared, todo):
        first = prepared.plan.samples_of(window).start
        for samples in prepared.plan.batches_of(window):
            prompts = batch_prompts(prepared, rows, first, samples)
            yield Batch(window, samples, samples - first, prompts)


def windows(prepared: Prepared, todo: Sequence[int]) -> Iterator[tuple[int, Samples]]:
    """Yield windows with their rows.

    Parameters
    ----------
    prepared
        The run.
    todo
        Windows, in order; the rows of others are passed over.
    """
    wanted, size = set(todo), prepared.plan.window
    start = min(todo) * size
    read = portions(prepared.source, prepared.scan, prepared.config, start=start, size=size)
    for window, portion in enumerate(read, start=min(todo)):
        if window in wanted:
            yield window, portion
            wanted.discard(window)
        if not wanted:
            return


def batch_prompts(prepared: Prepared, rows: Samples, first: int, batch: np.ndarray) -> list[Prompt]:
    """Return the prompts of a batch.

    Parameters
    ----------
    prepared
        The run.
    rows
        The rows of the batch's window.
    first
        The window's first sample.
    batch
        Indices of the batch's samples in the run.

    Raises
    ------
    ChangedError
        Where a row is no longer what it was when it was checked.
    """
    if (prompts := prepared.measure.prompts(batch.tolist())) is not None:
        return prompts  # of rows that are what they were: their hashes were compared
    places = (batch - first).tolist()
    images = None
    changed: dict[int, str] = {}
    if rows.images is not None:
        images = []
        for place in places:
            image, fault, digest = read_image(rows.images[place], prepared.config.image_folder)
            if image is not None and prepared.measure.knows_image(first + place, digest):
                images.append(image)
            else:
                changed[first + place] = fault or "is another image"
    encoded = [] if changed else prepared.encoder.encode([rows.text[place] for place in places], images)
    lengths = prepared.plan.lengths
    kept = []
    for sample, prompt in zip(batch.tolist(), encoded, strict=not changed):
        if isinstance(prompt, str) or len(prompt.ids) != lengths[sample]:
            changed[sample] = prompt if isinstance(prompt, str) else "has another number of tokens"
        else:
            kept.append(prompt)
    if changed:
        faults = [Fault(f"sample {sample}", what) for sample, what in changed.items()]
        raise ChangedError(faults, "the data changed while they were read; committed windows are safe")
    return kept
