"""Logits after the last token of each prompt."""

from collections.abc import Sequence

import numpy as np
import torch

from ..extraction.models.loader import LoadedModel
from ..extraction.prompts.encoder import Prompt, collate


def last_logits(model: LoadedModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    """Run a batch and return the logits after the last token of each prompt, dims ``(sample, vocabulary)``.

    Parameters
    ----------
    model
        Model that was loaded with its head.
    prompts
        The batch, which is padded on the right.
    """
    ends = torch.from_numpy(np.array([len(prompt.ids) - 1 for prompt in prompts]))
    # the head is the largest matrix of many models: it is applied to the last tokens only
    positions, places = ends.unique(return_inverse=True)
    inputs = collate(prompts, device=model.device)
    outputs = model.model(**inputs, use_cache=False, logits_to_keep=positions.to(model.device))
    logits: torch.Tensor = outputs.logits
    return logits[torch.arange(len(prompts)), places]
