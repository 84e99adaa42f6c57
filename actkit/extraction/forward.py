"""One pass through the model, up to the last block that is wanted."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from ..schema import VISION
from .models.loading import LoadedModel
from .models.sites import hooks, site_output
from .prompts.encoding import Prompt, collate

EMBEDDING = "embedding"

# component, block, and what it gave: dims (sample, token, hidden), of the vision tower as it lays them out
Keep = Callable[[str, int, torch.Tensor], None]


class _LastLayer(Exception):  # noqa: N818 - no error: it ends a pass
    """Ends a forward pass once nothing more of it is wanted."""


def call(model: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Run a batch through the model, without its head."""
    inputs = collate(prompts, device=model.device)
    # only the whole model knows where images belong; the decoder alone is enough for text
    module = model.base if prompts[0].features else model.sites.decoder
    module(**inputs, use_cache=False)


def run(
    model: LoadedModel, prompts: Sequence[Prompt], layers: Mapping[str, Sequence[int]], last: int, keep: Keep
) -> None:
    """Run a batch and hand over what the wanted sites give, as soon as they give it.

    Parameters
    ----------
    model
        The loaded model.
    prompts
        The batch.
    layers
        Component to the wanted blocks.
    last
        The decoder's block at which to stop.
    keep
        Called with each site's output, and with ``EMBEDDING``: what enters the first block. It must be
        done with the tensor when it returns: some blocks change in place what has left their parts.
    """
    sites = model.sites
    entered: list[torch.Tensor] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])
        keep(EMBEDDING, 0, entered[0])

    def leave(component: str, layer: int) -> Callable[..., None]:
        def hand_over(_module: Any, _args: Any, output: Any) -> None:
            tensor = site_output(output, entered[0] if entered else None)
            scaled = component in sites.components and sites.scale != 1
            keep(component, layer, tensor * sites.scale if scaled else tensor)

        return hand_over

    def stop(_module: Any, _args: Any, _output: Any) -> None:
        raise _LastLayer

    sources = {"residual": sites.blocks, VISION: model.vision, **sites.components}
    handles = [sites.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [
        sources[component][layer].register_forward_hook(leave(component, layer))
        for component, wanted in layers.items()
        for layer in wanted
    ]
    handles.append(sites.blocks[last].register_forward_hook(stop))
    with hooks(handles), suppress(_LastLayer):
        call(model, prompts)
