"""The characters of each token: whole ones, in the token that completes them."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# byte-level tokenizers write each byte as a character: those without a shape of their own as others
_BYTES = {chr(byte): byte for byte in _SHOWN} | {
    chr(256 + index): byte for index, byte in enumerate(byte for byte in range(256) if byte not in _SHOWN)
}


class Pieces:
    """Tells the characters of each token of a text.

    Together they are what the tokenizer decodes, special tokens included. A character whose bytes lie
    in several tokens stands in the last of them; bytes that are no character are shown as U+FFFD.

    Parameters
    ----------
    tokenizer
        Of any kind.

    Examples
    --------
    >>> from tokenizers import Tokenizer, decoders, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> bpe = Tokenizer(models.BPE({"Ø": 0, "§": 1, "Ġa": 2}, []))
    >>> bpe.decoder = decoders.ByteLevel()
    >>> Pieces(PreTrainedTokenizerFast(tokenizer_object=bpe))([2, 0, 1])
    [' a', '', 'ا']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer: Any = tokenizer
        self._backend: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._byte_level = self._backend is not None and isinstance(self._backend.decoder, decoders.ByteLevel)
        self._bytes: dict[int, bytes] = {}
        # the same neighbours come again and again
        self._decode_few = lru_cache(2**16)(self._decode)

    def __call__(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Return one string for each token.

        Parameters
        ----------
        ids
            Vocabulary indices, dims ``(token,)``.
        """
        listed = tuple(int(index) for index in ids)
        if self._byte_level:
            return _of_bytes([self._bytes_of(index) for index in listed])
        text = self._decode(listed)
        pieces = self._by_unit(listed)
        return pieces if "".join(pieces) == text else self._by_prefix(listed, text)

    def _decode(self, ids: tuple[int, ...]) -> str:
        if self._backend is not None:
            return str(self._backend.decode(list(ids), skip_special_tokens=False))
        return str(self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    def _bytes_of(self, index: int) -> bytes:
        if index not in self._bytes:
            token = self._backend.id_to_token(index) or ""
            known = all(character in _BYTES for character in token)
            # added tokens are written as they are
            self._bytes[index] = bytes(_BYTES[c] for c in token) if known else token.encode()
        return self._bytes[index]

    def _by_unit(self, ids: tuple[int, ...]) -> list[str]:
        """Decode each unit behind the one before it: what stands further off has no effect."""
        pieces: list[str] = []
        before: tuple[int, ...] = ()
        waiting: tuple[int, ...] = ()
        shown = ""
        for unit in _units(ids, self._tokenizer.convert_ids_to_tokens(list(ids))):
            waiting += unit
            text = self._decode_few(before + waiting)
            if text == shown or (text.endswith(_INCOMPLETE) and len(unit) == 1):
                pieces.append("")
                continue
            pieces += self._spread(unit, text[len(shown) :])
            before, waiting = waiting, ()
            shown = self._decode_few(before)
        if waiting:
            pieces[-1] += self._decode_few(before + waiting)[len(shown) :]
        return pieces

    def _spread(self, unit: tuple[int, ...], text: str) -> list[str]:
        """Give each byte of a unit its share of the characters."""
        if len(unit) == 1:
            return [text]
        found = [_BYTE.fullmatch(token) for token in self._tokenizer.convert_ids_to_tokens(list(unit))]
        pieces = _of_bytes([bytes.fromhex(match[1]) for match in found if match])
        if "".join(pieces) == text and len(pieces) == len(unit):
            return pieces
        # one byte that is none makes all others of its unit none, too
        return list(text) if len(text) == len(unit) else [""] * (len(unit) - 1) + [text]

    def _by_prefix(self, ids: tuple[int, ...], text: str) -> list[str]:
        """Decode longer and longer beginnings: slow, and right wherever there is a right answer."""
        pieces, shown = [], ""
        for stop in range(1, len(ids) + 1):
            prefix = self._decode(ids[:stop]) if stop < len(ids) else text
            fits = text.startswith(prefix) and len(prefix) > len(shown)
            pieces.append(prefix[len(shown) :] if fits else "")
            shown = prefix if fits else shown
        return pieces


def _units(ids: tuple[int, ...], tokens: list[str]) -> Iterator[tuple[int, ...]]:
    """Yield tokens that are decoded alone, and runs of bytes, which are decoded together."""
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


def _of_bytes(tokens: Sequence[bytes]) -> list[str]:
    decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")("replace").decode
    return [decode(token, final=place == len(tokens)) for place, token in enumerate(tokens, start=1)]
