"""What `actkit plan` predicts of disk, host memory and time, and what then happens.

python -m benchmarks.plan [--runs demo,minilm,gemma] [--limit N] [--rounds 3]

Plan and extraction take turns, each in a process of its own, into a new folder. Seconds are those of the
call: what Python takes to start and to import actkit's modules is in neither. Memory is the most that the
process of the extraction held. The table has medians; the last column says how far single rounds were off.
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

# model, samples, and what is kept of them
RUNS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "demo": ("demo", 2000, {}),
    "minilm": ("minilm", 1500, {}),
    "gemma": ("gemma", 500, {"tokens": "mean"}),
}
ALLOWED = {"disk, MB": 0.15, "host memory, MB": 0.25, "seconds": 0.30}


def predict(options: dict[str, Any]) -> tuple[float, float, float]:
    """Return bytes on disk, bytes in memory, and seconds, as a plan has them."""
    found = actkit.plan(**options).estimate
    assert found.time is not None, "there was no trial: too little memory is available"
    return found.disk, found.host, found.time.total


def extract(options: dict[str, Any]) -> float:
    from actkit.extraction import engine  # noqa: F401 - not timed

    started = time.perf_counter()
    actkit.extract(**options, listeners=[])
    return time.perf_counter() - started


def compare(options: dict[str, Any], rounds: int) -> list[tuple[Sequence[float], Sequence[float]]]:
    """Return what was predicted and what happened, in each round."""
    found = []
    for _ in range(rounds):
        predicted = in_child(predict, options).value
        run = in_child(extract, options)
        out = Path(options["out"])
        found.append((predicted, (bytes_below(out / "cube.zarr"), run.peak, run.value)))
        shutil.rmtree(out)
    return found


def rows(title: str, found: list[tuple[Sequence[float], Sequence[float]]]) -> list[dict[str, str]]:
    table = []
    for place, (name, allowed) in enumerate(ALLOWED.items()):
        scale, digits = (1, 1) if name == "seconds" else (1e6, 0)
        predicted, actual = ([pair[side][place] for pair in found] for side in (0, 1))
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
