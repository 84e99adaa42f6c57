"""Make sure that what fills up the shorter prompts of a batch changes nothing."""

from typing import Any, Literal

import torch
from transformers import PreTrainedModel

from ...errors import ModelError
from .decoding import decode
from .sites import Sites, hooks, site_output

_TOKENS = 4
# of the largest value of a block: scattered sums of experts need not be the same to the bit on a GPU
_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@torch.inference_mode()
def check_padding(
    sites: Sites,
    device: torch.device,
    side: Literal["right", "left"] = "right",
    *,
    tolerance: float | None = None,
) -> None:
    """Run one prompt twice in a batch, filled up with different tokens, and compare what it gives.

    Parameters
    ----------
    sites
        The blocks.
    device
        Where inputs go.
    side
        Where prompts are filled up.
    tolerance
        Of the largest value of a block; what the dtype calls for by default.

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
        misses.append(_differ(one, two, tolerance))

    with hooks([block.register_forward_hook(compare) for block in sites.blocks]):
        sites.decoder(input_ids=ids, attention_mask=mask, use_cache=False)
    if any(misses):
        raise _leaks(sites.decoder, ", when it generates" if side == "left" else "")


@torch.inference_mode()
def check_generation(model: PreTrainedModel, device: torch.device, *, tolerance: float | None = None) -> None:
    """Continue a short prompt beside a longer one, and alone, and compare what decides each token.

    Parameters
    ----------
    model
        With its head.
    device
        Where inputs go.
    tolerance
        As for :func:`check_padding`.

    Raises
    ------
    ModelError
        Where the cache of the architecture does not keep the masked tokens out.
    """
    ids = torch.arange(1, 2 * _TOKENS + 1, device=device).view(2, _TOKENS)
    mask = torch.ones_like(ids)
    mask[0, : _TOKENS // 2] = 0
    beside, alone = (
        _decisions(model, ids[rows, start:], mask[rows, start:])
        for rows, start in ((slice(0, 2), 0), (slice(0, 1), _TOKENS // 2))
    )
    for one, two in zip(beside, alone, strict=True):
        if _differ(one[0], two[0], tolerance):
            raise _leaks(model, ", when it generates")
        if one[0].argmax() != two[0].argmax():  # rounding decided: from here on they say other things
            return


def _decisions(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the logits behind each new token, dims ``(sample, vocabulary)``."""
    given: tuple[torch.Tensor, ...] = decode(
        model,
        {"input_ids": ids, "attention_mask": mask},
        pad_id=0,
        ends=[],
        max_new_tokens=_TOKENS,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    ).logits
    return given


def _differ(one: torch.Tensor, two: torch.Tensor, tolerance: float | None) -> bool:
    """Tell whether values differ by more than rounding; NaN and Inf have to stand at the same places."""
    finite = one.isfinite()
    if not torch.equal(finite, two.isfinite()):
        return True
    one, two = one[finite], two[finite]
    limit = tolerance or _TOLERANCES.get(one.dtype, 1e-4)
    return bool(one.numel() and (one - two).abs().max() > limit * one.abs().max())


def _leaks(model: PreTrainedModel, when: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__}: what fills up the shorter prompts of a batch changes what is computed for "
        f"them{when}; use batch_size=1"
    )
