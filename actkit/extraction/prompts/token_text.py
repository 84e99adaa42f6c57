"""Decoding of single tokens: each complete character belongs to the token that completes it."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# byte-level tokenizers write each byte as a character; bytes that are not printable get other characters
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + index): byte for index, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)
}


class TokenDecoder:
    """Decoder of a sequence of tokens into one string per token.

    The concatenated strings are the decoded text, including special tokens. A character whose bytes are
    spread over several tokens belongs to the last of them; invalid bytes are shown as U+FFFD.

    Parameters
    ----------
    tokenizer
        Tokenizer of any kind.

    Examples
    --------
    >>> from tokenizers import Tokenizer, decoders, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> bpe = Tokenizer(models.BPE({"Ø": 0, "§": 1, "Ġa": 2}, []))
    >>> bpe.decoder = decoders.ByteLevel()
    >>> TokenDecoder(PreTrainedTokenizerFast(tokenizer_object=bpe))([2, 0, 1])
    [' a', '', 'ا']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._byte_level = self._backend is not None and isinstance(self._backend.decoder, decoders.ByteLevel)
        self._bytes: dict[int, bytes] = {}
        # the same few neighbouring tokens recur often
        self._decode_few = lru_cache(2**16)(self._decode)

    def __call__(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return one string per token.

        Parameters
        ----------
        ids
            Vocabulary indices, dims ``(token,)``.
        """
        indices = tuple(int(index) for index in ids)
        if self._byte_level:
            return _decode_bytes([self._bytes_of(index) for index in indices])
        text = self._decode(indices)
        pieces = self._by_unit(indices)
        return pieces if "".join(pieces) == text else self._by_prefix(indices, text)

    def _decode(self, ids: tuple[int, ...]) -> str:
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _bytes_of(self, index: int) -> bytes:
        if index not in self._bytes:
            token = self._backend.id_to_token(index) or ""
            known = all(character in _BYTES for character in token)
            # added tokens are stored as plain strings
            self._bytes[index] = bytes(_BYTES[c] for c in token) if known else token.encode()
        return self._bytes[index]

    def _by_unit(self, ids: tuple[int, ...]) -> list[str]:
        """Decode each unit together with the previous one; tokens further away have no effect."""
        pieces: list[str] = []
        before: tuple[int, ...] = ()
        pending: tuple[int, ...] = ()
        decoded = ""
        for unit in _units(ids, self._tokenizer.convert_ids_to_tokens(list(ids))):
            pending += unit
            text = self._decode_few(before + pending)
            if text == decoded or (text.endswith(_REPLACEMENT) and len(unit) == 1):
                pieces.append("")
                continue
            pieces += self._split_unit(unit, text[len(decoded) :])
            before, pending = pending, ()
            decoded = self._decode_few(before)
        if pending:
            pieces[-1] += self._decode_few(before + pending)[len(decoded) :]
        return pieces

    def _split_unit(self, unit: tuple[int, ...], text: str) -> list[str]:
        """Distribute the characters of a unit among its tokens."""
        if len(unit) == 1:
            return [text]
        matches = [_BYTE.fullmatch(token) for token in self._tokenizer.convert_ids_to_tokens(list(unit))]
        pieces = _decode_bytes([bytes.fromhex(match[1]) for match in matches if match])
        if "".join(pieces) == text and len(pieces) == len(unit):
            return pieces
        # one invalid byte makes all bytes of its unit invalid
        return list(text) if len(text) == len(unit) else [""] * (len(unit) - 1) + [text]

    def _by_prefix(self, ids: tuple[int, ...], text: str) -> list[str]:
        """Decode ever longer prefixes, which is slow but correct whenever a correct answer exists."""
        pieces, decoded = [], ""
        for stop in range(1, len(ids) + 1):
            prefix = self._decode(ids[:stop]) if stop < len(ids) else text
            extends = text.startswith(prefix) and len(prefix) > len(decoded)
            pieces.append(prefix[len(decoded) :] if extends else "")
            decoded = prefix if extends else decoded
        return pieces


def _units(ids: tuple[int, ...], tokens: list[str]) -> Iterator[tuple[int, ...]]:
    """Yield tokens that are decoded alone, and runs of byte tokens, which are decoded together."""
    run: tuple[int, ...] = ()
    for index, token in zip(ids, tokens, strict=True):
        if token and token.startswith("<0x") and _BYTE.fullmatch(token):
            run += (index,)
            continue
        if run:
            yield run
            run = ()
        yield (index,)
    if run:
        yield run


def _decode_bytes(tokens: Sequence[bytes]) -> list[str]:
    decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")("replace").decode
    return [decode(token, final=place == len(tokens)) for place, token in enumerate(tokens, start=1)]
