"""What the model matrix knows of an architecture, and the sizes that most of them share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

VOCABULARY = 2048  # of the demo model's tokenizer, which all of them share
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
        Names of the classes in transformers.
    options
        Arguments of the config.
    parts
        Whether its blocks consist of one attention and one mlp, so that actkit stores these too.
    mlp_output
        Pattern of what the feed-forward part of a block ends with: the name of its weights in the block.
    norms
        Norms that the stream itself goes through: before attention is added, after it, after the mlp; empty
        where there is none, as in every pre-norm architecture.
    part
        The part of the model that is called, where it is not the whole.
    embedding
        Where transformers' hidden states begin after block 0: the name of what gives the stream before it.
    final_norm
        Where transformers hands out its last hidden state only after the final norm: the name of that.
    implementations
        Of the attention.
    sum_rule
        Why ``residual[l] = residual[l-1] + attention[l] + mlp[l]`` does not hold; empty where it does.
    error
        What the message of the expected error says; empty where the architecture is supported.
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
        """What actkit is asked for."""
        return "all attention_all mlp_all" if self.parts else "all"
