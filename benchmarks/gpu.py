"""Benchmark of extraction on a CUDA device: what binds, and whether copies run beside the computation.

python -m benchmarks.gpu [--device cuda] [--shape gemma|tiny] [--tokens 60000]

The model is random and in bfloat16, with the shape of Gemma 3 4B (34 blocks of 2560) and a small vocabulary,
which the decoder without its head does not notice. Prints one table; takes a few minutes.
`--device cpu --shape tiny` tries the program itself.

The bare forward is the decoder without head, in inference mode, on the batches of the plan, collated on the
device beforehand. An extraction counts from its first batch to its last commit: the model is loaded before.
"""

import argparse
import csv
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModel

from actkit import extract, plan
from actkit.demo import captions
from actkit.estimates import readable_bytes
from actkit.extraction.capture.device_copy import Transfer, allocate
from actkit.extraction.loop.data_loader import batches
from actkit.extraction.monitoring.progress import Progress
from actkit.extraction.prompts.encoder import collate
from actkit.widgets.gauges import measure

from .subjects import save_gemma
from .timeline import overlap, recorded, timeline
from .timing import bytes_below, in_child, memory, print_table

SHAPES: dict[str, dict[str, int]] = {
    "gemma": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 1024,
    },
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3},
}
KINDS: dict[str, dict[str, Any]] = {
    "all layers, `residual`": {"save": ("residual",)},
    "all layers, `pooled`, `last`, `norm`": {"save": ("pooled", "last", "norm")},
}
COPIED = {"gemma": 2**28, "tiny": 2**20}  # bytes
PROFILED = 4  # batches
GB = 1e9


