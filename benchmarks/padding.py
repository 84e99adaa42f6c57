"""Positions computed for each real token: batches by length within windows, against file order.

python -m benchmarks.padding [--limit 6000]

From plans alone; nothing is run. Batch 1 is 1.0.
"""

import tempfile
from pathlib import Path

import numpy as np

from actkit import plan

from .subjects import MODELS, SENTENCES, model_folder
from .timing import parser, print_table

WINDOWS = (32, 128, 512, 2048)
BATCHES = (8, 32, 64)


def padded(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Return computed positions per real token."""
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches) / int(lengths.sum())


def in_file_order(lengths: np.ndarray, tokens: int, prompts: int) -> list[np.ndarray]:
    """Cut prompts as they come into batches of at most so many positions, and so many prompts."""
    batches: list[list[int]] = [[]]
    longest = 0
    for sample, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if batches[-1] and (len(batches[-1]) == prompts or longest * (len(batches[-1]) + 1) > tokens):
            batches.append([])
            longest = length
        batches[-1].append(sample)
    return [np.array(batch) for batch in batches]


def row(model: Path, name: str, batch_size: int | str, limit: int) -> dict[str, str | int]:
    shown: dict[str, str | int] = {"model": name, "batch size": batch_size, "file order": ""}
    for window in WINDOWS:
        # one layer, of which little is kept: nothing but `window_samples` decides the windows
        found = plan(
            model=str(model),
            data=str(SENTENCES),
            out=str(model / "out"),
            layers="0",
            save="norm",
            limit=limit,
            batch_size=batch_size,
            trial=False,
            window_samples=window,
        ).plan
        batches = [batch for index in range(found.n_windows) for batch in found.batches_of(index)]
        fits = f" ({found.window} fit)" if found.window < min(window, limit) else ""
        shown[f"windows of {window}"] = f"{padded(found.lengths, batches):.3f}{fits}"
    # `auto` bounds positions and prompts, as its largest batches show
    tokens = max(len(batch) * int(found.lengths[batch].max()) for batch in batches)
    if batch_size != "auto":
        tokens = int(batch_size) * int(found.lengths.max())
    most = max(len(batch) for batch in batches)
    shown["file order"] = f"{padded(found.lengths, in_file_order(found.lengths, tokens, most)):.3f}"
    return shown


def main() -> None:
    limit = parser(__doc__, limit=6000).parse_args().limit
    print(f"\n### Padding: positions computed per real token, {limit:,} sentences")
    with tempfile.TemporaryDirectory() as temporary:
        models = {name: model_folder(name, Path(temporary)) for name in MODELS if name != "gemma"}
        print_table([row(models[name], name, size, limit) for name in models for size in (*BATCHES, "auto")])


if __name__ == "__main__":
    main()
