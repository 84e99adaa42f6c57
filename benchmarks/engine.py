"""Benchmark of extraction: time relative to the bare forward pass of the same batches, and memory.

python -m benchmarks.engine [--models demo,gemma,minilm,smollm] [--limit N] [--rounds 5] [--dtype auto]

Each model is timed in one process: bare forward and every kind of extraction in turn. An extraction is
all of `actkit.extract`: checks, tokenizing, loading, forward, writing, commit. Interpreter start and
imports are in neither. The bare forward is the decoder without head, in inference mode, with sdpa, without
cache, on tensors that were tokenized and collated before: one batch after the other on all cores, which is
what PyTorch does and what the ratios are to; and a batch on each core, which is what actkit does. Memory is
that of a process for each extraction. `--dtype float32` computes in float32 where a CPU emulates bfloat16.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PreTrainedModel

from actkit import extract, plan

from .subjects import MODELS, SENTENCES, TITLES, batches, model_folder
from .timing import bytes_below, in_child, interleaved, megabytes, memory, parser, print_table, ratio, spread

# several windows, and long enough to make the start-up time negligible
LIMITS = {"demo": 3000, "gemma": 500, "minilm": 1500, "smollm": 400}
TARGETS = {"a": 1.15, "c": 1.05, "d": 0.60}
ALLOWANCE = 300


def variants(n_layers: int) -> dict[str, dict[str, Any]]:
    residual = {"save": ("residual",), "storage": "bfloat16"}
    return {
        "a. all layers, `residual`": residual,
        "b. all layers, default `save`": {"storage": "bfloat16"},
        "c. all layers, `pooled`, `last`, `norm`": {"save": ("pooled", "last", "norm")},
        "d. first half of the layers, `residual`": {**residual, "layers": f"0-{n_layers // 2 - 1}"},
    }


def load(folder: Path, dtype: str) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def run(options: dict[str, Any]) -> None:
    extract(**options, listeners=[])


def basic(folder: Path, limit: int, dtype: str) -> dict[str, Any]:
    return {"model": str(folder), "data": str(SENTENCES), "limit": limit, "dtype": dtype}


def time_model(
    folder: Path, limit: int, rounds: int, dtype: str, out: Path
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Time the bare forward and every extraction in turn, in seconds and in processor time."""
    options = basic(folder, limit, dtype)
    prepared = plan(**options, out=str(out / "plan"), trial=False)
    inputs, model, runs = batches(prepared), load(folder, dtype), count()

    def bare() -> None:
        with torch.inference_mode():
            for batch in inputs:
                model(**batch, use_cache=False)

    def on_each_core() -> None:
        cores = torch.get_num_threads()

        def some(first: int) -> None:
            torch.set_num_threads(1)
            with torch.inference_mode():
                for batch in inputs[first::cores]:
                    model(**batch, use_cache=False)

        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(some, range(cores)))
        torch.set_num_threads(cores)

    def afresh(chosen: dict[str, Any]) -> None:
        run({**options, **chosen, "out": str(out / f"run-{next(runs)}")})

    actions: dict[str, Callable[[], object]] = {
        "bare forward": bare,
        "bare forward, a batch on each core": on_each_core,
    }
    kinds = variants(model.config.num_hidden_layers)
    kinds["start: as a., but 2 sentences"] = {**next(iter(kinds.values())), "limit": 2}
    actions |= {name: partial(afresh, chosen) for name, chosen in kinds.items()}
    busy: dict[str, list[float]] = {name: [] for name in actions}

    def counted(name: str) -> None:
        started = time.process_time()
        actions[name]()
        busy[name].append(time.process_time() - started)

    counting = {name: partial(counted, name) for name in actions}
    times = interleaved(counting, rounds, between=lambda: shutil.rmtree(out, ignore_errors=True))
    return times, {name: taken[1:] for name, taken in busy.items()}  # without the warm-up round


def describe(options: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Return the memory of a process that has only loaded the model, and the plan of every extraction."""
    model = load(Path(options["model"]), options["dtype"])
    with torch.inference_mode():  # weights are memory-mapped and read on first use
        model(**batches(plan(**{**options, "limit": 2}, trial=False))[0], use_cache=False)
    loaded = memory()
    plans = {}
    for name, chosen in variants(model.config.num_hidden_layers).items():
        prepared = plan(**{**options, **chosen}, trial=False)
        windows = min(2, prepared.plan.n_windows) * prepared.plan.window_bytes
        plans[name] = {"options": chosen, "windows": windows, "estimate": prepared.estimate}
    return loaded, plans


def print_times(times: dict[str, list[float]], busy: dict[str, list[float]]) -> None:
    bare, bare_busy = times["bare forward"], busy["bare forward"]
    print_table(
        [
            {
                "": name,
                "seconds: median (least to most)": spread(taken),
                "to the bare forward": f"{ratio(taken, bare):.2f}",
                "in time of all cores": f"{ratio(busy[name], bare_busy):.2f}",
                "target": f"≤ {TARGETS[name[0]]:.2f}" if name[0] in TARGETS else "",
            }
            for name, taken in times.items()
        ]
    )


def print_memory(folder: Path, limit: int, dtype: str, out: Path) -> None:
    options = {**basic(folder, limit, dtype), "out": str(out)}
    loaded, plans = in_child(describe, options).value
    rows = []
    for name, planned in plans.items():
        peak = in_child(run, {**options, **planned["options"]}).peak
        disk = bytes_below(out / "cube.zarr")
        shutil.rmtree(out)
        rows.append(
            {
                "MB": name,
                "peak": megabytes(peak),
                "peak, predicted": megabytes(planned["estimate"].host),
                "program and model": megabytes(loaded),
                "two windows": megabytes(planned["windows"]),
                f"what is left, ≤ {ALLOWANCE}": megabytes(peak - loaded - planned["windows"]),
                "disk": megabytes(disk),
                "disk, predicted": megabytes(planned["estimate"].disk),
            }
        )
    print_table(rows)


def main() -> None:
    options = parser(__doc__, limit=None)
    options.add_argument("--models", default=",".join(MODELS))
    options.add_argument(
        "--dtype", default="auto", help="dtype of the models (default: that of each checkpoint)"
    )
    chosen = options.parse_args()
    for name in chosen.models.split(","):
        limit = chosen.limit or LIMITS[name]
        with tempfile.TemporaryDirectory() as temporary:
            folder = model_folder(name, Path(temporary))
            computed = "" if chosen.dtype == "auto" else f", computed in {chosen.dtype}"
            print(
                f"\n### Against the bare forward: {TITLES[name]}{computed}; {limit:,} sentences", flush=True
            )
            out = Path(temporary, "out")
            print_times(*in_child(time_model, folder, limit, chosen.rounds, chosen.dtype, out).value)
            print_memory(folder, limit, chosen.dtype, out)


if __name__ == "__main__":
    main()
