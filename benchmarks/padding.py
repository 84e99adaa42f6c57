"""Benchmark of padding: positions computed per real token, with batches by length against file order.

python -m benchmarks.padding [--limit 6000]

The numbers come from plans alone; no model is run. Batch size 1 gives 1.0.
"""

import tempfile
from pathlib import Path

import numpy as np

from actkit import plan

from .subjects import SENTENCES, model_folder
from .timing import parser, print_table

WINDOWS = (32, 128, 512, 2048)
BATCHES = (8, 32, 64)


def padded(lengths: np.ndarray, batches: list[np.ndarray]) -> float:
    """Return the number of computed positions per real token."""
    assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(len(lengths)))
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches) / int(lengths.sum())


def in_file_order(lengths: np.ndarray, tokens: int, prompts: int) -> list[np.ndarray]:
    """Divide prompts in file order into batches with limits on positions and prompts."""
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
        # one layer of little data, so that only `window_samples` determines the windows
        planned = plan(
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
        batches = [batch for index in range(planned.n_windows) for batch in planned.batches_of(index)]
        fits = f" ({planned.window} fit)" if planned.window < min(window, limit) else ""
        shown[f"windows of {window}"] = f"{padded(planned.lengths, batches):.3f}{fits}"
    # `auto` limits positions and prompts, as its largest batches show
    tokens = max(len(batch) * int(planned.lengths[batch].max()) for batch in batches)
    if batch_size != "auto":
        tokens = int(batch_size) * int(planned.lengths.max())
    most = max(len(batch) for batch in batches)
    shown["file order"] = f"{padded(planned.lengths, in_file_order(planned.lengths, tokens, most)):.3f}"
    return shown


def main() -> None:
    limit = parser(__doc__, limit=6000).parse_args().limit
    print(f"\n### Padding: positions computed per real token, {limit:,} sentences")
    with tempfile.TemporaryDirectory() as temporary:
        models = {name: model_folder(name, Path(temporary)) for name in ("demo", "minilm")}
        print_table([row(models[name], name, size, limit) for name in models for size in (*BATCHES, "auto")])


if __name__ == "__main__":
    main()
