"""A model whose blocks give something else than transformers says is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from actkit.errors import ModelError
from actkit.extraction.models import agreement
from actkit.extraction.models.agreement import check_blocks
from actkit.extraction.models.sites import Sites, find_sites

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
OPT = {**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, "ffn_dim": 48}
# how the last hidden state comes about: a norm, a norm and a projection, a dropout after the norm, nothing;
# and where transformers' list begins with what leaves the first block
CONFIGS: dict[str, Any] = {
    "llama": lambda: tf.LlamaConfig(**SMALL),
    "gpt2": lambda: tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=3, n_head=4, bos_token_id=1),
    "gptj": lambda: tf.GPTJConfig(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, rotary_dim=4, bos_token_id=1, eos_token_id=2
    ),
    "mpt": lambda: tf.MptConfig(vocab_size=97, d_model=32, n_layers=3, n_heads=4),
    "opt": lambda: tf.OPTConfig(**OPT, word_embed_proj_dim=16),
    "opt-350m": lambda: tf.OPTConfig(**OPT, word_embed_proj_dim=16, do_layer_norm_before=False),
    "t5": lambda: tf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4),
    "bert": lambda: tf.BertConfig(**SMALL),
    "modernbert": lambda: tf.ModernBertConfig(**SMALL),
    "mamba": lambda: tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=4),
    "mamba2": lambda: tf.Mamba2Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_heads=8, head_dim=8, state_size=8, n_groups=1
    ),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Sites:
    torch.manual_seed(0)
    auto = tf.AutoModelForTextEncoding if name == "t5" else tf.AutoModel
    return find_sites(auto.from_config(CONFIGS[name]()).eval().to(dtype), 3)


@pytest.fixture
def llama() -> Sites:
    return build("llama")


def message(sites: Sites, hidden: int = 32) -> str:
    with pytest.raises(ModelError) as caught:
        check_blocks(sites, CPU, hidden)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_blocks_agree_to_the_bit(name: str, dtype: torch.dtype) -> None:
    sites = build(name, dtype)
    check_blocks(sites, CPU, 32)
    assert not any(module._forward_pre_hooks for module in sites.decoder.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_within_the_block_is_no_block(name: str) -> None:
    sites = build(name)
    for layer, part in ((0, "mlp"), (1, "attention"), (2, "attention")):
        mixers = [block.mixer for block in sites.blocks if not sites.components]  # of Mamba
        wrong = sites.components.get(part, mixers)[layer]
        blocks = list(sites.blocks)
        blocks[layer] = wrong
        assert message(replace(sites, blocks=tuple(blocks))).startswith(type(sites.decoder).__name__)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (0, "LlamaModel: block 0 does not give hidden_states[1] of transformers"),
        (1, "LlamaModel: block 1 does not give hidden_states[2] of transformers"),
        (2, "LlamaModel: block 2 does not lead to last_hidden_state of transformers"),
    ],
)
def test_the_smallest_difference_in_any_block_is_told(
    layer: int, expected: str, llama: Sites, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def misread(output: Any) -> torch.Tensor:
        seen.append(output.clone())
        if len(seen) == layer + 1:
            seen[-1][0, 2, 7] = torch.nextafter(seen[-1][0, 2, 7], torch.tensor(torch.inf))
        return seen[-1]

    monkeypatch.setattr(agreement, "site_output", misread)
    assert message(llama) == expected


def test_a_missing_block_or_another_width_is_told(llama: Sites) -> None:
    assert message(llama, hidden=16) == ("LlamaModel: 3 blocks gave shapes [(1, 4, 32)], not 3 × (1, 4, 16)")
    fewer = replace(llama, blocks=llama.blocks[:2])
    assert message(fewer) == (
        "LlamaModel: transformers gives no hidden states of each block to check against"
    )
    idle = replace(llama, blocks=(*llama.blocks[:2], torch.nn.Identity()))
    assert message(idle) == "LlamaModel: 2 blocks gave shapes [(1, 4, 32)], not 3 × (1, 4, 32)"


def test_a_model_that_takes_no_plain_tokens_is_told(llama: Sites) -> None:
    def forward(pixels: torch.Tensor) -> None:
        raise AssertionError(pixels)

    llama.decoder.forward = forward  # type: ignore[method-assign]
    assert message(llama).startswith("LlamaModel: cannot be run on plain tokens: ")


def test_values_that_are_not_finite_agree(llama: Sites) -> None:
    with torch.no_grad():
        llama.components["mlp"][1].down_proj.weight[3] = torch.nan  # type: ignore[union-attr,operator]
    check_blocks(llama, CPU, 32)
    with torch.no_grad():
        llama.components["mlp"][0].down_proj.weight[3] = torch.inf  # type: ignore[union-attr,operator]
    check_blocks(llama, CPU, 32)
