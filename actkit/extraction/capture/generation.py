"""Generation: continuations by the model, appended to the prompts."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from ...config import Generation
from ...errors import NonfiniteError
from ...schema import TokenKind
from ..models.generation_config import decode, end_ids
from ..models.loader import LoadedModel
from ..prompts.encoder import Prompt, collate


def continue_prompts(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    options: Generation,
    *,
    samples: np.ndarray,
    batch: int,
    pad_id: int,
) -> list[Prompt]:
    """Return the prompts followed by the tokens that the model generates.

    Parameters
    ----------
    model
        The model, loaded with its head.
    prompts
        One batch.
    options
        Options of decoding.
    samples
        Indices of the samples in the run.
    batch
        Index of the batch in the run, which together with the seed determines the random draws.
    pad_id
        Id of the token that pads shorter prompts on the left.

    Returns
    -------
    list of Prompt
        Prompts up to and including the end-of-text token.

    Raises
    ------
    NonfiniteError
        If the probabilities that the model outputs are NaN or Inf.
    """
    inputs = collate(prompts, side="left", pad_id=pad_id, device=model.device)
    ends = end_ids(model.model)
    drawn = {"temperature": options.temperature, "top_p": options.top_p, "top_k": options.top_k or 0}
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.inference_mode(), _samples_in_errors(samples, model):
        # derived from both numbers: seed 0 of batch 1 differs from seed 1 of batch 0
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
def _samples_in_errors(samples: np.ndarray, model: LoadedModel) -> Iterator[None]:
    try:
        yield
    except NonfiniteError as error:
        named = ", ".join(map(str, samples[:8].tolist())) + (" …" if len(samples) > 8 else "")
        raise NonfiniteError(f"one of samples {named}: {error}{model.overflow_cause}") from error


def _until_end(ids: np.ndarray, ends: list[int]) -> np.ndarray:
    end_positions = np.flatnonzero(np.isin(ids, ends))
    return ids[: end_positions[0] + 1] if len(end_positions) else ids


def _extended(prompt: Prompt, new: np.ndarray) -> Prompt:
    length = len(prompt.ids)
    features = {
        # per-token features of the processor are 0 for new tokens, which are text
        name: torch.nn.functional.pad(tensor, (0, len(new))) if tensor.shape == (1, length) else tensor
        for name, tensor in prompt.features.items()
    }
    return dataclasses.replace(
        prompt,
        ids=np.concatenate([prompt.ids, new]),
        kinds=np.concatenate([prompt.kinds, np.full(len(new), TokenKind.GENERATED, dtype=np.int8)]),
        features=features,
    )
