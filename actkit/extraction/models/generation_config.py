"""Text generation with explicit settings only: the checkpoint's own generation config is ignored."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ...errors import NonfiniteError


def end_ids(model: PreTrainedModel) -> list[int]:
    """Return the ids of the tokens that end a text."""
    configured: Any = model.generation_config
    ends = configured.eos_token_id
    if ends is None:
        ends = getattr(model.config.get_text_config(), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def decode(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], *, pad_id: int, ends: list[int], **settings: Any
) -> Any:
    """Call ``generate`` with these settings and no others.

    Parameters
    ----------
    model
        The model, including its head.
    inputs
        Batch padded on the left.
    pad_id, ends
        Id of the token that pads finished texts, and ids of the tokens that end a text.
    **settings
        Arguments of transformers' ``GenerationConfig``.

    Raises
    ------
    NonfiniteError
        If the model gives no valid probabilities to sample from.
    """
    generator: Any = model
    original = generator.generation_config
    # transformers would take unspecified settings from the checkpoint: penalties, beams, forced tokens
    generator.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    requested = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ends or None,
        pad_token_id=pad_id,
        bos_token_id=original.bos_token_id,
        use_cache=True,
        **settings,
    )
    try:
        return generator.generate(**inputs, generation_config=requested)
    except RuntimeError as error:
        if "probability tensor" in str(error):
            raise NonfiniteError("the model gave NaN or Inf when a token was to be sampled") from error
        raise
    finally:
        generator.generation_config = original
