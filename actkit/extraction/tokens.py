"""Texts to token ids, and what each position holds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..errors import Fault
from ..schema import CONTENT_KINDS, TokenKind
from .checkpoints import Checkpoint

_VOCABULARIES = ("tokenizer.json", "tekken.json", "tiktoken.model")


@dataclass(frozen=True)
class Tokens:
    """The prompts as a model sees them, left-aligned.

    Parameters
    ----------
    ids
        Vocabulary indices, dims ``(sample, token)``; 0 at pads.
    kinds
        :class:`~actkit.schema.TokenKind`, dims ``(sample, token)``.
    lengths
        Real tokens, dims ``(sample,)``.
    truncated
        Whether ``max_tokens`` cut the prompt, dims ``(sample,)``.
    first_is_content
        Whether position 0 is content: only where the tokenizer puts a special token there is it known
        not to be an attention sink in disguise, and then it is no content anyway.
    """

    ids: np.ndarray
    kinds: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray
    first_is_content: bool

    def content(self) -> np.ndarray:
        """Return which positions hold content tokens, dims ``(sample, token)``."""
        mask = np.isin(self.kinds, CONTENT_KINDS)
        if not self.first_is_content:
            mask[:, 0] = False
        return mask


def load_tokenizer(checkpoint: Checkpoint) -> tuple[PreTrainedTokenizerBase | None, list[Fault]]:
    """Load the tokenizer of a checkpoint, from its own files and no others."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            checkpoint.folder, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # each tokenizer class raises its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return None, [
            Fault(
                f"model {checkpoint.name}",
                f"its tokenizer cannot be loaded: {reason}",
                "mend its files",
            )
        ]
    # without its vocabulary a tokenizer may load all the same, and call every word unknown
    files = set(tokenizer.vocab_files_names.values())
    if files and not any((checkpoint.folder / file).is_file() for file in (*files, *_VOCABULARIES)):
        what = f"has no tokenizer ({' or '.join(sorted(files))})"
        return None, [Fault(f"model {checkpoint.name}", what, "download the whole model")]
    return tokenizer, []


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int | None,
    positions: int | None,
    vocabulary: int | None,
) -> tuple[Tokens, list[Fault]]:
    """Tokenize the prompts.

    Parameters
    ----------
    tokenizer
        Its special tokens are added; its padding is not used.
    texts
        One prompt a sample.
    max_tokens
        Longer prompts are cut, special tokens included in the count.
    positions
        The longest prompt that the model takes, where it has such a limit.
    vocabulary
        Rows of the model's embedding, where it has one.

    Returns
    -------
    tokens : Tokens
    faults : list of Fault
        Prompts without any token, or too long for the model; tokens that it does not have.
    """
    specials = _special_ids(tokenizer)
    faults = []
    added = tokenizer.num_special_tokens_to_add()
    if max_tokens is not None and max_tokens <= added:
        what = f"{max_tokens} leaves no room for text: the tokenizer adds {added} tokens of its own"
        faults.append(Fault("max_tokens", what, f"set max_tokens to {added + 1} or more"))
        max_tokens = None
    rows = _encode(tokenizer, texts)
    long = [i for i, row in enumerate(rows) if max_tokens is not None and len(row) > max_tokens]
    for i, row in zip(long, _encode(tokenizer, [texts[i] for i in long], max_tokens), strict=True):
        rows[i] = row
    faults += [
        Fault(f"sample {i}", "has no tokens", "mend or remove the row")
        for i, row in enumerate(rows)
        if not row
    ]
    if positions is not None and max((len(row) for row in rows), default=0) > positions:
        over = [i for i, row in enumerate(rows) if len(row) > positions]
        what = (
            f"{len(over)} prompts exceed the {positions} tokens that the model takes, first sample {over[0]}"
        )
        faults.append(Fault("max_tokens", what, f"set max_tokens to {positions} or less"))
    highest = max((token for row in rows for token, _ in row), default=0)
    if vocabulary is not None and highest >= vocabulary:
        what = f"its tokenizer gives token {highest}, and its embedding has {vocabulary} rows"
        faults.append(Fault("model", what, "use the tokenizer that belongs to the model"))
    lengths = np.array([len(row) for row in rows], dtype=np.int32)
    ids = np.zeros((len(rows), int(lengths.max(initial=1))), dtype=np.int32)
    kinds = np.zeros(ids.shape, dtype=np.int8)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = [token for token, _ in row]
        kinds[i, : len(row)] = [
            TokenKind.SPECIAL if added or token in specials else TokenKind.TEXT for token, added in row
        ]
    truncated = np.zeros(len(rows), dtype=bool)
    truncated[long] = True
    first = bool((kinds[:, 0] == TokenKind.SPECIAL).all())
    return Tokens(ids, kinds, lengths, truncated, first_is_content=first), faults


def _encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None
) -> list[list[tuple[int, int]]]:
    if not texts:
        return []
    encoded: Any = tokenizer(
        list(texts),
        padding=False,
        truncation=max_tokens is not None,
        max_length=max_tokens,
        return_special_tokens_mask=True,
        verbose=False,
    )
    pairs = zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
    return [list(zip(ids, added, strict=True)) for ids, added in pairs]


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    # an unknown word is content: to MiniLM much of Arabic is unknown
    return set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
