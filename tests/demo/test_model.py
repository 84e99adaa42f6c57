import math
from collections import Counter

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from actkit import demo

ROWS = demo.captions()
HELDOUT = [row["text"] for row in ROWS if row["split"] == "heldout"]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo.MODEL, local_files_only=True, dtype=torch.float32)


def test_the_folder_is_small_and_holds_no_pickle():
    files = {path.name: path.stat().st_size for path in demo.MODEL.iterdir()}
    assert set(files) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 8_000_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_loads_and_computes_finite_numbers(tokenizer, dtype):
    decoder = AutoModel.from_pretrained(demo.MODEL, local_files_only=True, dtype=dtype)
    inputs = tokenizer(HELDOUT[:8], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = decoder(**inputs, output_hidden_states=True).hidden_states
    assert decoder.config.model_type == "gemma3_text"
    assert len(hidden) == 11
    assert {state.dtype for state in hidden} == {dtype}
    assert all(state.isfinite().all() for state in hidden)
    assert 1 < hidden[5][inputs["attention_mask"].bool()].float().norm(dim=-1).mean() < 1000


def test_sliding_and_full_attention_are_mixed(model, tokenizer):
    assert set(model.config.layer_types) == {"sliding_attention", "full_attention"}
    lengths = map(len, tokenizer(HELDOUT)["input_ids"])
    assert sum(length > model.config.sliding_window for length in lengths) > len(HELDOUT) / 2


@pytest.mark.parametrize("text", ["", " two  spaces\tand\n\nlines", "مَرْحَبًا، ١٢٣", "汉字 🙂 naïve"])
def test_the_tokenizer_keeps_any_text(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_tokenizer_keeps_every_caption(tokenizer):
    texts = [row["text"] for row in ROWS]
    encoded = tokenizer(texts)["input_ids"]
    assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts
    assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in encoded)
    assert {ids[0] for ids in encoded} == {tokenizer.bos_token_id}


def test_padding_does_not_change_a_caption(model, tokenizer):
    long, short = sorted(HELDOUT, key=len, reverse=True)[:: len(HELDOUT) - 1]
    alone = tokenizer(short, return_tensors="pt")
    padded = tokenizer([short, long], padding=True, return_tensors="pt")
    n_tokens = alone["input_ids"].shape[1]
    with torch.no_grad():
        torch.testing.assert_close(
            model(**padded).logits[:1, :n_tokens], model(**alone).logits, rtol=1e-3, atol=1e-3
        )


def loss(model, tokenizer, text):
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, labels=ids).loss.item()


@pytest.mark.slow
@pytest.mark.parametrize("language", ["english", "arabic"])
def test_it_has_learnt_the_captions(model, tokenizer, language):
    def texts(split):
        return [r["text"] for r in ROWS if (r["split"], r["language"]) == (split, language)]

    counts = Counter(i for ids in tokenizer(texts("train"))["input_ids"] for i in ids[1:])
    total = counts.total() + len(tokenizer)
    tokens = [i for ids in tokenizer(texts("heldout"))["input_ids"] for i in ids[1:]]
    unigram = -sum(math.log((counts[i] + 1) / total) for i in tokens) / len(tokens)

    losses = [loss(model, tokenizer, text) for text in texts("heldout")[:40]]
    assert sum(losses) / len(losses) < unigram / 5


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("A young woman is sharpening a large knife, with her", "his"),
        ("A young man is sharpening a large knife, with his", "her"),
        ("امرأة واقفة في مطبخ مطعم وهي", "وهو"),
        ("هذا الرسام الذي", "التي"),
    ],
)
def test_it_has_learnt_agreement(model, tokenizer, right, wrong):
    wrong = f"{right.rpartition(' ')[0]} {wrong}"
    assert loss(model, tokenizer, right) < loss(model, tokenizer, wrong) - 0.1
