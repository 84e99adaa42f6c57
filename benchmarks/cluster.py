"""Benchmark of a cluster: what leases cost, relative to the same windows in one process.

python -m benchmarks.cluster [--model minilm] [--limit 2000] [--rounds 3]

The cluster is `local:1`: a coordinator and one worker with all cores. Each round runs `limit` samples and
twice as many, on the cluster and in one process; the difference between the two sizes is free of what is
done once, such as imports and loading. Processor seconds are those of all processes of a run. "Between
leases" is the time in which the worker had ended one lease and not begun the next.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actkit import extract
from actkit.extraction.cluster import cluster_engine
from actkit.extraction.cluster.cluster_engine import ClusterEngine

from .subjects import MODELS, SENTENCES, TITLES, model_folder
from .timing import in_child, parser, print_table, spread


@dataclass(frozen=True)
class Measured:
    """Processor seconds of a run; of a cluster also seconds in its leases, between them, and their number."""

    processor: float
    within: float = 0.0
    between: float = 0.0
    leases: int = 0


def run(options: dict[str, Any], lease_seconds: float) -> Measured:
    """Extract, and return what it took."""
    ends: list[tuple[float, float]] = []  # of leases, and how long each took
    count = ClusterEngine._count_lease

    def counted(engine: ClusterEngine, lease: Any, result: Any, meter: Any) -> None:
        ends.append((time.monotonic(), result.seconds))
        count(engine, lease, result, meter)

    cluster_engine.SECONDS = lease_seconds
    ClusterEngine._count_lease = counted  # type: ignore[method-assign]
    before = os.times()
    extract(**options, listeners=[])
    after = os.times()
    processor = sum(after[:4]) - sum(before[:4])
    # the first lease waits for nothing, and the second may have been submitted before its rate was known
    whole = ends[-1][0] - ends[0][0] if ends else 0.0
    within = sum(seconds for _, seconds in ends[1:])
    return Measured(processor, within, whole - within, max(len(ends) - 1, 0))


def main() -> None:
    options = parser(__doc__, limit=2000, rounds=3)
    options.add_argument("--model", choices=MODELS, default="minilm")
    options.add_argument("--lease", type=float, default=cluster_engine.SECONDS, help="seconds of a lease")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = {"model": str(model_folder(asked.model, folder)), "data": str(SENTENCES), "dtype": "float32"}
        grown: dict[str, list[float]] = {"local:1": [], "one process": []}
        shares, counts, lengths = [], [], []
        for turn in range(asked.rounds):
            for kind, processor in grown.items():
                sizes = []
                for limit in (asked.limit, 2 * asked.limit):
                    out = str(folder / f"{turn}-{kind.replace(':', '-')}-{limit}")
                    more = {"cluster": kind} if kind == "local:1" else {}
                    child = in_child(run, {**shared, **more, "limit": limit, "out": out}, asked.lease)
                    sizes.append(child.value)
                processor.append(sizes[1].processor - sizes[0].processor)
                if kind == "local:1":
                    shares.append(sizes[1].between / sizes[1].within)
                    counts.append(sizes[1].leases)
                    lengths.append(sizes[1].within / max(sizes[1].leases, 1))
    print(
        f"\n{TITLES[asked.model]}, {asked.limit} more samples, leases of {statistics.median(lengths):.1f} s"
    )
    ratios = [ours / alone for ours, alone in zip(grown["local:1"], grown["one process"], strict=True)]
    print_table(
        [
            {
                "CPU s of a cluster": spread(grown["local:1"], 1),
                "of one process": spread(grown["one process"], 1),
                "ratio": spread(ratios, 3),
                "between leases, of the time in them": spread(shares, 3),
                "leases": round(statistics.median(counts)),
            }
        ]
    )


if __name__ == "__main__":
    main()
