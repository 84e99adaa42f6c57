"""Record of an architecture in the model matrix, and common configurations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCABULARY = 2048  # size of the demo model's tokenizer, which all models share
LAYERS = 4

IDS = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    **IDS,
}
SMALL = {**PLAIN, "num_key_value_heads": 2}
HEADS = {**SMALL, "head_dim": 8}
GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, **IDS}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
# shorter than most prompts of the matrix
WINDOW = 6
SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}


@dataclass(frozen=True)
class Architecture:
    """One row of the matrix.

    Parameters
    ----------
    model, config
        Names of the transformers classes.
    options
        Arguments of the config.
    parts
        Whether each block consists of one attention and one mlp, so that actkit stores both.
    mlp_output
        Pattern of the names of the final weights of a block's feed-forward part, relative to the block.
    norms
        Norms applied to the stream before attention is added, after it, and after the mlp; empty strings if
        there are none, as in every pre-norm architecture.
    part
        Submodule that is called; empty for the full model.
    embedding
        Name of the module that outputs the stream before block 0, if transformers' hidden states omit it.
    final_norm
        Name of the final norm, if transformers returns the last hidden state only after it.
    implementations
        Attention implementations.
    sum_rule
        Reason why ``residual[l] = residual[l-1] + attention[l] + mlp[l]`` does not hold; empty if it does.
    error
        Part of the expected error message; empty if the architecture is supported.
    """

    model: str
    config: str
    options: Mapping[str, Any]
    parts: bool = True
    mlp_output: str = r"mlp\.(.+\.)?down_proj"
    norms: tuple[str, str, str] = ("", "", "")
    part: str = ""
    embedding: str = ""
    final_norm: str = ""
    implementations: tuple[str, ...] = ("eager", "sdpa")
    sum_rule: str = ""
    error: str = ""

    @property
    def layers(self) -> str:
        """Layer specification that is extracted."""
        return "all attention_all mlp_all" if self.parts else "all"
