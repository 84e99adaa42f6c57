"""Let the model continue prompts; what it says becomes part of them."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ..config import Generation
from ..errors import NonfiniteError
from ..schema import TokenKind
from .models.decoding import decode, end_ids
from .models.loading import LoadedModel
from .prompts.encoding import Prompt, collate


def continue_prompts(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    options: Generation,
    *,
    samples: np.ndarray,
    batch: int,
    pad_id: int,
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
    samples
        Their indices in the run.
    batch
        Number of the batch in the run: with the seed it decides what is drawn, whatever ran before.
    pad_id
        Fills up shorter prompts, on their left.

    Returns
    -------
    list of Prompt
        Up to the end-of-text token, which is included.

    Raises
    ------
    NonfiniteError
        Where the model gives no probabilities to draw from.
    """
    inputs = collate(prompts, side="left", pad_id=pad_id, device=model.device)
    ends = end_ids(model.model)
    drawn = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k or 0}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), _named(samples, model):
        # drawn from both numbers at once: seed 0 of batch 1 is not seed 1 of batch 0
        torch.manual_seed(int(np.random.SeedSequence([options.seed, batch]).generate_state(1)[0]))
        sequences = decode(
            model.model,
            inputs,
            pad_id=pad_id,
            ends=ends,
            max_new_tokens=options.max_new_tokens,
            do_sample=options.do_sample,
            **(drawn if options.do_sample else {}),
        )
    new = sequences[:, inputs["input_ids"].shape[1] :].cpu().numpy().astype(np.int32)
    return [_extended(prompt, _until_end(ids, ends)) for prompt, ids in zip(prompts, new, strict=True)]


@contextmanager
def _named(samples: np.ndarray, model: LoadedModel) -> Iterator[None]:
    try:
        yield
    except NonfiniteError as error:
        named = ", ".join(map(str, samples[:8].tolist())) + (" …" if len(samples) > 8 else "")
        raise NonfiniteError(f"one of samples {named}: {error}{model.overflow_cause}") from error


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
