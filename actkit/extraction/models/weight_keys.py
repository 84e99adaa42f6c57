"""Comparison of the weights of a checkpoint with those of the model: permitted surplus and missing keys."""

import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

from ...errors import ModelError, listed

_SHOWN = 5
# tensors that no block reads, wherever they are in a model
_HARMLESS = (
    r"(^|\.)pooler\.",
    r"(^|\.)rotary_emb\.inv_freq$",  # computed from the config
    r"(^|\.)(position_ids|token_type_ids|num_batches_tracked)$",
    r"(^|\.)h\.\d+\.attn(\.attention)?\.(masked_)?bias$",  # causal masks of GPT-J and GPT-Neo
    r"(^|\.)mtp(_layers)?\.",  # multi-token prediction from the output of the last block
    r"(^|\.)final_logits_bias$",
)
# heads of checkpoints whose base model has no prefix, such as T5
HEADS = r"(^|\.)(lm_head|embed_out|classification_head|classifier|qa_outputs|score)\."
# Tensors that belong to quantized weights, by the last part of the name: without them, the values of the
# weights have another meaning. `logit_scale`, `norm.scale` and `weight_g` are ordinary parameters.
_OF_QUANTIZED = re.compile(
    r"(^|[.:])("
    r"_?weight_(scale|scale_\d|scale_inv|global_scale|packed|shape|zero_point|g_idx|qdata|format)"
    r"|(input|output|activation|[qkv]|[kv]_cache)_(scale|scale_inv|global_scale|zero_point)"
    r"|\w+_(packed|blocks|scales|scale_inv)|\w+_proj_scale"  # stacked experts
    r"|scales|scale_inv|qscale_\w+|qweight|qzeros|qbiases|qdata|g_idx|zero_points?|_?amax"
    r"|SCB|absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.\w+"
    r")$"
)
_OPTIONAL = r"(^|\.)pooler\."  # base checkpoints often lack it


def is_of_quantized(key: str) -> bool:
    """Return whether a tensor is part of quantized weights, such as their scales or packed values.

    Parameters
    ----------
    key
        Name of the tensor.
    """
    return _OF_QUANTIZED.search(key) is not None


def check_keys(model: PreTrainedModel, info: dict[str, Any], stored: Collection[str], name: str) -> None:
    """Check that a checkpoint and a model have the same weights.

    Parameters
    ----------
    model
        The loaded model.
    info
        Loading report of transformers: unexpected, missing and mismatched keys.
    stored
        Names of all tensors in the checkpoint.
    name
        Name of the checkpoint, for messages.

    Raises
    ------
    ModelError
        If weights are missing or unused; the message lists the first few.
    """
    problems = sorted(key for key in info["missing_keys"] if not re.search(_OPTIONAL, key))
    problems += [
        f"{key} {tuple(actual)} not {tuple(expected)}" for key, actual, expected in info["mismatched_keys"]
    ]
    if problems:
        raise ModelError(f"{name}: weights are missing or have a different shape: {listed(problems, _SHOWN)}")
    if unused := _unused_keys(model, info["unexpected_keys"], stored):
        raise ModelError(
            f"{name}: {type(model).__name__} does not use some weights of the checkpoint: "
            f"{listed(unused, _SHOWN)}; its config.json describes another model or omits its quantization"
        )


def _unused_keys(model: PreTrainedModel, unexpected: Collection[str], stored: Collection[str]) -> list[str]:
    """Return the unexpected keys that may affect the output of the blocks."""
    base = f"{model.base_model_prefix}."
    # a checkpoint with a head stores the base model under this prefix and everything else outside it
    has_prefix = any(key.startswith(base) for key in stored)
    names = {key for key, _ in model.named_parameters()}
    roots = {key.partition(".")[0] for key in names}
    parts = {part for key in names for part in key.split(".")}

    def is_harmless(key: str) -> bool:
        if is_of_quantized(key):
            return False
        if any(re.search(pattern, key) for pattern in _HARMLESS) or _is_multi_token_head(model, key):
            return True
        if head := re.search(HEADS, key):
            return head[2] not in parts
        return has_prefix and not key.startswith(base) and key.partition(".")[0] not in roots

    return sorted(key for key in unexpected if not is_harmless(key))


def _is_multi_token_head(model: PreTrainedModel, key: str) -> bool:
    """Return whether a key belongs to a multi-token prediction block, which follows the last block."""
    config = model.config.get_text_config()
    first, count = config.num_hidden_layers, getattr(config, "num_nextn_predict_layers", None) or 0
    block = re.search(r"(^|\.)layers\.(\d+)\.", key)
    return block is not None and first <= int(block[2]) < first + count
