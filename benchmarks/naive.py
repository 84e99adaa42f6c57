"""Benchmark of actkit against the usual notebook script: batch size 1, hooks, lists, `torch.save`.

python -m benchmarks.naive [--models demo,minilm] [--limit 2000] [--rounds 3]

Half of the sentences are English, half Arabic. The contenders run alternately, each in a separate process;
timing starts after the imports and ends when everything is saved. Only actkit waits for the disk (fsync).
"""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from actkit import extract, open_cube

from .subjects import SENTENCES, TITLES, model_folder
from .timing import Child, bytes_below, in_child, megabytes, parser, print_table, ratio, spread

LANGUAGES = ("english", "arabic")


def naive(folder: Path, limit: int, out: Path) -> None:
    """Keep every layer's output of every sentence, as a notebook would."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    blocks = model.layers if hasattr(model, "layers") else model.encoder.layer
    sentences = pd.read_csv(SENTENCES, keep_default_na=False, nrows=limit)
    kept: dict[int, list[torch.Tensor]] = {}

    def hook(layer: int) -> Callable[..., None]:
        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            kept[layer].append(hidden[0].cpu().float())

        return keep

    for layer, block in enumerate(blocks):
        block.register_forward_hook(hook(layer))
    for language in LANGUAGES:
        kept.update({layer: [] for layer in range(len(blocks))})
        with torch.no_grad():
            for text in sentences.text[sentences.language == language]:
                model(**tokenizer(text, return_tensors="pt"))
        (out / language).mkdir(parents=True)
        for layer, activations in kept.items():
            torch.save(activations, out / language / f"layer_{layer}.pt")
        torch.save(kept, out / language / "all_layers.pt")


def with_actkit(folder: Path, limit: int, out: Path, storage: str) -> None:
    extract(model=str(folder), data=str(SENTENCES), limit=limit, out=str(out), storage=storage, listeners=[])


Contender = Callable[[Path, int, Path], None]


def contenders(folder: Path) -> dict[str, Contender]:
    found: dict[str, Contender] = {
        "batch 1, hooks, `torch.save`": naive,
        "actkit, defaults": partial(with_actkit, storage="exact"),
    }
    # the outputs of a bfloat16 model are exact in bfloat16
    if AutoConfig.from_pretrained(folder).dtype != torch.bfloat16:
        found["actkit, `storage=bfloat16`"] = partial(with_actkit, storage="bfloat16")
    return found


def largest_difference(saved: Path, run: Path) -> float:
    """Compare the first sentences of each language in the middle layer, relative to their norm."""
    cube = open_cube(run)
    layer = cube.sizes["layer"] // 2
    worst = 0.0
    for language in LANGUAGES:
        theirs = torch.load(saved / language / f"layer_{layer}.pt")[:20]
        ours = cube.residual.sel(layer=layer).isel(sample=np.flatnonzero(cube.language == language)[:20])
        for one, other in zip(theirs, ours.values, strict=True):
            difference = one.numpy() - other[: len(one)]
            worst = max(worst, float(np.linalg.norm(difference) / np.linalg.norm(one)))
    return worst


def compare(name: str, limit: int, rounds: int, temporary: Path) -> None:
    folder = model_folder(name, temporary)
    runs = contenders(folder)
    done: dict[str, list[Child]] = {contender: [] for contender in runs}
    outs = {contender: temporary / f"out-{index}" for index, contender in enumerate(runs)}
    for _ in range(rounds):
        for contender, run in runs.items():
            shutil.rmtree(outs[contender], ignore_errors=True)
            done[contender].append(in_child(run, folder, limit, outs[contender]))
    times = {contender: [child.seconds for child in children] for contender, children in done.items()}
    first, *others = runs
    print_table(
        [
            {
                "": contender,
                "seconds: median (least to most)": spread(times[contender], 1),
                "times faster, target ≥ 5": f"{ratio(times[first], times[contender]):.2f}",
                "peak memory, MB": megabytes(max(child.peak for child in done[contender])),
                "disk, MB": megabytes(bytes_below(outs[contender])),
            }
            for contender in runs
        ]
    )
    worst = {contender: largest_difference(outs[first], outs[contender]) for contender in others}
    shown = ", ".join(f"{contender} {error:.1e}" for contender, error in worst.items())
    print(f"\nlargest relative difference of a sentence: {shown}")
    assert max(worst.values()) < 0.05, "not the same numbers"


def main() -> None:
    options = parser(__doc__, limit=2000, rounds=3)
    options.add_argument("--models", default="demo,minilm")
    chosen = options.parse_args()
    for name in chosen.models.split(","):
        print(f"\n### Against batch 1 and hooks: {TITLES[name]}; {chosen.limit:,} sentences", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            compare(name, chosen.limit, chosen.rounds, Path(temporary))


if __name__ == "__main__":
    main()
