"""Encoders, state space, recurrent and hybrid models, and unsupported architectures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .record import EXPERTS, GPT, HEADS, IDS, LAYERS, PLAIN, SLIDING, SMALL, VOCABULARY, WINDOW, Architecture

_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": LAYERS,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class _Bert(Architecture):
    mlp_output: str = r"output\.dense"
    norms: tuple[str, str, str] = ("", "attention.output.LayerNorm", "output.LayerNorm")
    sum_rule: str = "post-norm"
    options: Mapping[str, Any] = field(default_factory=lambda: PLAIN)


OTHERS: dict[str, Architecture] = {
    "Mamba": Architecture(
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": LAYERS,
            "state_size": 8,
            "time_step_rank": 4,
            **IDS,
        },
        parts=False,
        embedding="embeddings",
        final_norm="norm_f",
        implementations=("eager",),
        sum_rule="no attention, no mlp",
    ),
    "T5 encoder": Architecture("T5EncoderModel", "T5Config", _T5, mlp_output=r"layer\.1\.DenseReluDense\.wo"),
    "BERT": _Bert("BertModel", "BertConfig"),
    "RoBERTa": _Bert("RobertaModel", "RobertaConfig"),
    "ELECTRA": _Bert("ElectraModel", "ElectraConfig", {**PLAIN, "embedding_size": 16}),
    "DistilBERT": Architecture(
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": 32,
            "hidden_dim": 48,
            "n_layers": LAYERS,
            "n_heads": 4,
            "max_position_embeddings": 256,
            "pad_token_id": 0,
        },
        mlp_output=r"ffn\.lin2",
        norms=("", "sa_layer_norm", "output_layer_norm"),
        sum_rule="post-norm",
    ),
    "ModernBERT": Architecture(
        "ModernBertModel",
        "ModernBertConfig",
        {**PLAIN, "local_attention": 2 * WINDOW, "global_attn_every_n_layers": 2},
        mlp_output=r"mlp\.Wo",
    ),
    "ALBERT": Architecture(
        "AlbertModel",
        "AlbertConfig",
        {**PLAIN, "embedding_size": 16},
        error="cannot identify its 4 blocks",
    ),
    "Jamba": Architecture(
        "JambaForCausalLM",
        "JambaConfig",
        {
            **SMALL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        parts=False,
        mlp_output=r"feed_forward\.(.+\.)?down_proj",
    ),
    "Qwen3-Next": Architecture(
        "Qwen3NextForCausalLM",
        "Qwen3NextConfig",
        {
            **HEADS,
            **EXPERTS,
            "shared_expert_intermediate_size": 24,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
        },
    ),
    "Gemma 3n": Architecture(
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {
            **HEADS,
            **SLIDING,
            "intermediate_size": [48] * LAYERS,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "laurel_rank": 8,
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 2,
            "activation_sparsity_pattern": [0.0] * LAYERS,
        },
        error="4 blocks returned shapes",
    ),
    "BART": Architecture(
        "BartModel",
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 32,
            "encoder_layers": LAYERS,
            "decoder_layers": LAYERS,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "decoder_start_token_id": 1,
            **IDS,
        },
        mlp_output="fc2",
        norms=("", "self_attn_layer_norm", "final_layer_norm"),
        part="encoder",
        sum_rule="post-norm",
    ),
    "T5 (encoder and decoder)": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {**_T5, "decoder_start_token_id": 0},
        mlp_output=r"layer\.1\.DenseReluDense\.wo",
        part="encoder",
    ),
    "XLM": Architecture(
        "XLMModel",
        "XLMConfig",
        {
            "vocab_size": VOCABULARY,
            "emb_dim": 32,
            "n_layers": LAYERS,
            "n_heads": 4,
            "n_langs": 1,
            "max_position_embeddings": 256,
        },
        implementations=("eager",),
        error="cannot identify its 4 blocks",
    ),
    "DeBERTa-v2": _Bert(
        "DebertaV2Model",
        "DebertaV2Config",
        {**PLAIN, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
        implementations=("eager",),
    ),
    "GTE": Architecture("GteModel", "GteConfig", PLAIN, parts=False),
    "Nomic BERT": Architecture("NomicBertModel", "NomicBertConfig", PLAIN, parts=False),
    "Falcon-H1": Architecture(
        "FalconH1ForCausalLM",
        "FalconH1Config",
        {**HEADS, "mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8},
        parts=False,
    ),
    "RecurrentGemma": Architecture(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        {**HEADS, "lru_width": 32, "attention_window_size": WINDOW},
        parts=False,
    ),
    "RWKV": Architecture(
        "RwkvForCausalLM",
        "RwkvConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": LAYERS,
            "intermediate_size": 48,
            "rescale_every": 0,
            **IDS,
        },
        parts=False,
        embedding="embeddings",
        final_norm="ln_out",
        implementations=("eager",),
    ),
    "MiniMax": Architecture(
        "MiniMaxForCausalLM",
        "MiniMaxConfig",
        {
            **HEADS,
            "num_local_experts": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "block_size": 8,
        },
        parts=False,
    ),
    "CTRL": Architecture(
        "CTRLModel",
        "CTRLConfig",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "dff": 48,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": 256,
        },
        parts=False,
        final_norm="layernorm",
        implementations=("eager",),
    ),
    "GPT-1": Architecture(
        "OpenAIGPTModel",
        "OpenAIGPTConfig",
        GPT,
        parts=False,
        implementations=("eager",),
    ),
    "Longformer": Architecture(
        "LongformerModel",
        "LongformerConfig",
        {**PLAIN, "attention_window": 2 * WINDOW},
        parts=False,
        implementations=("eager",),
        error="4 blocks returned shapes",
    ),
    "ConvBERT": _Bert(
        "ConvBertModel",
        "ConvBertConfig",
        {**PLAIN, "embedding_size": 32},
        implementations=("eager",),
        error="batch_size=1",
    ),
    "FNet": Architecture(
        "FNetModel", "FNetConfig", PLAIN, parts=False, implementations=("eager",), error="batch_size=1"
    ),
}
