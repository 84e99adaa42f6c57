"""Rows are encoded like in transformers, with a kind for each token, or a clear fault is reported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from actkit.extraction.prompts.encoder import Encoder, Prompt, collate
from actkit.schema import TokenKind
from tests.extraction.encoded_prompts import TEXTS, load, loaded, sound, text_of
from tests.models.vlms import VLMS

pytestmark = pytest.mark.usefixtures("no_weights")


def image(width: int = 70, height: int = 50) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def test_plain_prompts_equal_the_output_of_the_tokenizer(tiny_model: Path, tokenizer: Any) -> None:
    texts = [*TEXTS, "a</s>b"]
    prompts = sound(loaded(tiny_model), texts)
    for prompt, ids in zip(prompts, tokenizer(texts).input_ids, strict=True):
        assert (prompt.ids.dtype, prompt.kinds.dtype) == (np.int32, np.int8)
        assert prompt.ids.tolist() == ids
        assert not prompt.truncated
        assert not prompt.features
    assert set(prompts[0].kinds[1:]) == {TokenKind.TEXT}
    assert prompts[-1].kinds.tolist() == [
        TokenKind.SPECIAL,
        TokenKind.TEXT,
        TokenKind.SPECIAL,
        TokenKind.TEXT,
    ]


def test_unknown_words_are_text(minilm: Path) -> None:
    (prompt,) = sound(loaded(minilm), ["word 🦄"])
    assert prompt.ids.tolist() == [101, 2773, 100, 102]
    assert prompt.kinds.tolist() == [TokenKind.SPECIAL, TokenKind.TEXT, TokenKind.TEXT, TokenKind.SPECIAL]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_model", "minilm"])
def test_long_prompts_are_cut_as_the_tokenizer_cuts_them(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for most in range(3, 20):
        wanted = tokenizer(TEXTS, truncation=True, max_length=most).input_ids
        prompts = sound(loaded(folder, max_tokens=most), TEXTS)
        assert [prompt.ids.tolist() for prompt in prompts] == wanted
        assert [prompt.truncated for prompt in prompts] == [
            len(ids) > most for ids in tokenizer(TEXTS).input_ids
        ]


@pytest.mark.parametrize(("model", "added"), [("tiny_model", 1), ("minilm", 2)])
def test_max_tokens_that_leaves_no_room_for_text(
    model: str, added: int, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(model)
    for too_few in range(1, added + 1):
        encoder, faults = load(folder, max_tokens=too_few)
        assert faults == [
            f"max_tokens: {too_few} leaves no room for text: the tokenizer adds {added} tokens "
            f"(set max_tokens to {added + 1} or more)"
        ]
        assert encoder is not None  # so that rows can still be checked
    (prompt,) = sound(loaded(folder, max_tokens=added + 1), ["the doctor"])
    assert (prompt.kinds == TokenKind.TEXT).sum() == 1


def test_prompts_longer_than_the_model_takes(minilm: Path) -> None:
    prompts = loaded(minilm).encode(["word " * 510, "word " * 511])
    assert len(prompts[0].ids) == 512  # type: ignore[union-attr]
    assert prompts[1] == "has 513 tokens, but the model takes at most 512: set max_tokens to 512 or less"
    assert len(sound(loaded(minilm, max_tokens=512), ["word " * 900])[0].ids) == 512


def test_tokens_that_the_model_does_not_have(chat_model: Callable[..., Path], tokenizer: Any) -> None:
    folder = chat_model("", "<|new|>")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(tokenizer)}))
    assert loaded(folder).encode(["<|new|>"]) == [
        f"has token {len(tokenizer)}, but the model's embedding has only {len(tokenizer)} rows: "
        "use the tokenizer that belongs to the model"
    ]


def with_parts(tokenizer: Any, **parts: Any) -> Any:
    """Return the tokenizer with other components of tokenizer.json."""
    described = {**json.loads(tokenizer.backend_tokenizer.to_str()), **parts}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)))


def test_prompts_without_any_token(tokenizer: Any) -> None:
    silent = {"type": "Replace", "pattern": {"String": "\u200f"}, "content": ""}
    encoder = Encoder(with_parts(tokenizer, post_processor=None, normalizer=silent))
    prompts = encoder.encode(["a", "\u200f", "b", "\u200f\u200f"])
    assert [prompt for prompt in prompts if isinstance(prompt, str)] == ["has no tokens"] * 2
    assert prompts[0].kinds.tolist() == [TokenKind.TEXT]  # type: ignore[union-attr]
    assert encoder.encode([]) == []


def test_a_text_model_takes_no_images(tiny_model: Path) -> None:
    assert load(tiny_model, image_column="image") == (
        None,
        [
            "image_column: the model takes no images (`llama` has no image processor) "
            "(leave it out, or choose a vision-language model)"
        ],
    )


def test_a_processor_without_template_or_files(vlm: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(vlm("llava"), folder)
    (folder / "chat_template.jinja").unlink()
    assert load(folder, image_column="image") == (
        None,
        ["image_column: the processor has no chat template (leave it out, or use a chat model)"],
    )
    (folder / "processor_config.json").write_text("{")
    encoder, (fault,) = load(folder, image_column="image")
    assert encoder is None
    assert fault.startswith("model m: its processor cannot be loaded: ")
    (folder / "processor_config.json").unlink()
    encoder, (fault,) = load(folder, image_column="image")
    assert encoder is None
    assert fault.startswith("model m: its processor cannot be loaded: ")


@pytest.mark.slow
@pytest.mark.parametrize("name", VLMS)
def test_images_are_never_cut(name: str, vlm: Callable[[str], Path]) -> None:
    encoder = loaded(vlm(name), image_column="image")
    (whole,) = sound(encoder, [TEXTS[1]], [image()])
    n_text = int((whole.kinds == TokenKind.TEXT).sum())
    assert text_of(encoder, whole, TokenKind.TEXT) == TEXTS[1]
    assert (whole.kinds == TokenKind.IMAGE).sum() > 1
    encoder.max_tokens = len(whole.ids) - n_text + 3
    (cut,) = sound(encoder, [TEXTS[1]], [image()])
    text = np.flatnonzero(whole.kinds == TokenKind.TEXT)
    kept = np.delete(np.arange(len(whole.ids)), text[3:])
    assert cut.truncated
    assert cut.ids.tolist() == whole.ids[kept].tolist()
    assert cut.kinds.tolist() == whole.kinds[kept].tolist()
    for key, tensor in whole.features.items():
        of_tokens = tensor.shape == (1, len(whole.ids))
        assert torch.equal(cut.features[key], tensor[:, kept] if of_tokens else tensor)
    encoder.max_tokens = around = len(whole.ids) - n_text
    assert encoder.encode([TEXTS[1]], [image()]) == [
        f"has {around} tokens that are not text, but max_tokens is {around}: "
        f"set max_tokens to {around + 1} or more"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", VLMS)
def test_rows_rejected_by_a_processor(name: str, vlm: Callable[[str], Path]) -> None:
    encoder = loaded(vlm(name), image_column="image")
    token = VLMS[name].image_token
    good, posing = encoder.encode(["a", f"a {token} b"], [image(), image()])
    assert isinstance(good, Prompt)
    if name == "gemma3":  # a token that its processor writes but does not search for
        assert posing == "contains `<image_soft_token>`, which is reserved for images"
    else:
        assert isinstance(posing, str)
        assert posing.startswith("is rejected by the processor: The total number of <")
    if name == "qwen2_5_vl":
        assert encoder.encode(["a"], [image(1, 300)]) == [
            "is rejected by the processor: absolute aspect ratio must be smaller than 200, got 300.0"
        ]


@pytest.mark.slow
@pytest.mark.parametrize("name", VLMS)
def test_vision_language_models_take_chats_without_images(name: str, vlm: Callable[[str], Path]) -> None:
    encoder = loaded(vlm(name), chat=True)
    (prompt,) = sound(encoder, ["Hi there"])
    assert text_of(encoder, prompt, TokenKind.TEXT) == "Hi there"
    assert not (prompt.kinds == TokenKind.IMAGE).any()
    assert (prompt.ids == encoder.tokenizer.bos_token_id).sum() == 1
    seen = loaded(vlm(name), image_column="image").description
    assert seen["image_processor"].endswith("ImageProcessorPil")
    assert seen["processor"].endswith("Processor")


def prompt_of(length: int, **features: torch.Tensor) -> Prompt:
    return Prompt(np.arange(1, length + 1, dtype=np.int32), np.zeros(length, dtype=np.int8), False, features)


@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_padded_on_one_side(side: Any) -> None:
    prompts = [
        prompt_of(
            2, types=torch.tensor([[1, 1]]), pixels=torch.ones(1, 2, 3), grid=torch.tensor([[1, 1, 2]])
        ),
        prompt_of(
            4, types=torch.ones(1, 4).long(), pixels=torch.ones(2, 1, 4), grid=torch.tensor([[1, 2, 2]])
        ),
    ]
    batch = collate(prompts, side=side, pad_id=9)
    filled = {"right": [1, 2, 9, 9], "left": [9, 9, 1, 2]}[side]
    assert batch["input_ids"].tolist() == [filled, [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[int(i != 9) for i in filled], [1] * 4]
    assert batch["types"].tolist() == batch["attention_mask"].tolist()
    assert batch["grid"].tolist() == [[1, 1, 2], [1, 2, 2]]
    assert batch["pixels"].shape == (3, 2, 4)
    assert batch["pixels"][0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 0]]
    assert batch["pixels"][1:].tolist() == [[[1, 1, 1, 1], [0, 0, 0, 0]]] * 2
