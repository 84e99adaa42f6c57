"""Small random Llamas as GGUF files, written as llama.cpp writes them."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, INNER, HEADS, KEYS, LAYERS = 64, 96, 4, 2, 2
HEAD = HIDDEN // HEADS
MATRICES, VECTORS = 7 * LAYERS + 1, 2 * LAYERS + 1  # of the file


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """Put the rows of a query or key matrix into llama.cpp's order: the halves of each head interleaved."""
    return weights.reshape(heads, 2, -1, weights.shape[1]).swapaxes(1, 2).reshape(weights.shape)


def random_weights(vocabulary: int) -> dict[str, np.ndarray]:
    """Return weights by the names that transformers has for them."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return rng.normal(0, 0.3, (rows, columns)).astype(np.float32)

    weights = {"model.embed_tokens.weight": matrix(vocabulary, HIDDEN)}
    for index in range(LAYERS):
        block = f"model.layers.{index}"
        weights |= {
            f"{block}.self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN),
            f"{block}.self_attn.k_proj.weight": matrix(KEYS * HEAD, HIDDEN),
            f"{block}.self_attn.v_proj.weight": matrix(KEYS * HEAD, HIDDEN),
            f"{block}.self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN),
            f"{block}.mlp.gate_proj.weight": matrix(INNER, HIDDEN),
            f"{block}.mlp.up_proj.weight": matrix(INNER, HIDDEN),
            f"{block}.mlp.down_proj.weight": matrix(HIDDEN, INNER),
            f"{block}.input_layernorm.weight": rng.normal(1, 0.1, HIDDEN).astype(np.float32),
            f"{block}.post_attention_layernorm.weight": rng.normal(1, 0.1, HIDDEN).astype(np.float32),
        }
    return weights | {"model.norm.weight": rng.normal(1, 0.1, HIDDEN).astype(np.float32)}


_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
}


def write_gguf(
    path: Path,
    tokenizer: Any,
    kind: str = "Q8_0",
    *,
    architecture: str = "llama",
    entries: dict[str, str | float] | None = None,
    extra: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Write a random model with its tokenizer.

    Parameters
    ----------
    path
        The file.
    tokenizer
        A byte-level BPE.
    kind
        As what matrices are stored; vectors are float32.
    architecture, entries, extra
        What the header says, more texts and numbers for it, and more tensors.

    Returns
    -------
    dict
        The weights that the file holds, dequantized by the gguf package, by transformers' names.
    """
    stored = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}" if kind != "F32" else "ALL_F32"])
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEYS)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in (entries or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_float32)(name, value)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    held = {}
    for name, weights in random_weights(len(tokens)).items():
        short = name
        for theirs, ours in _NAMES.items():
            short = short.replace(theirs, ours)
        heads = {"q_proj": HEADS, "k_proj": KEYS}.get(name.split(".")[-2], 0)
        raw = permuted(weights, heads) if heads else weights
        as_kind = stored if weights.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(raw, as_kind)
        writer.add_tensor(short, data, raw_dtype=as_kind)
        back = gguf.quants.dequantize(data, as_kind).reshape(weights.shape)
        if heads:  # undo it by hand: the halves of each head next to each other
            back = back.reshape(heads, HEAD // 2, 2, -1).swapaxes(1, 2).reshape(weights.shape)
        held[name] = back
    for name, weights in (extra or {}).items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held
