"""Rows to the prompts of a batch, a second time: as they were when they were checked, or not at all."""

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import ChangedError, Fault
from ..images import read_image
from ..samples import Samples, portions
from .preparing import Prepared
from .prompts.encoding import Prompt


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
    prompts = [] if changed else prepared.encoder.encode([rows.text[place] for place in places], images)
    lengths = prepared.plan.lengths
    kept = []
    for sample, prompt in zip(batch.tolist(), prompts, strict=not changed):
        if isinstance(prompt, str) or len(prompt.ids) != lengths[sample]:
            changed[sample] = prompt if isinstance(prompt, str) else "has another number of tokens"
        else:
            kept.append(prompt)
    if changed:
        faults = [Fault(f"sample {sample}", what) for sample, what in changed.items()]
        raise ChangedError(faults, "the data changed while they were read; committed windows are safe")
    return kept
