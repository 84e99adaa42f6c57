"""Rows to what a model reads: token ids, what each position holds, and what it sees of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ...config import Config
from ...errors import Fault
from ...schema import TokenKind
from ..models.checkpoints import Checkpoint
from ..models.loading import Architecture
from .pieces import Pieces
from .processors import describe, find_frame, leaves_special, load_processor, load_tokenizer
from .spans import Tokens, holds_text, is_text
from .templates import Frame, Framed, reason_of

# what a processor gives that no model takes
_NOT_FEATURES = {"input_ids", "attention_mask", "offset_mapping", "special_tokens_mask"}


@dataclass(frozen=True)
class Prompt:
    """One sample as a model reads it.

    Parameters
    ----------
    ids
        Vocabulary indices, int32, dims ``(token,)``.
    kinds
        :class:`~actkit.schema.TokenKind`, int8, dims ``(token,)``.
    truncated
        Whether ``max_tokens`` cut the text.
    features
        What the processor gives beside ids, by the names that the model takes: those of shape
        ``(1, token)`` belong to tokens, others to images. Empty for text.
    """

    ids: np.ndarray
    kinds: np.ndarray
    truncated: bool = False
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Encoder:
    """Turns rows into prompts.

    Parameters
    ----------
    tokenizer
        Its padding is not used.
    frame
        The words around each text.
    adds_special
        Whether the tokenizer adds its special tokens; chat templates write them themselves.
    processor, image_id
        Where there are images: what reads them, and the token at which they are put in.
    max_tokens
        Longer prompts are cut: the end of their text, nothing else.
    positions
        Longest prompt that the model takes, or None.
    vocabulary
        Rows of the model's embedding, or None.
    description
        What a cube says of all this.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        frame: Frame | None = None,
        adds_special: bool = True,
        processor: ProcessorMixin | None = None,
        image_id: int | None = None,
        max_tokens: int | None = None,
        positions: int | None = None,
        vocabulary: int | None = None,
        description: Mapping[str, str] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.description: Mapping[str, str] = description or {}
        self.max_tokens = max_tokens
        self._frame = frame or Frame()
        # where there is nothing but text, no tokenizer has to say where each token came from
        self._offsets = {"return_offsets_mapping": True} if frame else {}
        self._adds_special = adds_special
        self._processor, self._image_id = processor, image_id
        self._positions, self._vocabulary = positions, vocabulary
        # what only templates write, such as Llama's headers, has no name in the tokenizer
        control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        # an unknown word is content: to MiniLM much of Arabic is unknown
        self._control = {*control, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._pieces = Pieces(tokenizer)

    def encode(self, texts: Sequence[str], images: Sequence[Image.Image] | None = None) -> list[Prompt | str]:
        """Turn rows into prompts.

        Parameters
        ----------
        texts
            One a row.
        images
            One a row, RGB; needed where the encoder was loaded for images.

        Returns
        -------
        list of Prompt or str
            Where a row cannot be used, what is wrong with it.
        """
        framed = [self._frame.put(text) for text in texts]
        if self._processor is not None:
            assert images is not None
            pairs = zip(framed, images, strict=True)
            return [row if isinstance(row, str) else self._see(row, image) for row, image in pairs]
        sound = [row for row in framed if isinstance(row, Framed)]
        tokenized = iter(self._tokenize([row.string for row in sound]) if sound else [])
        return [row if isinstance(row, str) else self._prompt(next(tokenized), row) for row in framed]

    def pieces(self, ids: np.ndarray) -> list[str]:
        """Return the characters of each token, as :class:`~actkit.extraction.prompts.pieces.Pieces` does."""
        return self._pieces(ids)

    def least_tokens(self) -> int:
        """Return how many tokens a prompt has beside its text; of images, without theirs."""
        if not self._offsets:
            return int(self.tokenizer.num_special_tokens_to_add())
        framed = self._frame.put("a")
        assert isinstance(framed, Framed)
        return int((~is_text(self._tokenize([framed.string])[0], framed)).sum())

    def _tokenize(self, strings: list[str]) -> list[Tokens]:
        encoded: Any = self.tokenizer(
            strings,
            add_special_tokens=self._adds_special,
            padding=False,
            truncation=False,
            return_special_tokens_mask=True,
            verbose=False,
            **self._offsets,
        )
        offsets = encoded.get("offset_mapping", [None] * len(strings))
        columns = zip(encoded["input_ids"], encoded["special_tokens_mask"], offsets, strict=True)
        return [Tokens.of(*column) for column in columns]

    def _see(self, row: Framed, image: Image.Image) -> Prompt | str:
        processor: Any = self._processor
        try:
            given = processor(
                text=[row.string],
                images=[[image]],
                add_special_tokens=self._adds_special,
                padding=False,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
        except Exception as error:  # each processor raises its own
            return f"is refused by the processor: {reason_of(error)}"
        tokens = Tokens.of(
            *(given[name][0] for name in ("input_ids", "special_tokens_mask", "offset_mapping"))
        )
        # the processor writes many tokens where the template writes one; the text follows it, as a rule
        placeholder = getattr(processor, "image_token", None)
        if placeholder is None or placeholder not in self._frame.after:
            longer = int(tokens.offsets.max() - self._tokenize([row.string])[0].offsets.max())
            row = Framed(row.string, row.start + longer, row.stop + longer)
        features = {name: tensor for name, tensor in given.items() if name not in _NOT_FEATURES}
        return self._prompt(tokens, row, features)

    def _prompt(
        self, tokens: Tokens, row: Framed, features: Mapping[str, torch.Tensor] | None = None
    ) -> Prompt | str:
        """Tell what each token holds, and cut the text where that is asked for."""
        ids = tokens.ids
        whole = is_text(tokens, row)
        images = np.zeros(len(ids), dtype=bool) if features is None else ids == self._image_id
        if (whole & images).any():
            token = self.tokenizer.convert_ids_to_tokens([int(ids[images][0])])[0]
            return f"holds `{token}`, which stands for an image"
        kinds = np.where(holds_text(tokens, row), TokenKind.TEXT, TokenKind.TEMPLATE)
        control = np.array([index in self._control for index in ids.tolist()], dtype=bool)
        kinds[tokens.added | control] = TokenKind.SPECIAL
        kinds[images] = TokenKind.IMAGE
        keep = np.ones(len(ids), dtype=bool)
        excess = len(ids) - (self.max_tokens or len(ids))
        if excess > 0:
            if excess >= whole.sum():
                around = len(ids) - int(whole.sum())
                mend = f"set max_tokens to {around + 1} or more"
                return f"has {around} tokens beside its text, and max_tokens is {self.max_tokens}: {mend}"
            keep[np.flatnonzero(whole)[-excess:]] = False
        prompt = Prompt(
            ids[keep].astype(np.int32),
            kinds[keep].astype(np.int8),
            excess > 0,
            {
                name: tensor[:, keep] if tensor.shape == (1, len(ids)) else tensor
                for name, tensor in (features or {}).items()
            },
        )
        return self._fault(prompt) or prompt

    def _fault(self, prompt: Prompt) -> str:
        length = len(prompt.ids)
        if length == 0:
            return "has no tokens"
        if self._positions is not None and length > self._positions:
            mend = f"set max_tokens to {self._positions} or less"
            return f"has {length} tokens, and the model takes {self._positions}: {mend}"
        highest = int(prompt.ids[prompt.kinds != TokenKind.IMAGE].max(initial=0))
        if self._vocabulary is not None and highest >= self._vocabulary:
            what = f"has token {highest}, and the model's embedding has {self._vocabulary} rows"
            return f"{what}: use the tokenizer that belongs to the model"
        return ""


def collate(
    prompts: Sequence[Prompt],
    *,
    side: Literal["right", "left"] = "right",
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Put prompts into one batch.

    Parameters
    ----------
    prompts
        All with the same features.
    side
        Where shorter ones are filled up.
    pad_id
        With which token; features of tokens are filled up with 0.
    device
        Where the batch goes.

    Returns
    -------
    dict of str to torch.Tensor
        ``input_ids``, ``attention_mask`` and the features: those of tokens with dims
        ``(sample, token)``, those of images one after the other.
    """
    longest = max(len(prompt.ids) for prompt in prompts)

    def padded(rows: Sequence[np.ndarray], value: int = 0) -> torch.Tensor:
        grid = np.full((len(rows), longest), value, dtype=rows[0].dtype)
        for line, row in zip(grid, rows, strict=True):
            line[slice(len(row)) if side == "right" else slice(longest - len(row), None)] = row
        return torch.from_numpy(grid)

    ids = [prompt.ids.astype(np.int64) for prompt in prompts]
    inputs = {
        "input_ids": padded(ids, pad_id),
        "attention_mask": padded([np.ones_like(row) for row in ids]),
    }
    for name in prompts[0].features:
        rows = [prompt.features[name] for prompt in prompts]
        by_token = all(row.shape == (1, len(own)) for row, own in zip(rows, ids, strict=True))
        inputs[name] = padded([row[0].numpy() for row in rows]) if by_token else _joined(rows)
    if torch.device(device).type == "cuda":  # from other memory the copy would wait for the batch before
        inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _joined(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Put tensors one after the other; smaller ones are filled up at their ends, as processors do it."""
    largest = np.max([row.shape[1:] for row in rows], axis=0).tolist()
    edges = [
        [
            edge
            for have, most in zip(row.shape[:0:-1], largest[::-1], strict=True)
            for edge in (0, most - have)
        ]
        for row in rows
    ]
    return torch.cat([torch.nn.functional.pad(row, edge) for row, edge in zip(rows, edges, strict=True)])


def load_encoder(
    checkpoint: Checkpoint, architecture: Architecture, config: Config
) -> tuple[Encoder | None, list[Fault]]:
    """Load what turns rows into prompts, and check it against what was asked.

    Parameters
    ----------
    checkpoint
        The model; only its own files are read, and no code.
    architecture
        What its config says.
    config
        Its ``image_column``, ``chat``, ``system``, ``template`` and ``max_tokens`` are used.

    Returns
    -------
    encoder : Encoder or None
    faults : list of Fault
        No tokenizer, processor or chat template; a system prompt that the template refuses or drops;
        ``max_tokens`` that leaves no room for text. Where ``max_tokens`` alone is at fault, the encoder
        is given without it, so that rows can be checked.
    """
    processor: Any = None
    if config.image_column is not None:
        processor, faults = load_processor(checkpoint, architecture.full)
        tokenizer = processor and processor.tokenizer
    else:
        tokenizer, faults = load_tokenizer(checkpoint)
    if tokenizer is None:
        return None, faults
    frame, faults = find_frame(config, tokenizer, processor)
    if faults:
        return None, faults
    encoder = Encoder(
        tokenizer,
        frame=frame,
        adds_special=not config.chats or leaves_special(frame, tokenizer, architecture.full),
        processor=processor,
        image_id=getattr(architecture.full, "image_token_id", None),
        max_tokens=None,
        positions=architecture.positions,
        vocabulary=getattr(architecture.config, "vocab_size", None),
        description=describe(config, tokenizer, processor, frame),
    )
    if processor is not None:
        seen = encoder.encode(["a"], [Image.new("RGB", (64, 64))])[0]
        if isinstance(seen, str):
            return None, [Fault("image_column", f"an image {seen}", "use another model")]
        if not (seen.kinds == TokenKind.IMAGE).any():
            what = "the chat template of the model writes no image token"
            return None, [Fault("image_column", what, "use another model")]
    least = encoder.least_tokens()
    if config.max_tokens is not None and config.max_tokens <= least:
        spent = f"the tokenizer adds {least} tokens of its own"
        spent = spent if frame is None else f"the words around it take {least} tokens"
        what = f"{config.max_tokens} leaves no room for text: {spent}"
        return encoder, [Fault("max_tokens", what, f"set max_tokens to {least + 1} or more")]
    encoder.max_tokens = config.max_tokens
    return encoder, []
