"""Benchmark against transformers' `output_hidden_states`, nnsight and TransformerLens, on the same values.

python -m benchmarks.peers [--models demo,minilm,smollm] [--limit 600] [--rounds 3] [--dtype auto]

The peers receive the tokenized and collated batches of our plan at no cost; they load the model, run it and
save each batch with torch in the dtype of the model, without waiting for the disk. actkit does all of its
work: checks, tokenizing, compressing and committing `residual`. Runs alternate, each in a separate process,
and timing starts after the imports. The saved values are compared with our cube one by one.
"""

import shutil
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from actkit import extract, open_cube, plan

from .subjects import SENTENCES, TITLES, batches, model_folder
from .timing import Child, bytes_below, in_child, megabytes, parser, print_table, ratio, seconds, spread

Inputs = Sequence[dict[str, torch.Tensor]]
# tolerance per sample, relative to its norm: TransformerLens computes eager attention, actkit sdpa
TOLERANCE = {torch.bfloat16: 0.05, torch.float32: 1e-4}


def save(out: Path, index: int, states: Sequence[torch.Tensor]) -> None:
    torch.save(torch.stack(list(states)), out / f"{index}.pt")


def load(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    return AutoModel.from_pretrained(folder, dtype=dtype).eval()


def dtype_of(folder: Path, name: str) -> torch.dtype:
    """Return the dtype of that name; for "auto", that of the checkpoint."""
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    return AutoConfig.from_pretrained(folder).dtype or torch.float32


def transformers(folder: Path, dtype: torch.dtype, inputs: Inputs, out: Path) -> None:
    model = load(folder, dtype)
    with torch.inference_mode():
        for index, batch in enumerate(inputs):
            given = model(**batch, use_cache=False, output_hidden_states=True)
            save(out, index, given.hidden_states[1:])


def nnsight(folder: Path, dtype: torch.dtype, inputs: Inputs, out: Path) -> None:
    from nnsight import NNsight  # each peer is imported only in its own process

    model = load(folder, dtype)
    with warnings.catch_warnings(action="ignore"):  # of submodules that have names of its own
        traced: Any = NNsight(model)
    blocks = traced.layers if hasattr(model, "layers") else traced.encoder.layer
    with torch.inference_mode():
        for index, batch in enumerate(inputs):
            with traced.trace(**batch, use_cache=False) as tracer:
                cache = tracer.cache(modules=list(blocks))
            save(out, index, [cache[name].output for name in cache.keys()])  # noqa: SIM118


def transformer_lens(folder: Path, dtype: torch.dtype, inputs: Inputs, out: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge
    model = bridge.boot_transformers(str(folder), dtype=dtype, device="cpu")
    names = [f"blocks.{layer}.hook_out" for layer in range(model.cfg.n_layers)]
    with torch.inference_mode():
        for index, batch in enumerate(inputs):
            _, cache = model.run_with_cache(
                batch["input_ids"],
                attention_mask=batch["attention_mask"],
                names_filter=names,
                return_type=None,
                return_cache_object=False,
            )
            save(out, index, [cache[name] for name in names])


# by the names of their modules
PEERS: dict[str, Callable[[Path, torch.dtype, Inputs, Path], None]] = {
    "transformers": transformers,
    "nnsight": nnsight,
    "transformer_lens": transformer_lens,
}
SHOWN = {
    "transformers": "transformers, `output_hidden_states`",
    "nnsight": "nnsight, `tracer.cache`",
    "transformer_lens": "TransformerLens, `run_with_cache`",
}


def run_peer(name: str, folder: Path, dtype: torch.dtype, inputs: Path, out: Path) -> float:
    """Return the seconds that a peer takes after imports and loading of batches."""
    import_module(name)
    given = torch.load(inputs)
    out.mkdir()
    return seconds(PEERS[name], folder, dtype, given, out)


def run_actkit(options: dict[str, Any]) -> None:
    extract(**options, save=("residual",), listeners=[])


def save_batches(options: dict[str, Any], path: Path) -> list[list[int]]:
    """Save the batches for the peers, and return the samples of each."""
    prepared = plan(**options, trial=False)
    torch.save(batches(prepared), path)
    windows = range(prepared.plan.n_windows)
    return [batch.tolist() for window in windows for batch in prepared.plan.batches_of(window)]


def differences(run: Path, saved: Path, members: list[list[int]]) -> np.ndarray:
    """Return the largest difference of a sample from our cube in each layer, relative to its norm."""
    cube = open_cube(run)
    worst = np.zeros(cube.sizes["layer"])
    for index in {0, len(members) // 2, len(members) - 1}:
        theirs = torch.load(saved / f"{index}.pt").float().numpy()
        ours = cube.residual.isel(sample=members[index]).values
        for row, sample in enumerate(members[index]):
            length = int(cube.n_tokens[sample])
            one, other = theirs[:, row, :length], ours[:, row, :length]
            size = np.linalg.norm(other, axis=(1, 2))
            worst = np.maximum(worst, np.linalg.norm(one - other, axis=(1, 2)) / size)
    return worst


def compare(name: str, limit: int, rounds: int, dtype_name: str, folder: Path) -> None:
    model, run = model_folder(name, folder), folder / "actkit"
    dtype = dtype_of(model, dtype_name)
    options = {
        "model": str(model),
        "data": str(SENTENCES),
        "limit": limit,
        "out": str(run),
        "dtype": dtype_name,
    }
    members = in_child(save_batches, options, folder / "batches.pt").value
    children: dict[str, list[Child]] = {name: [] for name in ("actkit", *PEERS)}
    for _ in range(rounds):
        for path in [run, *(folder / peer for peer in PEERS)]:
            shutil.rmtree(path, ignore_errors=True)
        children["actkit"].append(in_child(run_actkit, options))
        for peer in PEERS:
            child = in_child(run_peer, peer, model, dtype, folder / "batches.pt", folder / peer)
            children[peer].append(child)
    times = {
        peer: [child.seconds if peer == "actkit" else child.value for child in done]
        for peer, done in children.items()
    }
    worst = {peer: differences(run, folder / peer, members) for peer in PEERS}
    print_table(
        [
            {
                "": SHOWN.get(peer, peer),
                "seconds: median (least to most)": spread(times[peer], 1),
                "to actkit": f"{ratio(times[peer], times['actkit']):.2f}",
                "peak memory, MB": megabytes(max(child.peak for child in done)),
                "disk, MB": megabytes(bytes_below(folder / peer)),
                "largest relative difference": f"{worst[peer][:-1].max():.1e}" if peer in worst else "",
                "in the last layer": f"{worst[peer][-1]:.1e}" if peer in worst else "",
            }
            for peer, done in children.items()
        ]
    )
    tolerance = TOLERANCE[dtype]
    # transformers returns the last layer after the final norm, if the model has one
    compared = [found if peer != "transformers" else found[:-1] for peer, found in worst.items()]
    assert np.concatenate(compared).max() < tolerance, "not the same numbers"


def main() -> None:
    options = parser(__doc__, limit=600, rounds=3)
    options.add_argument("--models", default="demo,minilm,smollm")
    options.add_argument(
        "--dtype", default="auto", help="dtype of the models (default: that of each checkpoint)"
    )
    chosen = options.parse_args()
    for name in chosen.models.split(","):
        computed = "" if chosen.dtype == "auto" else f", computed in {chosen.dtype}"
        print(f"\n### Against peers: {TITLES[name]}{computed}; {chosen.limit:,} sentences", flush=True)
        with tempfile.TemporaryDirectory() as temporary:
            compare(name, chosen.limit, chosen.rounds, chosen.dtype, Path(temporary))


if __name__ == "__main__":
    main()
