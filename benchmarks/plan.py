"""Benchmark of `actkit plan`: predicted against actual disk space, host memory and time.

python -m benchmarks.plan [--runs demo,minilm,gemma] [--limit N] [--rounds 3]

Plans and extractions alternate, each in a separate process with a new folder. Times are those of the call,
without the start of Python and the import of actkit. Memory is the peak of the extraction process. The table
shows medians; the last column shows the deviation of single rounds.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import actkit

from .subjects import SENTENCES, TITLES, model_folder
from .timing import bytes_below, in_child, parser, print_table

# model, number of samples, and options of what to keep
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "demo": ("demo", 2000, {}),
    "minilm": ("minilm", 1500, {}),
    "gemma": ("gemma", 500, {"keep_tokens": "mean"}),
}
ALLOWED = {"disk, MB": 0.15, "host memory, MB": 0.25, "seconds": 0.30}


def predict(options: dict[str, Any]) -> tuple[float, float, float]:
    """Return the bytes on disk, bytes in memory, and seconds of a plan."""
    estimates = actkit.plan(**options).estimate
    assert estimates.time is not None, "there was no trial: too little memory is available"
    return estimates.disk, estimates.host, estimates.time.total


def extract(options: dict[str, Any]) -> float:
    from actkit.extraction import run  # noqa: F401 - not timed

    started = time.perf_counter()
    actkit.extract(**options, listeners=[])
    return time.perf_counter() - started


def compare(options: dict[str, Any], rounds: int) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Return the predicted and the actual values of each round."""
    estimates = []
    for _ in range(rounds):
        predicted = in_child(predict, options).value
        run = in_child(extract, options)
        out = Path(options["out"])
        estimates.append((predicted, (bytes_below(out / "cube.zarr"), run.peak, run.value)))
        shutil.rmtree(out)
    return estimates


def rows(title: str, estimates: list[tuple[Sequence[float], Sequence[float]]]) -> list[dict[str, str]]:
    table = []
    for place, (name, allowed) in enumerate(ALLOWED.items()):
        scale, digits = (1, 1) if name == "seconds" else (1e6, 0)
        predicted, actual = ([pair[side][place] for pair in estimates] for side in (0, 1))
        ratios = [one / other for one, other in zip(predicted, actual, strict=True)]
        ratio = statistics.median(predicted) / statistics.median(actual)
        table.append(
            {
                "run": title,
                "": name,
                "predicted": f"{statistics.median(predicted) / scale:,.{digits}f}",
                "happened": f"{statistics.median(actual) / scale:,.{digits}f}",
                "ratio": f"{ratio:.2f}",
                "target": f"{1 - allowed:.2f} to {1 + allowed:.2f}",
                "rounds": " ".join(f"{one:.2f}" for one in ratios),
            }
        )
    return table


def main() -> None:
    options = parser(__doc__, limit=None, rounds=3)
    options.add_argument("--runs", default=",".join(RUNS))
    chosen = options.parse_args()
    table = []
    for name in chosen.runs.split(","):
        model, limit, kept = RUNS[name]
        limit = chosen.limit or limit
        with tempfile.TemporaryDirectory() as temporary:
            asked = {
                "model": str(model_folder(model, Path(temporary))),
                "data": str(SENTENCES),
                "limit": limit,
                "out": str(Path(temporary, "run")),
                **kept,
            }
            told = "".join(f", {option}={value}" for option, value in kept.items())
            table += rows(f"{TITLES[model]}, {limit:,} sentences{told}", compare(asked, chosen.rounds))
    print_table(table)


if __name__ == "__main__":
    main()
