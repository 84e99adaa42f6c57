"""Replacement of the output of a component during forward passes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import Fault, InputError
from ..extraction.models.hook_points import HookPoints, hook_output, hooks
from ..schema import Component

# takes the output of a component as a cube stores it, dims (sample, token, hidden), and returns another
Replace = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def replaced(
    hook_points: HookPoints,
    component: Component,
    layer: int,
    replace: Replace,
    *,
    where: torch.Tensor | None = None,
) -> Iterator[None]:
    """Replace the output of a component in all forward passes within the context.

    Parameters
    ----------
    hook_points
        Hook points of the model.
    component, layer
        Site of the output, as in a cube.
    replace
        Function of the output in the units of a cube, dims ``(sample, token, hidden)``, in the dtype of the
        model. Its result may have another floating-point dtype; it is cast to that of the output.
    where
        Positions that are replaced, boolean, dims ``(sample, token)``; all by default. Others keep their
        value to the bit.

    Raises
    ------
    InputError
        If the model has no such site.

    Notes
    -----
    Contexts may be nested; at the same site, the inner one receives what the outer one returned.
    """
    modules = {"residual": hook_points.blocks, **hook_points.components}.get(component, ())
    if not 0 <= layer < len(modules):
        known = ", ".join(f"{name} 0-{len(hook_points.blocks) - 1}" for name in _components(hook_points))
        what = f"the model has no {component} of layer {layer}"
        raise InputError([Fault("layer", what, f"it has {known}")])
    scale = hook_points.scale if component in hook_points.components else 1.0
    entered: list[torch.Tensor] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        entered[:] = [args[0] if args else kwargs["hidden_states"]]

    def leave(_module: Any, _args: Any, output: Any) -> Any:
        tensor = hook_output(output, entered[0])
        new = replace(tensor * scale if scale != 1 else tensor).to(tensor)
        new = new / scale if scale != 1 else new
        if where is not None:
            new = torch.where(where.to(tensor.device)[..., None], new, tensor)
        return _with_tensor(output, new)

    handles = [
        hook_points.blocks[layer].register_forward_pre_hook(enter, with_kwargs=True),
        modules[layer].register_forward_hook(leave),
    ]
    with hooks(handles):
        yield


def _components(hook_points: HookPoints) -> list[str]:
    return ["residual", *hook_points.components]


def _with_tensor(output: Any, tensor: torch.Tensor) -> Any:
    """Return the output of a module with another tensor, in the original's form and shape."""
    if not isinstance(output, tuple | list):
        return tensor.reshape(output.shape)
    return type(output)([tensor.reshape(output[0].shape), *output[1:]])
