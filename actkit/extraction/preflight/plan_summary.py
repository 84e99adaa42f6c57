"""Summary of a plan as text, for the command line, the app and notebooks."""

from dataclasses import replace
from typing import Any

import psutil
import torch

from ...estimates import Rates, readable_bytes
from ...layer_spec import describe_all
from ...object_urls import is_url
from ...shared_estimates import SharedTime, count_files
from ..models.devices import pick_device
from .model_memory import device_bytes
from .run_metadata import RunSpec
from .run_size import RunSize, size_run
from .suggestions import suggest


def summary_lines(
    run: RunSpec,
    size: RunSize,
    *,
    free: int,
    rates: Rates | None,
    parts: int | None = None,
    network: float | None = None,
) -> list[tuple[str, str]]:
    """Return the name and the text of each line of the summary.

    Parameters
    ----------
    run, size
        Specification and size of the run.
    free
        Bytes free on the disk of the run folder.
    rates
        Rates measured by a trial; None without one.
    parts
        Number of parts that run at once; None for a run in one process.
    network
        Bandwidth that they share, in gigabits per second.
    """
    plan, estimate = size.plan, size.estimate
    blocks = sum(map(len, run.layers.values()))
    window = min(plan.window, plan.shape.sample)
    most = f" of up to {size.batch_tokens:,} tokens" if run.config.batch_size == "auto" else ""
    available = psutil.virtual_memory().available
    fits = estimate.host <= available
    lines = [
        ("model", f"{run.checkpoint.name}, {run.architecture.n_layers} layers × {plan.shape.hidden}"),
        *([("stored as", run.checkpoint.gguf.quantization)] if run.checkpoint.gguf else []),
        *([("adapter", str(run.checkpoint.adapter.folder))] if run.checkpoint.adapter else []),
        ("layers kept", f"{blocks}: {describe_all(run.layers)}"),
        ("samples", f"{plan.shape.sample:,} in {', '.join(run.scan.languages)}"),
        *([("skipped", f"{len(run.scan.skipped):,} rows")] if run.scan.skipped else []),
        (
            "tokens",
            f"{plan.tokens:,}, longest prompt {plan.lengths.max()}, "
            f"padded {plan.padded_tokens / plan.tokens:.2f}×",
        ),
        ("truncated", f"{int(run.measure.truncated.sum()):,} samples"),
        ("windows", f"{plan.n_windows:,} of {window} samples, {plan.n_batches:,} batches{most}"),
        (
            "disk",
            f"about {readable_bytes(estimate.disk)} ({readable_bytes(estimate.dense)} dense), "
            + (f"in {run.config.out}" if is_url(run.config.out) else f"{readable_bytes(free)} free"),
        ),
        (
            "host memory",
            f"about {readable_bytes(estimate.host)}, {readable_bytes(available)} available"
            + ("" if fits else " now, which is not enough"),
        ),
    ]
    if estimate.device is not None:
        total = readable_bytes(device_bytes(run.config) or 0)
        lines.append(("device memory", f"about {readable_bytes(estimate.device)} of {total}"))
    if estimate.time is not None:
        lines.append(("time", f"about {estimate.time}"))
    else:
        lines.append(
            ("time", "unknown without a trial" if fits else "unknown: not enough memory for a trial")
        )
    files = count_files(plan, size.variables, layers=size.kept, value_bytes=size.value_bytes)
    lines.insert([name for name, _ in lines].index("disk") + 1, ("files", str(files)))
    if parts is not None or network is not None:
        time = estimate.time
        whole = None if time is None else time.total - time.starting
        shared = SharedTime(parts or 1, estimate.disk, files.requests, whole, network)
        lines.append(("parts", f"{shared.parts}: {shared}"))
    if _is_emulated(run):
        advice = "dtype=float32 computes with the same weights, several times faster"
        text = f"{run.weights_dtype}: this CPU multiplies 16-bit matrices slowly; {advice}"
        lines.append(("dtype", text))
    if run.config.sparse is not None:
        lines.insert(
            [name for name, _ in lines].index("disk") + 1, ("sparse", _sparse_text(run, size, rates))
        )
    suggestions = {resource: suggest(run, size, resource, rates=rates) for resource in ("time", "disk")}
    if best := [
        f"for {resource}, {first[0].text(resource)}" for resource, first in suggestions.items() if first
    ]:
        lines.append(("helps most", "; ".join(best)))
    return lines


def _sparse_text(run: RunSpec, size: RunSize, rates: Rates | None) -> str:
    """Return what a run keeps of each vector, and the size of the cube with whole vectors."""
    whole = replace(run, config=run.config.model_copy(update={"sparse": None}))
    disk = size_run(whole, batch_tokens=size.batch_tokens, rates=rates).estimate.disk
    share = size.estimate.disk / max(disk, 1)
    return (
        f"{run.config.sparse} of the {size.plan.shape.hidden:,} entries of each vector: {share:.0%} of the "
        f"{readable_bytes(disk)} with whole vectors"
    )


def _is_emulated(run: RunSpec) -> bool:
    """Return whether the CPU that multiplies matrices lacks instructions for the dtype of the weights."""
    dtype = run.weights_dtype
    if "16" not in dtype or pick_device(run.config.device).type != "cpu" or run.quantized:
        return False
    library: Any = torch.backends.mkldnn
    if not library.is_available():  # a build without oneDNN also lacks its operators
        return True
    if dtype == "bfloat16":
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return not torch.ops.mkldnn._is_mkldnn_fp16_supported()
