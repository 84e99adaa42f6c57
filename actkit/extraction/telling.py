"""What a run will be and take, in words: for the shell, the app and notebooks alike."""

import psutil

from ..estimates import Rates, readable_bytes
from ..layers import describe_all
from .describing import Checked
from .knobs import knobs
from .memory import device_bytes
from .sizing import Sized


def tell_plan(run: Checked, sized: Sized, *, free: int, rates: Rates | None) -> list[tuple[str, str]]:
    """Return what each line is of, and what it says.

    Parameters
    ----------
    run, sized
        What is asked for, and how it is cut.
    free
        Bytes that are free on the disk of the run folder.
    rates
        What a trial measured; None where there was none.
    """
    plan, estimate = sized.plan, sized.estimate
    blocks = sum(map(len, run.layers.values()))
    window = min(plan.window, plan.shape.sample)
    most = f" of up to {sized.batch_tokens:,} tokens" if run.config.batch_size == "auto" else ""
    available = psutil.virtual_memory().available
    fits = estimate.host <= available
    lines = [
        ("model", f"{run.checkpoint.name}, {run.architecture.n_layers} layers × {plan.shape.hidden}"),
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
            f"{readable_bytes(free)} free",
        ),
        (
            "host memory",
            f"about {readable_bytes(estimate.host)}, {readable_bytes(available)} available"
            + ("" if fits else " now, which is too little"),
        ),
    ]
    if estimate.device is not None:
        there = readable_bytes(device_bytes(run.config) or 0)
        lines.append(("device memory", f"about {readable_bytes(estimate.device)} of {there}"))
    if estimate.time is not None:
        lines.append(("time", f"about {estimate.time}"))
    else:
        lines.append(
            ("time", "unknown without a trial" if fits else "unknown: too little memory for a trial")
        )
    helping = {what: knobs(run, sized, what, rates=rates) for what in ("time", "disk")}
    if best := [f"for {what}, {found[0].leads_to(what)}" for what, found in helping.items() if found]:
        lines.append(("helps most", "; ".join(best)))
    return lines
