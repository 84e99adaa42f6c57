"""Hook points capture the terms that each block adds, in every architecture of the table."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as tf

from actkit.errors import ModelError
from actkit.extraction.models.hook_points import (
    SUM_RULE_TOLERANCE,
    check_sum_rule,
    find_blocks,
    find_hook_points,
    hook_output,
    hooks,
)

LAYERS = 3
# large initial weights make mistakes visible
PLAIN: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
SMALL = {**PLAIN, "num_key_value_heads": 2}
HEADS = {**SMALL, "head_dim": 8}
GPT = {
    "vocab_size": 97,
    "n_embd": 32,
    "n_layer": LAYERS,
    "n_head": 4,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPT = {
    **{name: PLAIN[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "pad_token_id")},
    "num_attention_heads": 4,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
    "init_std": 0.3,
}
FALCON = {**{k: v for k, v in PLAIN.items() if k not in ("intermediate_size", "pad_token_id")}, **GPT}
FALCON = {k: v for k, v in FALCON.items() if not k.startswith("n_")}
BLOOM = {"vocab_size": 97, "hidden_size": 32, "n_layer": LAYERS, "n_head": 4, "initializer_range": 0.3}
T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4}
BART = {
    "vocab_size": 97,
    "d_model": 32,
    "init_std": 0.3,
    **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in [("ffn_dim", 48)]},
    "encoder_layers": LAYERS,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

PRE_NORM: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**HEADS),
    "mistral": lambda: tf.MistralConfig(**HEADS, sliding_window=4),
    "mixtral": lambda: tf.MixtralConfig(**HEADS, num_local_experts=4),
    "qwen2": lambda: tf.Qwen2Config(**SMALL),
    "qwen3": lambda: tf.Qwen3Config(**HEADS),
    "qwen3-moe": lambda: tf.Qwen3MoeConfig(**HEADS, **MOE, mlp_only_layers=[1]),
    "qwen3-next": lambda: tf.Qwen3NextConfig(
        **HEADS,
        **MOE,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "gemma": lambda: tf.GemmaConfig(**HEADS),
    "gemma2": lambda: tf.Gemma2Config(**HEADS, sliding_window=4),
    "gemma3": lambda: tf.Gemma3TextConfig(**HEADS, sliding_window=4),
    "phi": lambda: tf.PhiConfig(**SMALL),
    "phi3": lambda: tf.Phi3Config(**SMALL),
    "gpt2": lambda: tf.GPT2Config(**GPT),
    "gpt-neox": lambda: tf.GPTNeoXConfig(**PLAIN),
    "gpt-neox sequential": lambda: tf.GPTNeoXConfig(**PLAIN, use_parallel_residual=False),
    "gptj": lambda: tf.GPTJConfig(**GPT, rotary_dim=4),
    "opt": lambda: tf.OPTConfig(**OPT),
    "bloom": lambda: tf.BloomConfig(**BLOOM),
    "falcon": lambda: tf.FalconConfig(**FALCON, alibi=False),
    "falcon sequential": lambda: tf.FalconConfig(**FALCON, alibi=True, parallel_attn=False, bias=True),
    "falcon new": lambda: tf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "mpt": lambda: tf.MptConfig(vocab_size=97, d_model=32, n_layers=LAYERS, n_heads=4, initializer_range=0.3),
    "stablelm": lambda: tf.StableLmConfig(**SMALL),
    "stablelm parallel": lambda: tf.StableLmConfig(**SMALL, use_parallel_residual=True),
    "cohere": lambda: tf.CohereConfig(**SMALL),
    "olmo2": lambda: tf.Olmo2Config(**SMALL),
    "granite": lambda: tf.GraniteConfig(**SMALL, residual_multiplier=0.22),
    "smollm3": lambda: tf.SmolLM3Config(**SMALL),
    "deepseek-v3": lambda: tf.DeepseekV3Config(
        **PLAIN,
        **LATENT,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
    ),
    "glm4": lambda: tf.Glm4Config(**HEADS),
    "t5": lambda: tf.T5Config(**T5),
    "t5 gated": lambda: tf.T5Config(**T5, feed_forward_proj="gated-gelu"),
    "roberta-prelayernorm": lambda: tf.RobertaPreLayerNormConfig(**PLAIN),
    "modernbert": lambda: tf.ModernBertConfig(**PLAIN, local_attention=4),
}
POST_NORM: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertConfig(**PLAIN),
    "roberta": lambda: tf.RobertaConfig(**PLAIN),
    "distilbert": lambda: tf.DistilBertConfig(
        vocab_size=97, dim=32, n_layers=LAYERS, n_heads=4, hidden_dim=48, initializer_range=0.3
    ),
    "bart": lambda: tf.BartConfig(**BART),
    "opt-350m": lambda: tf.OPTConfig(**{**OPT, "word_embed_proj_dim": 16}, do_layer_norm_before=False),
    "bloom post": lambda: tf.BloomConfig(**BLOOM, apply_residual_connection_post_layernorm=True),
}
ALL = {**PRE_NORM, **POST_NORM}


def build(config: Any) -> Any:
    """Build a random model whose norms differ from the identity."""
    torch.manual_seed(0)
    encoder = isinstance(config, tf.T5Config)
    model = (tf.AutoModelForTextEncoding if encoder else tf.AutoModel).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def run(hook_points: Any, ids: torch.Tensor | None = None) -> Any:
    """Run two prompts, of which the second is padded."""
    ids = torch.arange(3, 17).reshape(2, 7) if ids is None else ids
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return hook_points.decoder(input_ids=ids, attention_mask=mask, use_cache=False)


def paths(hook_points: Any) -> list[list[str]]:
    names = {module: name for name, module in hook_points.decoder.named_modules()}
    return [
        [names[module] for module in modules]
        for modules in (hook_points.blocks, *hook_points.components.values())
    ]


@pytest.mark.parametrize("name", PRE_NORM)
def test_the_parts_sum_to_the_update_of_the_block(name: str) -> None:
    hook_points = find_hook_points(build(PRE_NORM[name]()), LAYERS)
    assert list(hook_points.components) == ["attention", "mlp"]
    assert hook_points.exception == ""
    errors = check_sum_rule(hook_points, lambda: run(hook_points))
    assert len(errors) == LAYERS
    # above zero, which shows that values were compared
    assert 0 < max(errors) <= SUM_RULE_TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", POST_NORM)
def test_post_norm_architectures_describe_what_is_stored(name: str) -> None:
    hook_points = find_hook_points(build(POST_NORM[name]()), LAYERS)
    assert "do not add up to residual" in hook_points.exception
    error = max(check_sum_rule(hook_points, lambda: run(hook_points)))
    assert 0 < error <= SUM_RULE_TOLERANCE[torch.float32]
    unsaid = replace(hook_points, order=(("attention", "mlp"),) * LAYERS)
    with pytest.raises(ModelError) as caught:
        check_sum_rule(unsaid, lambda: run(hook_points))
    assert float(str(caught.value).partition("relative error ")[2].partition(")")[0]) > 0.1


@pytest.mark.parametrize("name", ALL)
def test_a_skeleton_without_weights_has_the_same_hook_points(name: str) -> None:
    hook_points = find_hook_points(build(ALL[name]()), LAYERS)
    auto = tf.AutoModelForTextEncoding if name.startswith("t5") else tf.AutoModel
    with torch.device("meta"):
        skeleton = auto.from_config(ALL[name]())
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    assert paths(find_hook_points(skeleton, LAYERS)) == paths(hook_points)


@pytest.mark.parametrize("name", ALL)
def test_attention_moves_between_tokens_and_mlp_does_not(name: str) -> None:
    """The sum rule alone does not distinguish attention from mlp."""
    hook_points = find_hook_points(build(ALL[name]()), LAYERS)
    outputs: dict[str, list[torch.Tensor]] = {"attention": [], "mlp": []}
    streams: list[torch.Tensor] = []

    def enter(_module: Any, args: Any, kwargs: Any) -> None:
        streams.append(args[0] if args else kwargs["hidden_states"])

    def keep(part: str) -> Any:
        return lambda _m, _a, out: outputs[part].append(hook_output(out, streams[-1]).clone())

    def silence(_module: Any, _args: Any, out: Any) -> Any:
        return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)

    attention, mlp = (hook_points.components[part][0] for part in ("attention", "mlp"))
    handles = [hook_points.blocks[0].register_forward_pre_hook(enter, with_kwargs=True)]
    handles += [attention.register_forward_hook(keep("attention")), mlp.register_forward_hook(keep("mlp"))]
    handles.append(attention.register_forward_hook(silence))  # the input of mlp is then the stream alone
    ids = torch.arange(3, 17).reshape(2, 7)
    with hooks(handles), torch.no_grad():
        for first in (3, 50):
            ids[0, 0] = first
            run(hook_points, ids)
    assert not torch.equal(streams[0][0, 0], streams[1][0, 0])
    assert torch.equal(streams[0][0, 1:], streams[1][0, 1:])
    moved = {part: (one[0, 1:] - other[0, 1:]).abs().max() for part, (one, other) in outputs.items()}
    scale = {part: one.abs().max() for part, (one, _) in outputs.items()}
    assert moved["attention"] > 1e-3 * scale["attention"]
    # experts process tokens in groups, which affect rounding
    assert moved["mlp"] <= 1e-6 * scale["mlp"]


@pytest.mark.parametrize("dtype", SUM_RULE_TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["llama", "granite", "gptj", "falcon", "t5", "bert", "opt", "bloom"])
def test_rounding_stays_within_the_tolerance(name: str, dtype: torch.dtype) -> None:
    hook_points = find_hook_points(build(ALL[name]()).to(dtype), LAYERS)
    assert 0 < max(check_sum_rule(hook_points, lambda: run(hook_points))) <= SUM_RULE_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", SUM_RULE_TOLERANCE, ids=str)
def test_wrong_hook_points_are_refused_in_every_dtype(dtype: torch.dtype) -> None:
    gemma = find_hook_points(build(PRE_NORM["gemma2"]()).to(dtype), LAYERS)
    before_norm = {**gemma.components, "mlp": tuple(block.mlp for block in gemma.blocks)}
    granite = find_hook_points(build(PRE_NORM["granite"]()).to(dtype), LAYERS)
    bert = find_hook_points(build(POST_NORM["bert"]()).to(dtype), LAYERS)
    shifted = {**bert.components, "mlp": bert.components["mlp"][1:] + bert.components["mlp"][:1]}
    for wrong in (
        replace(gemma, components=before_norm),
        replace(granite, scale=1.0),
        replace(bert, order=(("attention", "mlp"),) * LAYERS),
        replace(bert, components=shifted),
    ):
        with pytest.raises(ModelError, match="`residual` can still be captured"):
            check_sum_rule(wrong, lambda wrong=wrong: run(wrong))  # type: ignore[misc]


def test_unknown_parts_of_a_block_are_refused() -> None:
    """This architecture has a shared mlp in addition to the experts."""
    config = tf.GraniteMoeSharedConfig(**SMALL, num_local_experts=4, shared_intermediate_size=16)
    hook_points = find_hook_points(build(config), LAYERS)
    with pytest.raises(ModelError) as caught:
        check_sum_rule(hook_points, lambda: run(hook_points))
    before, _, after = str(caught.value).partition("relative error ")
    assert before == (
        "GraniteMoeSharedModel: attention and mlp of block 0 do not sum to the block's update of the stream ("
    )
    assert after.endswith("); `residual` can still be captured")
    assert float(after.partition(")")[0]) > 0.01


def test_a_part_that_is_not_called_is_refused() -> None:
    """This BLOOM multiplies with slices of the weights and bypasses their modules."""
    hook_points = find_hook_points(
        build(tf.BloomConfig(**BLOOM, pretraining_tp=2, slow_but_exact=True)), LAYERS
    )
    for module in hook_points.components["attention"]:
        module.register_forward_pre_hook(lambda *_: pytest.fail("it is called"))
    with pytest.raises(ModelError) as caught:
        check_sum_rule(hook_points, lambda: run(hook_points))
    assert str(caught.value) == (
        "BloomModel: attention of block 0 was called 0 times, not once; `residual` can still be captured"
    )


def test_modules_shared_by_blocks_are_not_captured() -> None:
    model = build(PRE_NORM["llama"]())
    for block in model.layers[1:]:
        block.mlp = model.layers[0].mlp
    assert find_hook_points(model, LAYERS).components == {}


def test_a_stream_modified_between_blocks_is_refused() -> None:
    """Qwen3-VL, for example, adds image features to the stream after its first blocks."""
    hook_points = find_hook_points(build(PRE_NORM["llama"]()), LAYERS)

    def change(_module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0] + 1, *args[1:])

    with hook_points.blocks[2].register_forward_pre_hook(change), pytest.raises(ModelError) as caught:
        check_sum_rule(hook_points, lambda: run(hook_points))
    assert str(caught.value) == (
        "LlamaModel: the stream is modified between blocks 1 and 2; `residual` can still be captured"
    )


def test_a_run_may_stop_early_and_hooks_are_gone_afterwards() -> None:
    hook_points = find_hook_points(build(PRE_NORM["llama"]()), LAYERS)

    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    handle = hook_points.blocks[2].register_forward_pre_hook(stop)
    with pytest.raises(StopError):
        check_sum_rule(hook_points, lambda: run(hook_points))
    assert not any(m._forward_hooks for m in hook_points.decoder.modules())

    def caught() -> None:
        with pytest.raises(StopError):
            run(hook_points)

    assert len(check_sum_rule(hook_points, caught)) == 2
    handle.remove()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hook_points.decoder.modules())


def test_values_that_are_not_finite_are_left_out() -> None:
    model = build(PRE_NORM["llama"]())
    hook_points = find_hook_points(model, LAYERS)
    with torch.no_grad():
        model.layers[1].mlp.down_proj.weight[5] = torch.inf
    errors = check_sum_rule(hook_points, lambda: run(hook_points))
    assert 0 < errors[0] <= SUM_RULE_TOLERANCE[torch.float32]
    assert 0 < errors[1] <= SUM_RULE_TOLERANCE[torch.float32]  # from all values but one
    assert errors[2] != errors[2]  # NaN: no finite value is left


@pytest.mark.parametrize(
    ("config", "n_layers"),
    [
        (lambda: tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=3, state_size=4), 3),
        (lambda: tf.Lfm2Config(**SMALL, full_attn_idxs=[1]), 3),
    ],
    ids=["mamba", "lfm2"],
)
def test_only_the_residual_is_captured_unless_every_block_has_both_parts(config: Any, n_layers: int) -> None:
    hook_points = find_hook_points(build(config()), n_layers)
    assert len(hook_points.blocks) == n_layers
    assert (hook_points.components, hook_points.exception, hook_points.order) == ({}, "", ())


def test_ambiguous_blocks_are_an_error() -> None:
    albert = build(tf.AlbertConfig(**PLAIN, embedding_size=16))
    with pytest.raises(ModelError) as caught:
        find_hook_points(albert, LAYERS)
    assert str(caught.value) == ("AlbertModel: cannot identify its 3 blocks; matching module lists: none")
    llama = build(PRE_NORM["llama"]())
    llama.shadow = torch.nn.ModuleList(llama.layers)
    with pytest.raises(ModelError, match=r"matching module lists: layers, shadow$"):
        find_blocks(llama, LAYERS)


def test_the_encoder_of_an_encoder_decoder_is_captured() -> None:
    bart = build(POST_NORM["bart"]())
    assert find_hook_points(bart, LAYERS).decoder is bart.encoder
    t5 = tf.AutoModel.from_config(tf.T5Config(**T5, num_decoder_layers=2))
    assert find_hook_points(t5, LAYERS).decoder is t5.encoder


def test_an_output_is_a_tensor_alone_or_first_in_a_tuple() -> None:
    tensor, like = torch.arange(24.0).reshape(6, 4), torch.zeros(2, 3, 4)
    assert hook_output(tensor) is tensor
    assert hook_output((tensor, None)) is tensor
    assert hook_output([tensor, None]) is tensor
    assert torch.equal(hook_output(tensor, like), tensor.view(2, 3, 4))
    with pytest.raises(ModelError, match="returned a NoneType, not a tensor"):
        hook_output((None, tensor))
    with pytest.raises(ModelError, match=r"returned shape \(6, 4\) in a block of shape \(4, 3, 2\)"):
        hook_output(tensor, torch.zeros(4, 3, 2))
