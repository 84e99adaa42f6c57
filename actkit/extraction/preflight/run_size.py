"""Size of a run: windows and batches, and estimates of disk, memory and time."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ...batch_plan import AUTO_TOKENS, Plan, Shape, footprint, make_plan
from ...estimates import Estimate, Rates, estimate
from ...schema import COMPONENTS, VISION
from ..capture.spec import layer_axis
from ..capture.vision import vision_hidden
from ..models.devices import share_cores
from .model_memory import auto_tokens, device_bytes, loading_bytes, position_bytes, weights_bytes
from .run_metadata import RunSpec, window_variables


@dataclass(frozen=True)
class RunSize:
    """Windows and batches of a run, and their cost.

    Parameters
    ----------
    plan
        Windows and batches.
    variables
        Names of the variables that are written by window.
    batch_tokens
        Maximum number of tokens of a batch, padding included, if ``batch_size`` is ``auto``.
    estimate
        Estimate of disk, memory and time.
    kept
        Number of layers kept of each component.
    value_bytes
        Informative bytes per value of `residual`.
    weights
        Bytes of the weights of the model.
    token_bytes, sample_bytes
        Memory of a window for each kept position, and in addition for each sample.
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
class Lengths:
    """Lengths of the prompts of a run, dims ``(sample,)``.

    Parameters
    ----------
    lengths
        Number of tokens.
    stored
        Maximum number of kept positions.
    """

    lengths: np.ndarray
    stored: np.ndarray


def size_run(
    run: RunSpec,
    prompts: Lengths | None = None,
    *,
    batch_tokens: int | None = None,
    rates: Rates | None = None,
) -> RunSize:
    """Divide a run into windows and batches, and estimate their cost.

    Parameters
    ----------
    run
        Specification of the run.
    prompts
        Lengths to use instead of those of the run.
    batch_tokens
        Maximum number of tokens of a batch, if already determined.
    rates
        Rates measured by a trial.
    """
    config, architecture, layers, measure = run.config, run.architecture, run.layers, run.measure
    prompts = prompts or Lengths(measure.lengths, measure.stored)
    variables = window_variables(config, layers)
    dtype = run.weights_dtype
    vision = None
    if VISION in layers:
        tower = len(layers[VISION]), len(prompts.lengths), measure.patches
        vision = Shape(*tower, vision_hidden(architecture))
    kept = {name: len(layers[name]) for name in COMPONENTS if name in layers}
    value_bytes = 2 if "16" in dtype or config.storage != "exact" else 4
    axis, hidden, k = layer_axis(layers), architecture.hidden, config.sparse or 0
    weights = weights_bytes(run.checkpoint, dtype, config.quantization, declared=architecture.quantization)
    position = position_bytes(architecture, sum(kept.values()) + ("embedding" in variables), dtype)
    total = device_bytes(config)
    if batch_tokens is None:
        batch_tokens = AUTO_TOKENS if total is None else auto_tokens(total, weights, position)
    token, sample = footprint(
        variables, kept, Shape(len(axis), 1, 1, hidden, k), vision and replace(vision, sample=1), value_bytes
    )
    plan = make_plan(
        config,
        prompts.lengths,
        layers=len(axis),
        hidden=hidden,
        k=k,
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
        host_bytes=weights + _concurrent_bytes(run, plan, dtype) if total is None else 0,
        loading_bytes=loading_bytes(run.checkpoint, hidden, dtype),
        device_bytes=on_device,
        depth=axis[-1] + 1,
        gathered=_moment_bytes(run),
        rates=rates,
    )
    return RunSize(plan, variables, batch_tokens, needs, kept, value_bytes, weights, token, sample)


def _moment_bytes(run: RunSpec) -> int:
    """Return the memory of the moments of all languages and layers."""
    if not run.config.whiten or "residual" not in run.layers:
        return 0
    return 8 * run.architecture.hidden**2 * len(run.layers["residual"]) * len(run.scan.languages)


def _concurrent_bytes(run: RunSpec, plan: Plan, dtype: str) -> int:
    """Return the memory of all concurrent passes but one."""
    others = share_cores(run.config, quantized=run.quantized).batches - 1
    return others * position_bytes(run.architecture, 0, dtype) * int(plan.batch_positions.max())
