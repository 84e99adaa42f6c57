"""Edits of the residual stream along a direction: removal, addition, and a fixed position."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from ..extraction.models.hook_points import HookPoints, hooks
from ..features.replacement import replaced


@contextmanager
def ablated(hook_points: HookPoints, direction: torch.Tensor) -> Iterator[None]:
    """Remove a direction from everything that the blocks write to the residual stream.

    Parameters
    ----------
    hook_points
        Hook points of the model.
    direction
        Dims ``(hidden,)``, of any length above 0.

    Notes
    -----
    The component along the direction is subtracted from the input of the first block, from the output of
    every block and, where the model has them as components, of every attention and MLP, as in Arditi et al.
    2024.
    """
    remove = partial(_removed, direction / direction.norm())
    sites: dict[Any, tuple[torch.nn.Module, ...]] = {
        "residual": hook_points.blocks,
        **hook_points.components,
    }

    def enter(
        _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (remove(args[0]).to(args[0]), *args[1:]), kwargs
        stream = kwargs["hidden_states"]
        return args, {**kwargs, "hidden_states": remove(stream).to(stream)}

    with ExitStack() as stack:
        stack.enter_context(hooks([hook_points.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]))
        for component, modules in sites.items():
            for layer in range(len(modules)):
                stack.enter_context(replaced(hook_points, component, layer, remove))
        yield


@contextmanager
def added(hook_points: HookPoints, direction: torch.Tensor, layer: int) -> Iterator[None]:
    """Add a direction to the output of a block, at all positions.

    Parameters
    ----------
    hook_points
        Hook points of the model.
    direction
        Dims ``(hidden,)``.
    layer
        The block.
    """
    with replaced(hook_points, "residual", layer, lambda stream: stream + direction.to(stream)):
        yield


@contextmanager
def clamped(
    hook_points: HookPoints, direction: torch.Tensor, target: torch.Tensor, layer: int
) -> Iterator[None]:
    """Move the output of a block along a direction to a fixed coordinate, at all positions.

    Parameters
    ----------
    hook_points
        Hook points of the model.
    direction
        Dims ``(hidden,)``, of any length above 0.
    target
        A point with the coordinate that the output is given along the direction, dims ``(hidden,)``.
    layer
        The block.
    """
    unit = direction / direction.norm()

    def moved(stream: torch.Tensor) -> torch.Tensor:
        wide = stream.float()
        return wide + ((target - wide) @ unit.to(wide))[..., None] * unit.to(wide)

    target = target.float()
    with replaced(hook_points, "residual", layer, moved):
        yield


def _removed(unit: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    wide = output.float()
    along = unit.to(wide)
    removed: torch.Tensor = wide - (wide @ along)[..., None] * along
    return removed


def random_like(directions: Mapping[int, torch.Tensor], seed: int) -> dict[int, torch.Tensor]:
    """Return a random direction of the same length for each layer, dims ``(hidden,)``."""
    drawn = {}
    for layer, direction in directions.items():
        noise = torch.from_numpy(np.random.default_rng([seed, layer]).standard_normal(len(direction)))
        drawn[layer] = (noise / noise.norm() * direction.norm()).to(direction.dtype)
    return drawn
