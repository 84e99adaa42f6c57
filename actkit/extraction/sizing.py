"""How large a run is: its windows and batches, and what they take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..estimates import Estimate, Rates, estimate
from ..planning import AUTO_TOKENS, Plan, Shape, footprint, make_plan
from ..schema import COMPONENTS, VISION
from .describing import Checked, weights_dtype, window_variables
from .memory import auto_tokens, device_bytes, position_bytes, weights_bytes
from .selection import layer_axis
from .sharing import share_cores
from .vision import vision_hidden


@dataclass(frozen=True)
class Sized:
    """A run that was cut into windows and batches.

    Parameters
    ----------
    plan
        Its windows and batches.
    variables
        Names of the variables that are written by window.
    batch_tokens
        Most tokens of a batch, pads included, where its size is ``auto``.
    estimate
        What it takes.
    kept
        Number of layers kept of each component.
    value_bytes
        Bytes of a value of `residual` that carry information.
    weights
        Bytes of the model's weights.
    token_bytes, sample_bytes
        Memory that a window takes for each position that is kept, and for each sample beside.
    """

    plan: Plan
    variables: tuple[str, ...]
    batch_tokens: int
    estimate: Estimate
    kept: Mapping[str, int]
    value_bytes: int
    weights: int
    token_bytes: int
    sample_bytes: int


@dataclass(frozen=True)
class Prompts:
    """How long the prompts of a run are, dims ``(sample,)``.

    Parameters
    ----------
    lengths
        Number of tokens.
    stored
        Most positions that are kept.
    """

    lengths: np.ndarray
    stored: np.ndarray


def size_up(
    run: Checked,
    prompts: Prompts | None = None,
    *,
    batch_tokens: int | None = None,
    rates: Rates | None = None,
) -> Sized:
    """Cut a run into windows and batches, and predict what it takes.

    Parameters
    ----------
    run
        What is asked for.
    prompts
        Other ones than the run's own.
    batch_tokens
        Most tokens of a batch, if that is decided.
    rates
        What a trial measured.
    """
    config, architecture, layers, measure = run.config, run.architecture, run.layers, run.measure
    prompts = prompts or Prompts(measure.lengths, measure.stored)
    variables, dtype = window_variables(config, layers), weights_dtype(run)
    vision = None
    if VISION in layers:
        tower = len(layers[VISION]), len(prompts.lengths), measure.patches
        vision = Shape(*tower, vision_hidden(architecture))
    kept = {name: len(layers[name]) for name in COMPONENTS if name in layers}
    value_bytes = 2 if "16" in dtype or config.storage != "exact" else 4
    axis, hidden = layer_axis(layers), architecture.hidden
    weights = weights_bytes(run.checkpoint, dtype, config.quantization)
    position = position_bytes(architecture, sum(kept.values()) + ("embedding" in variables), dtype)
    total = device_bytes(config)
    if batch_tokens is None:
        batch_tokens = AUTO_TOKENS if total is None else auto_tokens(total, weights, position)
    token, sample = footprint(
        variables, kept, Shape(len(axis), 1, 1, hidden), vision and replace(vision, sample=1), value_bytes
    )
    plan = make_plan(
        config,
        prompts.lengths,
        layers=len(axis),
        hidden=hidden,
        token_bytes=token,
        sample_bytes=sample,
        stored=prompts.stored,
        vision=vision,
        new_tokens=config.generate.max_new_tokens if config.generate else 0,
        boundary=architecture.boundary,
        batch_tokens=batch_tokens,
    )
    on_device = None if total is None else weights + position * int(plan.batch_positions.max())
    needs = estimate(
        plan,
        variables,
        layers=kept,
        value_bytes=value_bytes,
        host_bytes=weights + _beside(run, plan, dtype) if total is None else 0,
        device_bytes=on_device,
        depth=axis[-1] + 1,
        gathered=_gathered(run),
        rates=rates,
    )
    return Sized(plan, variables, batch_tokens, needs, kept, value_bytes, weights, token, sample)


def _gathered(run: Checked) -> int:
    """Return what moments take, of each language and layer."""
    if not run.config.whiten or "residual" not in run.layers:
        return 0
    return 8 * run.architecture.hidden**2 * len(run.layers["residual"]) * len(run.scan.languages)


def _beside(run: Checked, plan: Plan, dtype: str) -> int:
    """Return what the passes hold that run beside the first one."""
    others = share_cores(run.config).batches - 1
    return others * position_bytes(run.architecture, 0, dtype) * int(plan.batch_positions.max())
