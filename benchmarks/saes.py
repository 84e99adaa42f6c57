"""Benchmark of training autoencoders, against the matrix products that a dense step consists of.

python -m benchmarks.saes [--limit 600] [--rounds 3]

A step of BatchTopK (k = 32, eightfold width) is compared with the five matrix products of its forward and
backward pass on dense matrices, and with a step of SAELens, where that is installed (`make test-saelens`).
Then all layers of a cube of the bundled model are trained in one pass, once with the tokens held in memory
and once read again in every epoch; the time of reading and of everything else is compared with the sum of the
steps. What is read before the first step, once in a run of any length, is in a column of its own. All times
are CPU seconds of one process with one thread, so that other processes matter little.
"""

import importlib.util
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import actkit
from actkit.demo import CAPTIONS, MODEL
from actkit.features import training
from actkit.features.layer_trainer import LayerTrainer
from actkit.features.training_settings import TrainingSettings, dead_after, default_rate
from actkit.features.training_tokens import TrainingTokens

from .timing import MB, in_child, memory, parser, print_table, ratio, spread

K, STEPS = 32, 24
SIZES = ((160, 4096), (576, 2048), (1024, 1024))  # hidden, batch


def cpu_seconds(action: Callable[[], object], times: int = 1) -> float:
    started = time.process_time()
    for _ in range(times):
        action()
    return (time.process_time() - started) / times


def mixtures(hidden: int, n_tokens: int) -> torch.Tensor:
    """Return tokens in which 16 of twice as many directions as dimensions are active on average."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((2 * hidden, hidden)) / hidden**0.5
    is_active = rng.random((n_tokens, 2 * hidden)) < 8 / hidden
    return torch.from_numpy(
        (is_active * rng.exponential(size=is_active.shape) @ directions).astype(np.float32)
    )


def settings(hidden: int, batch: int) -> TrainingSettings:
    width = 8 * hidden
    return TrainingSettings(
        layers=(0,), component="residual", hidden=hidden, width=width, k=K, architecture="batchtopk",
        tokens="content", where="{}", holdout_cluster="", holdout_share=0.1, steps=1000, batch=batch,
        lr=default_rate(width), seed=0, dead_after=dead_after(1000, batch), n_tokens=batch, buffer_bytes=0,
        is_held=True, device="cpu", model="", cube_sha256="",
    )  # fmt: skip


def saelens_step(hidden: int, x: torch.Tensor) -> Callable[[], object] | None:
    if importlib.util.find_spec("sae_lens") is None:
        return None
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=hidden, d_sae=8 * hidden, k=K))
    plan = SAETrainerConfig(
        total_training_samples=10**9,
        train_batch_size_samples=len(x),
        lr_end=0.0,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(cfg=plan, sae=sae, data_provider=iter([x]))

    def step() -> None:
        with torch.enable_grad():
            trainer._train_step(sae, x)

    return step


def steps(hidden: int, batch: int, rounds: int) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    x = mixtures(hidden, batch)
    model = LayerTrainer(
        settings(hidden, batch), 0, hidden**0.5 / float(x.norm(dim=1).mean()), torch.device("cpu")
    )
    w, f = torch.randn(hidden, 8 * hidden), torch.randn(batch, 8 * hidden)
    made = iter(range(10**6))

    def products() -> None:
        pre = x @ w
        reconstruction = f @ w.t()
        f.t() @ reconstruction
        reconstruction @ w
        x.t() @ pre

    actions: dict[str, Callable[[], object]] = {
        "five products": products,
        "actkit": lambda: model.step(x, next(made)),
    }
    if (theirs := saelens_step(hidden, x)) is not None:
        actions["SAELens"] = theirs
    times: dict[str, list[float]] = {name: [] for name in actions}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name, action in actions.items():
                took = cpu_seconds(action, 2)
                if turn:
                    times[name].append(took)
    return times


def one_pass(run: Path, out: Path, tokens: str) -> dict[str, float]:
    """Train all layers, and return where the time went, and the peak memory beyond what is expected."""
    torch.set_num_threads(1)
    spent = {"before": 0.0, "steps": 0.0, "reading": 0.0, "all": 0.0}

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            started = time.process_time()
            result = function(*arguments, **options)
            spent[name] += time.process_time() - started
            return result

        return call

    def batches(data: TrainingTokens, first: int = 0) -> Iterator[list[torch.Tensor]]:
        read = original(data, first)
        while True:
            yield clocked("reading", lambda: list(next(read)))()

    def scales(data: TrainingTokens) -> object:
        result = original_scales(data)
        spent["before"], spent["reading"] = spent["reading"], 0.0
        return result

    original, original_scales = TrainingTokens.batches, TrainingTokens.scales
    TrainingTokens.scales = scales  # type: ignore[method-assign, assignment]
    TrainingTokens.batches = batches  # type: ignore[method-assign, assignment]
    LayerTrainer.step = clocked("steps", LayerTrainer.step)  # type: ignore[method-assign]
    training._Training._steps = clocked("all", training._Training._steps)  # type: ignore[method-assign]
    training._LOG_ENTRIES = max(1, STEPS // 20)  # as often as in a run of 1,000 steps
    before = memory("VmHWM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        actkit.train_saes(run, out=out, steps=STEPS, batch=2048, k=K, memory=tokens, listeners=[])
    log = actkit.training_log(out)
    layers, width, hidden = log.sizes["layer"], log.attrs["width"], log.attrs["hidden"]
    held = min(log.attrs["buffer_bytes"], 4 * log.attrs["n_tokens"] * layers * hidden)
    return {**spent, "memory": memory("VmHWM") - before - 32 * width * hidden * layers - held}


def make_cube(limit: int, run: Path) -> None:
    options = {"limit": limit, "save": ("residual",), "storage": "bfloat16", "listeners": []}
    actkit.extract(model=str(MODEL), data=str(CAPTIONS), out=str(run), **options)  # type: ignore[arg-type]


def main() -> None:
    chosen = parser(__doc__, limit=600, rounds=3).parse_args()
    rows: list[dict[str, object]] = []
    for hidden, batch in SIZES:
        times = in_child(steps, hidden, batch, chosen.rounds).value
        for name, took in times.items():
            size = f"{hidden} × {8 * hidden}, batch {batch:,}"
            milliseconds = spread([1000 * value for value in took], 1)
            row = {"": f"{size}: {name}", "CPU ms": milliseconds}
            rows.append({**row, "to five products": f"{ratio(took, times['five products']):.2f}"})
    print("\n### A step of training")
    print_table(rows)
    with tempfile.TemporaryDirectory() as temporary:
        run = Path(temporary, "run")
        in_child(make_cube, chosen.limit, run)
        rows = []
        for tokens in ("4GB", "40MB"):
            spent = in_child(one_pass, run, Path(temporary, tokens), tokens).value
            rows.append(
                {
                    "memory for tokens": tokens,
                    "steps, CPU s": f"{spent['steps']:.2f}",
                    "read before, CPU s": f"{spent['before']:.2f}",
                    "reading to steps": f"{spent['reading'] / spent['steps']:.2f}",
                    "everything to steps": f"{spent['all'] / spent['steps']:.2f}",
                    "memory beyond weights, gradients, Adam and tokens, MB": f"{spent['memory'] / MB:.0f}",
                }
            )
        print(f"\n### All layers in one pass, {STEPS} steps")
        print_table(rows)


if __name__ == "__main__":
    main()
