"""Generate exactly as asked: what a checkpoint would add of its own is put aside."""

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from ...errors import NonfiniteError


def end_ids(model: PreTrainedModel) -> list[int]:
    """Return the tokens that end a text."""
    configured: Any = model.generation_config
    ends = configured.eos_token_id
    if ends is None:
        ends = getattr(model.config.get_text_config(), "eos_token_id", None)
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def decode(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], *, pad_id: int, ends: list[int], **settings: Any
) -> Any:
    """Call ``generate`` with these settings, and with no others.

    Parameters
    ----------
    model
        With its head.
    inputs
        A batch that is padded on the left.
    pad_id, ends
        Tokens that fill up what has ended, and that end it.
    **settings
        Those of transformers' ``GenerationConfig``.

    Raises
    ------
    NonfiniteError
        Where the model gives no probabilities to draw from.
    """
    whole: Any = model
    kept = whole.generation_config
    # what is not said here would be taken from the checkpoint: penalties, beams, forced tokens
    whole.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    asked = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=ends or None,
        pad_token_id=pad_id,
        bos_token_id=kept.bos_token_id,
        use_cache=True,
        **settings,
    )
    try:
        return whole.generate(**inputs, generation_config=asked)
    except RuntimeError as error:
        if "probability tensor" in str(error):
            raise NonfiniteError("the model gave NaN or Inf where a token was to be drawn") from error
        raise
    finally:
        whole.generation_config = kept
