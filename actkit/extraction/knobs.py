"""Options that make a run smaller, with what each would lead to; and what does not fit without them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Fault
from ..estimates import Estimate, Rates, readable_bytes, readable_seconds
from ..layers import describe_all
from ..schema import OF_RESIDUAL, VARIABLES
from ..store.layout import CUBE
from .describing import Checked, weights_dtype
from .memory import device_bytes, host_bytes
from .sizing import Prompts, Sized, size_up

_HELPS = 0.9  # what an option leaves at most, to be worth a word
_FILLED = 0.95  # how much of the room is filled by as many samples as fit
_MOST = 4
# what cannot be put into figures
_ELSEWHERE = {
    "disk": ["or another disk"],
    "host": ["or another machine"],
    "device": ["device_map=auto", "or another device"],
}


@dataclass(frozen=True)
class Knob:
    """An option that makes a run smaller.

    Parameters
    ----------
    option
        As it is given: ``storage=bfloat16``.
    estimate
        What the run would take with it.
    """

    option: str
    estimate: Estimate

    def leads_to(self, what: str) -> str:
        """Write it with what the run would take of ``disk``, ``host``, ``device`` or ``time``."""
        amount = _amount(self.estimate, what)
        return f"{self.option} → {readable_seconds(amount) if what == 'time' else readable_bytes(amount)}"


def knobs(
    run: Checked, sized: Sized, what: str, *, room: float = math.inf, rates: Rates | None = None
) -> list[Knob]:
    """Return options that are not used yet and make a run smaller, the best first.

    Parameters
    ----------
    run
        What is asked for.
    sized
        How large that is.
    what
        ``disk``, ``host``, ``device`` or ``time``.
    room
        How much there is of it.
    rates
        What a trial measured; without it, nothing is known of time.
    """
    now = _amount(sized.estimate, what)
    if not now:  # of time, before a trial
        return []
    found = []
    for option, other, prompts in _others(run, sized, what, room / now):
        decided = sized.batch_tokens if other.config.dtype == run.config.dtype else None
        knob = Knob(option, size_up(other, prompts, batch_tokens=decided, rates=rates).estimate)
        if _amount(knob.estimate, what) <= _HELPS * now:
            found.append(knob)
    return sorted(found, key=lambda knob: _amount(knob.estimate, what))


def _amount(estimate: Estimate, what: str) -> float:
    if what == "time":
        return estimate.time.total if estimate.time else 0.0
    return float(getattr(estimate, what) or 0)


def _others(
    run: Checked, sized: Sized, what: str, fitting: float
) -> Iterator[tuple[str, Checked, Prompts | None]]:
    """Yield options that are not used yet, with the run and the prompts that each makes."""
    config, layers = run.config, run.layers
    prompts = Prompts(run.measure.lengths, run.measure.stored)

    def changed(**options: Any) -> Checked:
        return replace(run, config=config.model_copy(update=options))

    if config.storage == "exact" and weights_dtype(run) == "float32":
        yield "storage=bfloat16", changed(storage="bfloat16"), None
    if config.tokens in ("all", "content"):
        one = Prompts(prompts.lengths, np.minimum(prompts.stored, 1))
        yield "tokens=mean", changed(tokens="mean"), one
    small = [name for name in config.save if not VARIABLES[name].is_full]
    if "residual" in layers and len(small) < len(config.save):
        saved = small or [name for name in OF_RESIDUAL if not VARIABLES[name].is_full]
        yield f"save={','.join(saved)}", changed(save=tuple(saved)), None
    if any(len(blocks) > 1 for blocks in layers.values()):
        first = {name: blocks[: -(-len(blocks) // 2)] for name, blocks in layers.items()}
        yield f"layers={describe_all(first)}", replace(run, layers=first), None
    longest = int(prompts.lengths.max())
    # a frame around the texts may need more than half
    if config.max_tokens is None and not config.chats and config.template is None and longest > 1:
        half = -(-longest // 2)
        cut = Prompts(np.minimum(prompts.lengths, half), np.minimum(prompts.stored, half))
        yield f"max_tokens={half}", changed(max_tokens=half), cut
    count = int(len(prompts.lengths) * _FILLED * fitting) if what == "disk" and fitting < 1 else 0
    if count:
        count -= count % 10 ** max(len(str(count)) - 2, 0)
        few = Prompts(prompts.lengths[:count], prompts.stored[:count])
        yield f"limit={count}", changed(limit=count), few
    if what in ("host", "device"):
        yield from _of_memory(run, sized, changed)


def _of_memory(run: Checked, sized: Sized, changed: Any) -> Iterator[tuple[str, Checked, None]]:
    config = run.config
    if weights_dtype(run) == "float32":
        yield "dtype=bfloat16", changed(dtype="bfloat16"), None
    quantized = config.quantization or getattr(run.architecture.full, "quantization_config", None)
    if not quantized and device_bytes(config) is not None:
        for bits in ("8bit", "4bit"):
            yield f"quantization={bits}", changed(quantization=bits), None
    if config.batch_size != "auto":
        yield "batch_size=auto", changed(batch_size="auto"), None
    used = 1024 if config.memory_budget == "auto" else config.memory_budget
    budget = max(2, used // 4)
    if budget < used:
        yield f"memory_budget={budget}", changed(memory_budget=budget), None


def find_excess(run: Checked, sized: Sized, free: int) -> list[Fault]:
    """Find what a run needs more of than there is.

    Parameters
    ----------
    run
        What is asked for.
    sized
        How large that is.
    free
        Bytes free on the disk of the run folder.
    """
    faults = []
    folder = Path(run.config.out)
    needs = sized.estimate
    if needs.disk > free and not (folder / CUBE).exists():
        faults.append(_excess(run, sized, "disk", f"out {folder}", free, "are free"))
    if needs.host > (all_of_it := host_bytes()):
        faults.append(_excess(run, sized, "host", "host memory", all_of_it, "is all there is"))
    own = device_bytes(run.config)
    # accelerate puts what is left over elsewhere
    if own is not None and sized.weights > own and run.config.device_map is None:
        faults.append(_excess(run, sized, "device", "device memory", own, "is all there is"))
    return faults


def _excess(run: Checked, sized: Sized, what: str, where: str, room: int, there: str) -> Fault:
    needed = readable_bytes(_amount(sized.estimate, what))
    found = [knob.leads_to(what) for knob in knobs(run, sized, what, room=room)[:_MOST]]
    mend = ", ".join([*found, *_ELSEWHERE[what]])
    return Fault(where, f"needs about {needed}, and {readable_bytes(room)} {there}", mend)
