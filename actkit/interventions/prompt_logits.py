"""Logits after the last token of each prompt."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch

from ..extraction.models.loader import LoadedModel
from ..extraction.prompts.encoder import Prompt, collate


def last_logits(model: LoadedModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Run a batch and return the logits after the last token of each prompt, float32, on the CPU.

    Parameters
    ----------
    model
        Model that was loaded with its head.
    prompts
        The batch, which is padded on the right.

    Returns
    -------
    torch.Tensor
        Dims ``(sample, vocabulary)``.
    """
    ends = np.array([len(prompt.ids) - 1 for prompt in prompts])
    inputs: dict[str, Any] = collate(prompts, device=model.device)
    if "logits_to_keep" in signature(model.model.forward).parameters:
        # the head is the largest matrix of many models: it is applied to the last tokens only
        positions, ends = np.unique(ends, return_inverse=True)
        inputs["logits_to_keep"] = torch.from_numpy(positions).to(model.device)
    logits: torch.Tensor = model.model(**inputs, use_cache=False).logits
    return logits[torch.arange(len(prompts)), torch.from_numpy(ends)].float().cpu()
