"""Forward pass with hooks, up to the last block that is captured."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from ...schema import VISION
from ..models.hook_points import hook_output, hooks
from ..models.loader import LoadedModel
from ..prompts.encoder import Prompt, collate

EMBEDDING = "embedding"

# component, block, and its output: dims (sample, token, hidden), or the layout of the vision tower
Keep = Callable[[str, int, torch.Tensor], None]


class _LastLayer(Exception):  # noqa: N818 - not an error: it ends a pass
    """Ends a forward pass after the last captured block."""


def call(model: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Run a batch through the model without its head."""
    inputs = collate(prompts, device=model.device)
    # only the whole model inserts images; for text the decoder is enough
    module = model.base if prompts[0].features else model.hook_points.decoder
    module(**inputs, use_cache=False)


def run(
    model: LoadedModel, prompts: Sequence[Prompt], layers: Mapping[str, Sequence[int]], last: int, keep: Keep
) -> None:
    """Run a batch and pass on the output of each captured hook point as soon as it is computed.

    Parameters
    ----------
    model
        The loaded model.
    prompts
        The batch.
    layers
        Blocks to capture, by component.
    last
        Block of the decoder after which to stop.
    keep
        Called with the output of each hook point, and with the input of the first block as ``EMBEDDING``.
        It must not use the tensor after it returns: some blocks modify the output of their parts in place.
    """
    hook_points = model.hook_points
    entered: list[torch.Tensor] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])
        keep(EMBEDDING, 0, entered[0])

    def leave(component: str, layer: int) -> Callable[..., None]:
        def hand_over(_module: Any, _args: Any, output: Any) -> None:
            tensor = hook_output(output, entered[0] if entered else None)
            scaled = component in hook_points.components and hook_points.scale != 1
            keep(component, layer, tensor * hook_points.scale if scaled else tensor)

        return hand_over

    def stop(_module: Any, _args: Any, _output: Any) -> None:
        raise _LastLayer

    sources = {"residual": hook_points.blocks, VISION: model.vision, **hook_points.components}
    handles = [hook_points.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        sources[component][layer].register_forward_hook(leave(component, layer))
        for component, wanted in layers.items()
        for layer in wanted
    ]
    handles.append(hook_points.blocks[last].register_forward_hook(stop))
    with hooks(handles), suppress(_LastLayer):
        call(model, prompts)
