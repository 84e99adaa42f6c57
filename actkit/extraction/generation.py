"""Let the model continue prompts; what it says becomes part of them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from ..config import Generation
from ..schema import TokenKind
from .model import LoadedModel
from .prompts import Prompt, collate


def continue_prompts(
    model: LoadedModel, prompts: Sequence[Prompt], options: Generation, *, batch: int, pad_id: int
) -> list[Prompt]:
    """Return the prompts with the tokens that the model generates after them.

    Parameters
    ----------
    model
        Loaded with its head.
    prompts
        One batch.
    options
        How to choose tokens.
    batch
        Number of the batch in the run: with the seed it decides what is drawn, whatever ran before.
    pad_id
        Fills up shorter prompts, on their left.

    Returns
    -------
    list of Prompt
        Up to the end-of-text token, which is included.
    """
    inputs = collate(prompts, side="left", pad_id=pad_id, device=model.device)
    whole: Any = model.model
    ends = _end_ids(model)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]
        **options.model_dump(exclude={"seed", "temperature", "top_p", "top_k"}),
        **({name: getattr(options, name) for name in ("temperature", "top_p")} if options.do_sample else {}),
        **({"top_k": options.top_k or 0} if options.do_sample else {}),
        eos_token_id=ends or None,
        pad_token_id=pad_id,
        bos_token_id=whole.generation_config.bos_token_id,
        use_cache=True,
    )
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode():
        # drawn from both numbers at once: seed 0 of batch 1 is not seed 1 of batch 0
        torch.manual_seed(int(np.random.SeedSequence([options.seed, batch]).generate_state(1)[0]))
        sequences = whole.generate(**inputs, generation_config=settings)
    new = sequences[:, inputs["input_ids"].shape[1] :].cpu().numpy().astype(np.int32)
    return [_extended(prompt, _until_end(ids, ends)) for prompt, ids in zip(prompts, new, strict=True)]


def _end_ids(model: LoadedModel) -> list[int]:
    whole: Any = model.model
    ends = whole.generation_config.eos_token_id
    if ends is None:
        ends = model.sites.decoder.config.eos_token_id
    return [] if ends is None else list(np.atleast_1d(ends).tolist())


def _until_end(ids: np.ndarray, ends: list[int]) -> np.ndarray:
    found = np.flatnonzero(np.isin(ids, ends))
    return ids[: found[0] + 1] if len(found) else ids


def _extended(prompt: Prompt, new: np.ndarray) -> Prompt:
    length = len(prompt.ids)
    features = {
        # what a processor says of each token says nothing of new ones: they are text
        name: torch.nn.functional.pad(tensor, (0, len(new))) if tensor.shape == (1, length) else tensor
        for name, tensor in prompt.features.items()
    }
    return dataclasses.replace(
        prompt,
        ids=np.concatenate([prompt.ids, new]),
        kinds=np.concatenate([prompt.kinds, np.full(len(new), TokenKind.GENERATED, dtype=np.int8)]),
        features=features,
    )
