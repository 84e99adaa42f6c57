"""One pass through the model, up to the last block that is wanted."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch

from ..schema import VISION
from .models.loading import LoadedModel
from .models.sites import hooks, site_output
from .prompts.encoding import Prompt, collate

EMBEDDING = ("embedding", 0)


class _LastLayer(Exception):  # noqa: N818 - no error: it ends a pass
    """Ends a forward pass once nothing more of it is wanted."""


def call(model: LoadedModel, prompts: Sequence[Prompt]) -> None:
    """Run a batch through the model, without its head."""
    inputs = collate(prompts, device=model.device)
    # only the whole model knows where images belong; the decoder alone is enough for text
    module = model.base if prompts[0].features else model.sites.decoder
    module(**inputs, use_cache=False)


def capture(
    model: LoadedModel, prompts: Sequence[Prompt], layers: Mapping[str, Sequence[int]], last: int
) -> dict[tuple[str, int], torch.Tensor]:
    """Run a batch and return what the wanted sites give.

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

    Returns
    -------
    dict
        By component and block, and ``EMBEDDING``: what enters the first block. Dims
        ``(sample, token, hidden)``; those of the vision tower as it lays out its patches.
    """
    captured: dict[tuple[str, int], torch.Tensor] = {}
    sites = model.sites

    def enter(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        captured[EMBEDDING] = args[0] if args else kwargs["hidden_states"]

    def leave(component: str, layer: int) -> Callable[..., None]:
        def keep(_module: Any, _args: Any, output: Any) -> None:
            tensor = site_output(output, captured.get(EMBEDDING))
            if component in sites.components:
                # some blocks add to what their parts give in place, once it has left them
                tensor = tensor * sites.scale if sites.scale != 1 else tensor.clone()
            captured[component, layer] = tensor

        return keep

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
    return captured
