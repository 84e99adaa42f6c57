"""Suggestions of options that make a run smaller, and faults of runs that do not fit."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import Fault
from ...estimates import Estimate, Rates, readable_bytes, readable_seconds
from ...layer_spec import describe_all
from ...schema import OF_RESIDUAL, SAVED, VARIABLES
from ...store.layout import CUBE
from .model_memory import device_bytes, host_bytes
from .run_metadata import RunSpec
from .run_size import Lengths, RunSize, size_run

_WORTHWHILE = 0.9  # largest remaining share with an option worth suggesting
_FILLED = 0.95  # share of the space that the suggested limit fills
_MOST = 4
# alternatives that cannot be quantified
_ELSEWHERE = {
    "disk": ["or another disk"],
    "host": ["or another machine"],
    "device": ["device_map=auto", "or another device"],
}


@dataclass(frozen=True)
class Suggestion:
    """Option that makes a run smaller.

    Parameters
    ----------
    option
        The option with its value, such as ``storage=bfloat16``.
    estimate
        Estimate of the run with the option.
    """

    option: str
    estimate: Estimate

    def text(self, resource: str) -> str:
        """Return the option with the ``disk``, ``host``, ``device`` or ``time`` that the run would take."""
        amount = _amount(self.estimate, resource)
        return f"{self.option} → {readable_seconds(amount) if resource == 'time' else readable_bytes(amount)}"


def suggest(
    run: RunSpec, size: RunSize, resource: str, *, room: float = math.inf, rates: Rates | None = None
) -> list[Suggestion]:
    """Return unused options that make a run smaller, the most effective first.

    Parameters
    ----------
    run
        Specification of the run.
    size
        Size of the run.
    resource
        ``disk``, ``host``, ``device`` or ``time``.
    room
        Available amount of it.
    rates
        Rates measured by a trial, without which time is unknown.
    """
    now = _amount(size.estimate, resource)
    if not now:  # time before a trial
        return []
    suggestions = []
    for option, changed, prompts in _alternatives(run, size, resource, room / now):
        batch_tokens = size.batch_tokens if changed.config.dtype == run.config.dtype else None
        estimate = size_run(changed, prompts, batch_tokens=batch_tokens, rates=rates).estimate
        if _amount(estimate, resource) <= _WORTHWHILE * now:
            suggestions.append(Suggestion(option, estimate))
    return sorted(suggestions, key=lambda suggestion: _amount(suggestion.estimate, resource))


def _amount(estimate: Estimate, resource: str) -> float:
    if resource == "time":
        return estimate.time.total if estimate.time else 0.0
    return float(getattr(estimate, resource) or 0)


def _alternatives(
    run: RunSpec, size: RunSize, resource: str, fitting: float
) -> Iterator[tuple[str, RunSpec, Lengths | None]]:
    """Yield unused options, each with the changed run and the lengths of its prompts."""
    config, layers = run.config, run.layers
    prompts = Lengths(run.measure.lengths, run.measure.stored)

    def changed(**options: Any) -> RunSpec:
        return replace(run, config=config.model_copy(update=options))

    if config.storage == "exact" and run.weights_dtype == "float32":
        yield "storage=bfloat16", changed(storage="bfloat16"), None
    if config.keep_tokens in ("all", "content"):
        means = Lengths(prompts.lengths, np.minimum(prompts.stored, 1))
        yield "keep_tokens=mean", changed(keep_tokens="mean"), means
    small = [name for name in config.save if not VARIABLES[name].is_full]
    if "residual" in layers and len(small) < len(config.save):
        saved = small or [name for name in SAVED if name in OF_RESIDUAL and not VARIABLES[name].is_full]
        yield f"save={','.join(saved)}", changed(save=tuple(saved)), None
    if any(len(blocks) > 1 for blocks in layers.values()):
        first = {name: blocks[: -(-len(blocks) // 2)] for name, blocks in layers.items()}
        yield f"layers={describe_all(first)}", replace(run, layers=first), None
    longest = int(prompts.lengths.max())
    # a template may take more than half of the tokens
    if config.max_tokens is None and not config.chats and config.template is None and longest > 1:
        half = -(-longest // 2)
        cut = Lengths(np.minimum(prompts.lengths, half), np.minimum(prompts.stored, half))
        yield f"max_tokens={half}", changed(max_tokens=half), cut
    count = int(len(prompts.lengths) * _FILLED * fitting) if resource == "disk" and fitting < 1 else 0
    if count:
        count -= count % 10 ** max(len(str(count)) - 2, 0)
        few = Lengths(prompts.lengths[:count], prompts.stored[:count])
        yield f"limit={count}", changed(limit=count), few
    if resource in ("host", "device"):
        yield from _memory_alternatives(run, size, changed)


def _memory_alternatives(run: RunSpec, size: RunSize, changed: Any) -> Iterator[tuple[str, RunSpec, None]]:
    config = run.config
    if run.weights_dtype == "float32":
        yield "dtype=bfloat16", changed(dtype="bfloat16"), None
    checkpoint = run.checkpoint
    # adapters are merged only into weights that are not quantized
    fixed = config.quantization or run.architecture.quantization or checkpoint.gguf or checkpoint.adapter
    if not fixed and device_bytes(config) is not None:
        for bits in ("8bit", "4bit"):
            yield f"quantization={bits}", changed(quantization=bits), None
    if config.batch_size != "auto":
        yield "batch_size=auto", changed(batch_size="auto"), None
    used = 1024 if config.memory_budget == "auto" else config.memory_budget
    budget = max(2, used // 4)
    if budget < used:
        yield f"memory_budget={budget}", changed(memory_budget=budget), None


def find_excess(run: RunSpec, size: RunSize, free: int) -> list[Fault]:
    """Return a fault for each resource that is insufficient for a run.

    Parameters
    ----------
    run
        Specification of the run.
    size
        Size of the run.
    free
        Bytes free on the disk of the run folder.
    """
    faults = []
    folder = Path(run.config.out)
    needs = size.estimate
    if needs.disk > free and not (folder / CUBE).exists():
        faults.append(_excess(run, size, "disk", f"out {folder}", free, "free"))
    if needs.host > (host := host_bytes()):
        faults.append(_excess(run, size, "host", "host memory", host, "in total"))
    device = device_bytes(run.config)
    # accelerate places the excess elsewhere
    if device is not None and size.weights > device and run.config.device_map is None:
        faults.append(_excess(run, size, "device", "device memory", device, "in total"))
    return faults


def _excess(run: RunSpec, size: RunSize, resource: str, name: str, room: int, kind: str) -> Fault:
    needed = readable_bytes(_amount(size.estimate, resource))
    options = [option.text(resource) for option in suggest(run, size, resource, room=room)[:_MOST]]
    elsewhere = _ELSEWHERE[resource]
    if run.checkpoint.adapter:  # adapters are merged on one device
        elsewhere = [option for option in elsewhere if option != "device_map=auto"]
    advice = ", ".join([*options, *elsewhere])
    return Fault(name, f"needs about {needed}, but there are only {readable_bytes(room)} {kind}", advice)
