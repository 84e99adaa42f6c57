"""Make sure that what the blocks give is what transformers says that they give."""

from typing import Any

import torch

from ...errors import ModelError
from .sites import Sites, hooks, site_output


@torch.inference_mode()
def check_blocks(sites: Sites, device: torch.device, hidden: int) -> None:
    """Compare the captured streams with transformers' own hidden states, on a few tokens.

    Parameters
    ----------
    sites
        The blocks.
    device
        Where inputs go.
    hidden
        Width of the residual stream.

    Raises
    ------
    ModelError
        Where shapes or numbers differ: the architecture would be captured wrongly.
    """
    name, n_layers = type(sites.decoder).__name__, len(sites.blocks)
    streams, steps, given = _run(sites, torch.arange(1, 5, device=device)[None])
    shape = (1, 4, hidden)
    if len(streams) != n_layers + 1 or any(tensor.shape != shape for tensor in streams):
        shapes = sorted({tuple(tensor.shape) for tensor in streams})
        raise ModelError(f"{name}: {len(streams) - 1} blocks gave shapes {shapes}, not {n_layers} × {shape}")
    expected = getattr(given, "hidden_states", None)
    if expected is None or len(expected) != n_layers + 1:
        raise ModelError(f"{name}: transformers gives no hidden states of each block to check against")
    # most architectures count from what enters the first block, state space models from what leaves it
    first = 0 if _same(streams[0], expected[0]) else 1
    for layer, theirs in enumerate(expected[:-1]):
        if not _same(streams[layer + first], theirs):
            block = max(layer + first - 1, 0)
            raise ModelError(f"{name}: block {block} does not give hidden_states[{layer}] of transformers")
    # their last one is after the final norm, and whatever else follows the blocks
    reached = [streams[-1]]
    for before, after in steps:
        if any(_same(before, tensor) for tensor in reached):
            reached.append(after)
    if not any(_same(tensor, given.last_hidden_state) for tensor in reached):
        last = n_layers - 1
        raise ModelError(f"{name}: block {last} does not lead to last_hidden_state of transformers")


def _run(sites: Sites, ids: torch.Tensor) -> tuple[list[torch.Tensor], list[tuple[Any, Any]], Any]:
    """Return the streams before and after each block, what other modules made of what, and the output."""
    streams: list[torch.Tensor] = []
    steps: list[tuple[Any, Any]] = []

    def enter(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # cloned: what a later module would change in place must not be taken for what was given
        streams.append((args[0] if args else kwargs["hidden_states"]).clone())

    def leave(_module: Any, _args: Any, output: Any) -> None:
        streams.append(site_output(output).clone())

    def follow(_module: Any, args: tuple[Any, ...], output: Any) -> None:
        steps.append((args[0] if args else None, output))

    known = {sites.decoder, *(module for block in sites.blocks for module in block.modules())}
    handles = [sites.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [block.register_forward_hook(leave) for block in sites.blocks]
    handles += [m.register_forward_hook(follow) for m in sites.decoder.modules() if m not in known]
    try:
        with hooks(handles):
            output = sites.decoder(
                input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, output_hidden_states=True
            )
    except ModelError:
        raise
    except Exception as error:  # whatever an architecture does with tokens that it does not take
        name = type(sites.decoder).__name__
        raise ModelError(f"{name}: cannot be run on plain tokens: {error}") from error
    return streams, steps, output


def _same(ours: Any, theirs: Any) -> bool:
    """Compare all values to the bit; NaN equals NaN."""
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return False
    if ours.numel() != theirs.numel():
        return False
    ours, theirs = ours.flatten().to(theirs.device), theirs.flatten()
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
