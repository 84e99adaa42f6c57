"""Models whose block outputs differ from transformers' hidden states are refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from actkit.errors import ModelError
from actkit.extraction.models import validation
from actkit.extraction.models.hook_points import HookPoints, find_hook_points
from actkit.extraction.models.validation import check_blocks

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
# how the last hidden state is computed: norm, norm and projection, norm and dropout, nothing;
# and models whose hidden states start with the output of the first block
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


def build(name: str, dtype: torch.dtype = torch.float32) -> HookPoints:
    torch.manual_seed(0)
    auto = tf.AutoModelForTextEncoding if name == "t5" else tf.AutoModel
    return find_hook_points(auto.from_config(CONFIGS[name]()).eval().to(dtype), 3)


@pytest.fixture
def llama() -> HookPoints:
    return build("llama")


def message(hook_points: HookPoints, hidden: int = 32) -> str:
    with pytest.raises(ModelError) as caught:
        check_blocks(hook_points, CPU, hidden)
    return str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_block_outputs_equal_hidden_states_bitwise(name: str, dtype: torch.dtype) -> None:
    hook_points = build(name, dtype)
    check_blocks(hook_points, CPU, 32)
    assert not any(module._forward_pre_hooks for module in hook_points.decoder.modules())


@pytest.mark.parametrize("name", CONFIGS)
def test_a_module_within_the_block_is_no_block(name: str) -> None:
    hook_points = build(name)
    for layer, part in ((0, "mlp"), (1, "attention"), (2, "attention")):
        mixers = [block.mixer for block in hook_points.blocks if not hook_points.components]  # Mamba
        wrong = hook_points.components.get(part, mixers)[layer]
        blocks = list(hook_points.blocks)
        blocks[layer] = wrong
        assert message(replace(hook_points, blocks=tuple(blocks))).startswith(
            type(hook_points.decoder).__name__
        )


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (0, "LlamaModel: the output of block 0 differs from hidden_states[1] of transformers"),
        (1, "LlamaModel: the output of block 1 differs from hidden_states[2] of transformers"),
        (2, "LlamaModel: the output of block 2 does not lead to last_hidden_state of transformers"),
    ],
)
def test_the_smallest_difference_in_any_block_is_detected(
    layer: int, expected: str, llama: HookPoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []

    def misread(output: Any) -> torch.Tensor:
        seen.append(output.clone())
        if len(seen) == layer + 1:
            seen[-1][0, 2, 7] = torch.nextafter(seen[-1][0, 2, 7], torch.tensor(torch.inf))
        return seen[-1]

    monkeypatch.setattr(validation, "hook_output", misread)
    assert message(llama) == expected


def test_a_missing_block_or_another_width_is_detected(llama: HookPoints) -> None:
    assert message(llama, hidden=16) == (
        "LlamaModel: 3 blocks returned shapes [(1, 4, 32)], not 3 × (1, 4, 16)"
    )
    fewer = replace(llama, blocks=llama.blocks[:2])
    assert message(fewer) == (
        "LlamaModel: transformers returns no hidden states of each block to compare with"
    )
    idle = replace(llama, blocks=(*llama.blocks[:2], torch.nn.Identity()))
    assert message(idle) == "LlamaModel: 2 blocks returned shapes [(1, 4, 32)], not 3 × (1, 4, 32)"


def test_a_model_that_takes_no_plain_tokens_is_refused(llama: HookPoints) -> None:
    def forward(pixels: torch.Tensor) -> None:
        raise AssertionError(pixels)

    llama.decoder.forward = forward  # type: ignore[method-assign]
    assert message(llama).startswith("LlamaModel: cannot be run on plain tokens: ")


def test_values_that_are_not_finite_agree(llama: HookPoints) -> None:
    with torch.no_grad():
        llama.components["mlp"][1].down_proj.weight[3] = torch.nan  # type: ignore[union-attr,operator]
    check_blocks(llama, CPU, 32)
    with torch.no_grad():
        llama.components["mlp"][0].down_proj.weight[3] = torch.inf  # type: ignore[union-attr,operator]
    check_blocks(llama, CPU, 32)
