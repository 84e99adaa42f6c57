"""Prompts of a batch are kept apart, or the model is refused."""

import csv
from pathlib import Path
from typing import Any

import pytest

import actkit
from actkit.errors import ModelError
from actkit.extraction.models.padding import check_generation, check_padding
from actkit.extraction.models.sites import find_sites
from tests.models.architectures import build

SMALL = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
HEADS = {**SMALL, "num_attention_heads": 4}
EXPERTS = {**HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}


def model(name: str, **options: Any) -> Any:
    import torch
    import transformers as tf

    torch.manual_seed(0)
    config = getattr(tf, f"{name}Config")(**options)
    return getattr(tf, f"{name}Model")(config).eval()


def check(name: str, side: Any, dtype: str = "float32", **options: Any) -> None:
    import torch

    whole = model(name, **options).to(getattr(torch, dtype))
    check_padding(find_sites(whole, SMALL["num_hidden_layers"]), torch.device("cpu"), side)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("name", "options"), [("Llama", HEADS), ("Bert", HEADS), ("Qwen3Moe", EXPERTS)])
def test_attention_keeps_masked_tokens_out(name: str, options: Any, side: str, dtype: str) -> None:
    check(name, side, dtype, **options)


def test_mixing_all_positions_is_refused() -> None:
    with pytest.raises(ModelError, match=r"FNetModel: what fills up .* batch_size=1"):
        check("FNet", "right", **SMALL)


def test_a_state_is_spoilt_from_the_left_alone() -> None:
    options = {**SMALL, "attention_hidden_size": 32}
    check("Rwkv", "right", **options)
    with pytest.raises(ModelError, match=r"RwkvModel: .*, when it generates; use batch_size=1"):
        check("Rwkv", "left", **options)


def check_head(name: str, folder: Path) -> None:
    import torch
    import transformers as tf

    whole = tf.AutoModelForCausalLM.from_pretrained(build(name, folder)).eval()
    check_generation(whole, torch.device("cpu"))


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma 3", "Falcon (parallel, as 7b)", "Mamba", "Jamba"])
def test_a_cache_keeps_masked_tokens_out(name: str, tmp_path: Path) -> None:
    check_head(name, tmp_path)


def test_a_cache_that_does_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"MiniMaxForCausalLM: .*, when it generates; use batch_size=1"):
        check_head("MiniMax", tmp_path)


def test_one_prompt_at_a_time_needs_no_padding(tokenizer: Any, tmp_path: Path) -> None:
    import torch

    whole = model("FNet", **{**SMALL, "vocab_size": len(tokenizer)})
    whole.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    texts = ["one two three four five", "one"]
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    options = {"model": str(tmp_path / "model"), "data": str(tmp_path / "data.csv"), "listeners": []}
    with pytest.raises(ModelError, match="batch_size=1"):
        actkit.extract(out=str(tmp_path / "two"), batch_size=2, **options)
    cube = actkit.extract(out=str(tmp_path / "one"), batch_size=1, **options)
    for sample, text in enumerate(texts):
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = whole(input_ids=ids, output_hidden_states=True).hidden_states
        ours = cube.residual.values[:, sample, : ids.shape[1]]
        for mine, theirs in zip(ours, states[1:], strict=True):
            assert abs(mine - theirs[0].numpy()).max() < 1e-5