def write_prompts(path: Path, tokens: int) -> None:
    """Write texts of one to twelve captions, of about as many tokens in all."""
    texts = [row["text"] for row in captions(500)]
    lengths = np.random.default_rng(0).integers(1, 13, size=max(tokens // 150, 8))
    ends = np.cumsum(lengths)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text"])
        for pair in zip(ends - lengths, ends, strict=True):
            rows.writerow([" ".join(texts[number % len(texts)] for number in range(*pair))])


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_device(options: dict[str, Any], rounds: int, size: int) -> dict[str, float]:
    """Time the bare forward; measure the rates at which bytes reach the host and the disk."""
    device = options["device"]
    prepared = plan(**options, trial=False)
    windows = range(prepared.plan.n_windows)
    inputs = [collate(batch.prompts, device=device) for batch in batches(prepared, windows)]
    model = AutoModel.from_pretrained(options["model"], dtype="auto").to(device).eval()

    def forward() -> None:
        with torch.inference_mode():
            for batch in inputs:
                model(**batch, use_cache=False)
        synchronize(device)

    forward()
    times, folder = [], Path(options["out"]).parent
    for _ in range(rounds):
        started = time.perf_counter()
        forward()
        times.append(time.perf_counter() - started)
    return {
        "bare": float(np.median(times)),
        "host": host_rate(device, size),
        "disk": disk_rate(folder, 4 * size),
    }


def host_rate(device: str, size: int) -> float:
    """Return the bytes per second that arrive in host memory, by the copies of a run."""
    transfer, values = Transfer(), torch.zeros(size // 4, device=device)
    target = allocate(values.shape, torch.float32, pinned=device == "cuda")
    for _ in range(2):  # the first one is slow
        started = time.perf_counter()
        for _ in range(4):
            transfer.copy(target, values)
        transfer.mark().wait()
        took = time.perf_counter() - started
    return 4 * size / took


def disk_rate(folder: Path, size: int) -> float:
    """Return the bytes per second of a plain file with fsync, beside the runs."""
    content, path = os.urandom(2**20), folder / "plain"
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
    took = time.perf_counter() - started
    path.unlink()
    return size / took


class Watch:
    """Listener that keeps the times of the first batch and the last commit, and compares gauges."""

    def __init__(self, device: str) -> None:
        self._device = device
        self.begun = self.ended = self.worst = 0.0
        self.tokens = 0

    def __call__(self, event: Progress) -> None:
        """Note the time, and compare the gauge with the memory in use."""
        now = time.perf_counter()
        if event.state == "running":
            self.begun = self.begun or now - event.seconds
            used = reference_bytes(self._device)
            self.worst = max(self.worst, abs(measure()[0].used - used) / used)
        elif event.state == "done":
            self.ended, self.tokens = now, event.tokens


def reference_bytes(device: str) -> int:
    """Return the memory in use as CUDA says it; of the machine without a device."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return int(total - free)
    machine = psutil.virtual_memory()
    return int(machine.total - machine.available)


def smi_difference() -> float:
    """Return how far the gauge is from what nvidia-smi prints."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    used = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * 2**20
    return abs(measure()[0].used - used) / used


def measure_kind(options: dict[str, Any]) -> dict[str, Any]:
    """Plan and extract in this process, which does nothing else."""
    device, out = options["device"], Path(options["out"])
    predicted = plan(**options)
    extract(**{**options, "out": f"{out}-warm", "limit": 8}, listeners=[])
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    watch = Watch(device)
    extract(**options, listeners=[watch])
    shape = predicted.plan
    payload = 2 * shape.shape.layer * shape.shape.hidden * int(shape.stored.sum())
    return {
        "seconds": watch.ended - watch.begun,
        "tokens": watch.tokens,
        "payload": payload if "residual" in options["save"] else 0,
        "disk": bytes_below(out / "cube.zarr"),
        "gauge": watch.worst,
        "smi": smi_difference() if device == "cuda" else None,
        "host peak": memory("VmHWM"),
        "device peak": torch.cuda.max_memory_allocated() if device == "cuda" else None,
        "estimate": predicted.estimate,
    }


def profile(options: dict[str, Any]) -> dict[str, str]:
    """Extract a few batches under PyTorch's profiler; return two lines of time, and how much overlaps."""
    prepared = plan(**options, trial=False)
    few = {**options, "limit": int(np.searchsorted(prepared.plan.batches, PROFILED)) or 8}
    events = recorded(partial(extract, **few, listeners=[]))
    if not events:
        return {"timeline": "the profiler recorded nothing on a device"}
    return {
        **timeline(events),
        "share of the copying time in which a block is computed": f"{overlap(events):.0%}",
    }


def rows_of(kind: str, run: dict[str, Any], device: dict[str, float]) -> list[tuple[str, str]]:
    """Return what is printed of one kind of extraction."""
    seconds, time_ = run["seconds"], run["estimate"].time
    rows = [
        (f"{kind}: to the bare forward", f"{seconds / device['bare']:.2f}"),
        ("tokens/s", f"{run['tokens'] / seconds:,.0f}, bare {run['tokens'] / device['bare']:,.0f}"),
        ("reaches the disk, GB/s", f"{run['disk'] / GB / seconds:.2g}"),
        ("planned", str(time_)),
        ("host memory: peak, planned", _pair(run["host peak"], run["estimate"].host)),
    ]
    if run["payload"]:
        alone = {
            "computing": device["bare"],
            "crossing": run["payload"] / device["host"],
            "writing": run["disk"] / device["disk"],
        }
        rows.insert(2, ("reaches the host, GB/s", f"{run['payload'] / GB / seconds:.2g}"))
        named = ", ".join(f"{name} {took:.2f} s" for name, took in alone.items())
        rows.insert(4, ("binds, each alone", f"{max(alone, key=lambda name: alone[name])}: {named}"))
    if run["device peak"] is not None:
        rows.append(("device memory: peak, planned", _pair(run["device peak"], run["estimate"].device)))
    rows.append(("gauge: most off what the driver says", f"{run['gauge']:.1%}"))
    if run["smi"] is not None:
        rows.append(("gauge: off nvidia-smi after the run", f"{run['smi']:.1%}"))
    return rows


def _pair(peak: int, planned: int | None) -> str:
    return f"{readable_bytes(peak)}, {readable_bytes(planned or 0)} ({peak / (planned or 1):.2f} ×)"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, choices=["cuda", "cpu"])
    parser.add_argument("--shape", default="gemma", choices=list(SHAPES))
    parser.add_argument("--tokens", type=int, default=60_000, help="about how many (default: 60000)")
    parser.add_argument("--rounds", type=int, default=3, help="of the bare forward (default: 3)")
    parser.add_argument(
        "--out", type=Path, help="folder for the model and the runs (default: a temporary one)"
    )
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=chosen.out) as temporary:
        folder = Path(temporary)
        save_gemma(folder / "model", device=chosen.device, **SHAPES[chosen.shape])
        write_prompts(folder / "prompts.csv", chosen.tokens)
        options = {
            "model": str(folder / "model"),
            "data": str(folder / "prompts.csv"),
            "out": str(folder / "run"),
            "device": chosen.device,
            "storage": "bfloat16",
        }
        where = torch.cuda.get_device_name() if chosen.device == "cuda" else "the CPU"
        rows = [("device", f"{where}, torch {torch.__version__}, {os.cpu_count()} cores")]
        size = COPIED[chosen.shape]
        device = in_child(measure_device, options, chosen.rounds, size).value
        rows += [
            ("to the host, pinned, GB/s", f"{device['host'] / GB:.3g}"),
            ("to the disk, one file with fsync, GB/s", f"{device['disk'] / GB:.3g}"),
        ]
        for kind, more in KINDS.items():
            rows += rows_of(kind, in_child(measure_kind, {**options, **more}).value, device)
            for run in folder.glob("run*"):
                shutil.rmtree(run)
        residual = {**options, "save": ("residual",)}
        rows += list(in_child(profile, residual).value.items())
        rows.append(("all of this, minutes", f"{(time.perf_counter() - started) / 60:.1f}"))
    print_table([{"": name, f"{chosen.shape}, {chosen.tokens:,} tokens": text} for name, text in rows])


if __name__ == "__main__":
    main()
