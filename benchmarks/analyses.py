"""Benchmark of analyses: against bare matrix products, on a cube larger than memory, and to the first plot.

python -m benchmarks.analyses [--limit 2000] [--rounds 3]

The cube larger than memory has 8 layers × limit × 250 tokens × 512, 8.2 GB with 2,000 samples. The one worker
of a Dask cluster, with two threads, may hold a quarter of that.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
from distributed import Client, LocalCluster

import actkit
from actkit import plots
from actkit.stats.kernels.cka import align
from actkit.store.ragged import Ragged
from actkit.testing import synthetic

from .timing import bytes_below, in_child, interleaved, megabytes, memory, parser, print_table, ratio, spread

LAYERS, HIDDEN = 34, 2560  # of Gemma 3 4B
TOKENS, NARROW, FEW = 250, 512, 8
WINDOW = 64


def bare(vectors: np.ndarray) -> None:
    """Compute the matrix products that every CKA needs."""
    for layer in vectors:
        centred = layer - layer.mean(axis=0, dtype=np.float64)
        centred @ centred.T


def print_cka(samples: int, rounds: int) -> None:
    vectors = np.random.default_rng(0).standard_normal((LAYERS, samples, HIDDEN), dtype=np.float32)
    pairs = np.arange(samples) // 2
    actions: dict[str, Callable[[], object]] = {
        "bare Gram matrices, NumPy float64": partial(bare, vectors),
        "debiased CKA, all pairs, jackknife": partial(align, vectors),
        "the same, twins left out together": partial(align, vectors, pairs),
        "the same, without jackknife": partial(align, vectors, jackknife=False),
    }
    times = interleaved(actions, rounds)
    first = next(iter(times.values()))
    print(f"\n### CKA of {LAYERS} layers, {samples:,} pooled samples × {HIDDEN}")
    print_table(
        [
            {
                "": name,
                "seconds: median (least to most)": spread(own),
                "to the bare products": f"{ratio(own, first):.2f}",
            }
            for name, own in times.items()
        ]
    )


def write_large(run: Path, samples: int) -> None:
    """Write a cube of bfloat16-representable numbers, one window at a time."""
    shape = {"n_layers": FEW, "n_samples": samples, "n_tokens": TOKENS, "window": WINDOW}
    narrow = synthetic(**shape, hidden=1)  # type: ignore[arg-type]
    names = ("residual", "n_tokens", "token_id", "token_kind", "token_text")
    plan = replace(narrow.plan, shape=replace(narrow.plan.shape, hidden=NARROW))
    cube = replace(narrow, plan=plan, values={name: narrow.values[name] for name in names})
    run.mkdir()
    writer, rng = cube.create(run), np.random.default_rng(0)
    mixing = rng.standard_normal((NARROW, NARROW), dtype=np.float32) / NARROW**0.5
    for window in range(plan.n_windows):
        part = cube.part(window)
        lengths = np.asarray(part["n_tokens"])
        own = rng.standard_normal((int(lengths.sum()), NARROW), dtype=np.float32)
        layers = np.empty((FEW, *own.shape), dtype=np.float32)
        for layer in layers:
            layer[:] = own
            own = own + 0.3 * own @ mixing
        layers.view(np.uint32)[:] &= 0xFFFF0000
        part["residual"] = Ragged(layers, np.cumsum(lengths) - lengths, lengths, tuple(range(FEW)))
        writer.write(window, part)


def on_cluster(run: Path, limit: int, what: str) -> tuple[float, int, Any]:
    """Return the duration in seconds, the peak memory of the worker, and a number from the result."""
    options = {"n_workers": 1, "threads_per_worker": 2, "memory_limit": limit, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        cube = actkit.open_cube(run)
        started = time.perf_counter()
        if what == "whitening":
            found: Any = actkit.Whitener.fit(cube, layer=FEW // 2).condition
        else:
            found = float(actkit.adjacent_cka(cube, vectors="tokens").compute().cka[0, 0])
        took = time.perf_counter() - started
        (peak,) = client.run(memory, "VmHWM").values()
    return took, peak, found


def print_large(samples: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary, "run")
        in_child(write_large, run, samples)
        dense = 4 * FEW * samples * TOKENS * NARROW
        rows = []
        for what in ("whitening", "adjacent CKA, all tokens"):
            took, peak, _ = in_child(on_cluster, run, dense // 4, what).value
            rows.append(
                {
                    "": what,
                    "seconds": f"{took:.1f}",
                    "dense, MB": megabytes(dense),
                    "on disk, MB": megabytes(bytes_below(run)),
                    "limit, MB": megabytes(dense // 4),
                    "worker's peak, MB": megabytes(peak),
                }
            )
    print(f"\n### A cube four times as large as memory: {FEW} layers × {samples:,} × {TOKENS} × {NARROW}")
    print_table(rows)


def picture(run: Path) -> tuple[float, float]:
    """Return the seconds from opening a cube to a rendered plot of its norms, first and second time."""

    def draw() -> float:
        started = time.perf_counter()
        hv.renderer("bokeh").get_plot(plots.layer_norms(actkit.layer_norms(actkit.open_cube(run))))
        return time.perf_counter() - started

    return draw(), draw()


def print_picture(samples: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary, "run")
        cube = synthetic(n_layers=LAYERS, n_samples=samples, n_tokens=64, hidden=8, window=512)
        run.mkdir()
        writer = cube.create(run)
        for window in range(cube.plan.n_windows):
            writer.write(window, cube.part(window))
        times = [in_child(picture, run).value for _ in range(rounds)]
    print(f"\n### The picture of norms: {LAYERS} layers × {samples:,} samples × 64 tokens")
    names = ("the first of a process, which imports Dask", "the next")
    print_table(
        [
            {
                "open, summarise, draw": name,
                "seconds: median (least to most)": spread(list(own)),
                "target": "< 1",
            }
            for name, own in zip(names, zip(*times, strict=True), strict=True)
        ]
    )


def main() -> None:
    options = parser(__doc__, limit=2000, rounds=3).parse_args()
    print_picture(options.limit, options.rounds)
    print_cka(options.limit, options.rounds)
    print_large(options.limit)


if __name__ == "__main__":
    main()
