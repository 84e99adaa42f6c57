"""Edits of the residual stream along a direction: removal, addition, and a fixed position."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from ..extraction.models.hook_points import HookPoints
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
    The component along the direction is subtracted from the output of every block and, where the model has
    them as components, of every attention and MLP, as in Arditi et al. 2024.
    """
    remove = partial(_removed, direction / direction.norm())
    sites = {"residual": hook_points.blocks, **hook_points.components}
    with ExitStack() as stack:
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
    return wide - (wide @ along)[..., None] * along


def random_like(directions: Mapping[int, torch.Tensor], seed: int) -> dict[int, torch.Tensor]:
    """Return a random direction of the same length for each layer, dims ``(hidden,)``."""
    drawn = {}
    for layer, direction in directions.items():
        generator = torch.Generator().manual_seed(hash((seed, layer)) % 2**63)
        noise = torch.randn(len(direction), generator=generator, dtype=torch.float64)
        drawn[layer] = (noise / noise.norm() * direction.norm()).to(direction.dtype)
    return drawn
