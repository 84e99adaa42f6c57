"""Make sure that what fills up the shorter prompts of a batch changes nothing."""

from typing import Any, Literal

import torch

from ..errors import ModelError
from .sites import Sites, hooks, site_output

_TOKENS = 4
# of the largest value of a block: scattered sums of experts need not be the same to the bit on a GPU
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@torch.inference_mode()
def check_padding(sites: Sites, device: torch.device, side: Literal["right", "left"] = "right") -> None:
    """Run one prompt twice in a batch, filled up with different tokens, and compare what it gives.

    Parameters
    ----------
    sites
        The blocks.
    device
        Where inputs go.
    side
        Where prompts are filled up.

    Raises
    ------
    ModelError
        Where the architecture does not keep the masked tokens out: it mixes all positions, or carries
        them along in a state.
    """
    prompt = torch.arange(1, _TOKENS + 1).expand(2, _TOKENS)
    fill = torch.arange(_TOKENS + 1, 3 * _TOKENS + 1).view(2, _TOKENS)
    parts = [(prompt, torch.ones_like(prompt)), (fill, torch.zeros_like(fill))]
    ids, mask = (
        torch.cat(pair, dim=1).to(device)
        for pair in zip(*(parts if side == "right" else reversed(parts)), strict=True)
    )
    kept = slice(_TOKENS) if side == "right" else slice(_TOKENS, None)
    misses: list[bool] = []

    def compare(_module: Any, _args: Any, output: Any) -> None:
        one, two = site_output(output)[:, kept]
        limit = _TOLERANCES.get(one.dtype, 1e-4) * one.abs().max()
        misses.append(bool((one - two).abs().max() > limit))

    with hooks([block.register_forward_hook(compare) for block in sites.blocks]):
        sites.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    if any(misses):
        when = "" if side == "right" else ", when it generates"
        raise ModelError(
            f"{type(sites.decoder).__name__}: what fills up the shorter prompts of a batch changes what is "
            f"computed for them{when}; use batch_size=1"
        )
