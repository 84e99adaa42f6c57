"""Benchmark of scaling with samples: whether time is linear, and memory and opening time are constant.

python -m benchmarks.scaling [--limit 100000]

The model is a Llama of 2 layers × 32 on prompts of a few words, so that everything around the model
dominates. Sizes are the limit, a tenth and a hundredth of it; each runs once, in a separate process.
"""

import math
import statistics
import tempfile
from itertools import cycle, islice, pairwise
from pathlib import Path

import pandas as pd

from actkit import extract, open_cube

from .subjects import save_llama, texts
from .timing import bytes_below, in_child, megabytes, memory, parser, print_table, seconds

WORDS = 6


def write_prompts(path: Path, count: int) -> None:
    short = [" ".join(text.split()[:WORDS]) for text in texts()]
    prompts = [f"{index} {text}" for index, text in enumerate(islice(cycle(short), count))]
    names = [f"prompt-{index}" for index in range(count)]
    pd.DataFrame({"sample_id": names, "language": "mixed", "text": prompts}).to_csv(path, index=False)


def run(model: Path, data: Path, out: Path) -> None:
    extract(model=str(model), data=str(data), out=str(out), listeners=[])


def open_run(out: Path) -> tuple[float, int]:
    """Return the seconds to open the cube, without imports, and the memory that it holds."""
    before = memory()
    cube = open_cube(out)
    held = memory() - before
    assert cube.sizes["sample"]
    return statistics.median(seconds(open_cube, out) for _ in range(5)), held


def measure(model: Path, count: int, folder: Path) -> dict[str, float]:
    data, out = folder / f"{count}.csv", folder / f"run-{count}"
    write_prompts(data, count)
    ran = in_child(run, model, data, out)
    opening, held = in_child(open_run, out).value
    return {
        "samples": count,
        "seconds": ran.seconds,
        "peak": ran.peak,
        "opening": opening,
        "held": held,
        "disk": bytes_below(out),
        "files": sum(1 for path in out.rglob("*") if path.is_file()),
    }


def slope(one: dict[str, float], other: dict[str, float], what: str) -> str:
    """Return the exponent of growth with the number of samples: 1 is linear, 0 constant."""
    return f"{math.log(other[what] / one[what]) / math.log(other['samples'] / one['samples']):.2f}"


def main() -> None:
    limit = parser(__doc__, limit=100_000).parse_args().limit
    print(f"\n### Scaling: a Llama of 2 × 32, prompts of {WORDS + 1} words", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        model = save_llama(Path(temporary, "model"))
        measured = [measure(model, count, Path(temporary)) for count in (limit // 100, limit // 10, limit)]
    print_table(
        [
            {
                "samples": f"{row['samples']:,}",
                "seconds": f"{row['seconds']:.1f}",
                "ms a sample": f"{1000 * row['seconds'] / row['samples']:.2f}",
                "peak memory, MB": megabytes(row["peak"]),
                "`open_cube`, s": f"{row['opening']:.3f}",
                "memory of the open cube, MB": megabytes(row["held"]),
                "disk, MB": megabytes(row["disk"]),
                "files": f"{row['files']:,}",
            }
            for row in measured
        ]
    )
    parts = []
    for one, other in pairwise(measured):
        powers = ", ".join(f"{what} {slope(one, other, what)}" for what in ("seconds", "peak", "opening"))
        parts.append(f"from {one['samples']:,} to {other['samples']:,}: {powers}")
    print(f"\npower of the number of samples (1 is linear, 0 constant), {'; '.join(parts)}")
    start, longest = measured[-2], measured[-1]
    each = (longest["seconds"] - start["seconds"]) / (longest["samples"] - start["samples"])
    print(f"each further sample takes {1000 * each:.2f} ms")


if __name__ == "__main__":
    main()
