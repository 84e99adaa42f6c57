"""Encoding of rows into prompts (token ids, token kinds and image features), and batching of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ...chats import messages_of
from ...config import Config
from ...errors import Fault
from ...schema import TokenKind
from ..models.architecture import Architecture
from ..models.checkpoint import Checkpoint
from .chat_template import Chat, Frame, RenderedPrompt, reason_of
from .processor import describe, find_frame, leaves_special, load_processor, load_tokenizer
from .token_kinds import Tokens, is_text, overlaps_text
from .token_text import TokenDecoder

# outputs of a processor that are not inputs of the model
_NOT_FEATURES = {"input_ids", "attention_mask", "offset_mapping", "special_tokens_mask"}


@dataclass(frozen=True)
class Prompt:
    """One sample as the input of a model.

    Parameters
    ----------
    ids
        Vocabulary indices, int32, dims ``(token,)``.
    kinds
        :class:`~actkit.schema.TokenKind`, int8, dims ``(token,)``.
    truncated
        Whether the text was cut to ``max_tokens``.
    features
        Further outputs of the processor, by argument name of the model: tensors of shape ``(1, token)``
        belong to tokens, others to images. Empty for text.
    """

    ids: np.ndarray
    kinds: np.ndarray
    truncated: bool = False
    features: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Encoder:
    """Encoder of rows into prompts.

    Parameters
    ----------
    tokenizer
        Tokenizer of the model; its padding side does not matter.
    frame
        Template around each text.
    adds_special
        Whether the tokenizer adds special tokens; chat templates write them themselves.
    processor, image_id
        Processor of images, and the id of the tokens that images replace; None for text.
    max_tokens
        Maximum length of a prompt; the text of longer ones is cut at its end, the template never.
    positions
        Longest prompt that the model accepts, or None.
    vocabulary
        Number of rows of the model's embedding, or None.
    description
        Attributes of a cube that describe the encoding.
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
        # offsets are only needed with a template, and not all tokenizers return them
        self._offsets = {"return_offsets_mapping": True} if frame else {}
        self._adds_special = adds_special
        self._processor, self._image_id = processor, image_id
        self._positions, self._vocabulary = positions, vocabulary
        # tokens that only templates write, such as Llama's headers, are not named special tokens
        control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        # unknown words are content: MiniLM does not know many Arabic words
        self._control = {*control, *tokenizer.all_special_ids} - {tokenizer.unk_token_id}
        self._decoder = TokenDecoder(tokenizer)

    def encode(
        self, texts: Sequence[str | list[Any]], images: Sequence[Image.Image] | None = None
    ) -> list[Prompt | str]:
        """Encode rows as prompts.

        Parameters
        ----------
        texts
            Text of each row, or a valid chat if the encoder has a chat template.
        images
            RGB image of each row; required if the encoder has a processor.

        Returns
        -------
        list of Prompt or str
            Prompt of each row, or an error message if the row cannot be used.
        """
        rows = [self._render(text) for text in texts]
        if self._processor is not None:
            assert images is not None
            pairs = zip(rows, images, strict=True)
            return [row if isinstance(row, str) else self._process(row, image) for row, image in pairs]
        rendered = [row for row in rows if isinstance(row, RenderedPrompt)]
        tokenized = iter(self._tokenize([row.string for row in rendered]) if rendered else [])
        return [row if isinstance(row, str) else self._prompt(next(tokenized), row) for row in rows]

    def _render(self, text: str | list[Any]) -> RenderedPrompt | str:
        if isinstance(text, str):
            return self._frame.wrap(text)
        assert isinstance(self._frame, Chat)
        return self._frame.wrap_turns(messages_of(text))

    def pieces(self, ids: np.ndarray) -> list[str]:
        """Return the string of each token, as decoded by :class:`TokenDecoder`."""
        return self._decoder(ids)

    def least_tokens(self) -> int:
        """Return the number of tokens of a prompt other than those of its text and images."""
        if not self._offsets:
            return int(self.tokenizer.num_special_tokens_to_add())
        rendered = self._frame.wrap("a")
        assert isinstance(rendered, RenderedPrompt)
        return int((~is_text(self._tokenize([rendered.string])[0], rendered)).sum())

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

    def _process(self, row: RenderedPrompt, image: Image.Image) -> Prompt | str:
        processor: Any = self._processor
        try:
            outputs = processor(
                text=[row.string],
                images=[[image]],
                add_special_tokens=self._adds_special,
                padding=False,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
                return_tensors="pt",
            )
        except Exception as error:  # processors raise any exception
            return f"is rejected by the processor: {reason_of(error)}"
        tokens = Tokens.of(
            *(outputs[name][0] for name in ("input_ids", "special_tokens_mask", "offset_mapping"))
        )
        # the processor expands the image token of the template to many, which usually precede the text
        image_token = getattr(processor, "image_token", None)
        if image_token is None or image_token not in self._frame.after:
            offset = int(tokens.offsets.max() - self._tokenize([row.string])[0].offsets.max())
            row = row.shifted(offset)
        features = {name: tensor for name, tensor in outputs.items() if name not in _NOT_FEATURES}
        return self._prompt(tokens, row, features)

    def _prompt(
        self, tokens: Tokens, row: RenderedPrompt, features: Mapping[str, torch.Tensor] | None = None
    ) -> Prompt | str:
        """Determine the kind of each token, and cut the text to ``max_tokens``."""
        ids = tokens.ids
        text = is_text(tokens, row)
        images = np.zeros(len(ids), dtype=bool) if features is None else ids == self._image_id
        if (text & images).any():
            token = self.tokenizer.convert_ids_to_tokens([int(ids[images][0])])[0]
            return f"contains `{token}`, which is reserved for images"
        kinds = np.where(overlaps_text(tokens, row), TokenKind.TEXT, TokenKind.TEMPLATE)
        control = np.array([index in self._control for index in ids.tolist()], dtype=bool)
        kinds[tokens.added | control] = TokenKind.SPECIAL
        kinds[images] = TokenKind.IMAGE
        keep = np.ones(len(ids), dtype=bool)
        excess = len(ids) - (self.max_tokens or len(ids))
        if excess > 0:
            if excess >= text.sum():
                fixed = len(ids) - int(text.sum())
                hint = f"set max_tokens to {fixed + 1} or more"
                return f"has {fixed} tokens that are not text, but max_tokens is {self.max_tokens}: {hint}"
            keep[np.flatnonzero(text)[-excess:]] = False
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
            hint = f"set max_tokens to {self._positions} or less"
            return f"has {length} tokens, but the model takes at most {self._positions}: {hint}"
        highest = int(prompt.ids[prompt.kinds != TokenKind.IMAGE].max(initial=0))
        if self._vocabulary is not None and highest >= self._vocabulary:
            problem = f"has token {highest}, but the model's embedding has only {self._vocabulary} rows"
            return f"{problem}: use the tokenizer that belongs to the model"
        return ""


def collate(
    prompts: Sequence[Prompt],
    *,
    side: Literal["right", "left"] = "right",
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, torch.Tensor]:
    """Collate prompts into a batch.

    Parameters
    ----------
    prompts
        Prompts with the same features.
    side
        Side of the padding.
    pad_id
        Id of the padding token; features of tokens are padded with 0.
    device
        Device of the batch.

    Returns
    -------
    dict of str to torch.Tensor
        ``input_ids``, ``attention_mask`` and the features: padded to dims ``(sample, token)`` for tokens,
        concatenated for images.
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
        by_token = all(row.shape == (1, len(prompt)) for row, prompt in zip(rows, ids, strict=True))
        inputs[name] = padded([row[0].numpy() for row in rows]) if by_token else _concatenated(rows)
    if torch.device(device).type == "cuda":  # copies from pageable memory would wait for the previous batch
        inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def _concatenated(rows: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors; smaller ones are padded at the end of each dimension, as processors do."""
    largest = np.max([row.shape[1:] for row in rows], axis=0).tolist()
    edges = [
        [
            edge
            for size, padded_size in zip(row.shape[:0:-1], largest[::-1], strict=True)
            for edge in (0, padded_size - size)
        ]
        for row in rows
    ]
    return torch.cat([torch.nn.functional.pad(row, edge) for row, edge in zip(rows, edges, strict=True)])


def load_encoder(
    checkpoint: Checkpoint, architecture: Architecture, config: Config
) -> tuple[Encoder | None, list[Fault]]:
    """Load the encoder of a model and check it against the options of a run.

    Parameters
    ----------
    checkpoint
        The model; only its own files are read, and none of its code is run.
    architecture
        Architecture of the model.
    config
        Options of the run, of which ``image_column``, ``chat``, ``system``, ``template`` and ``max_tokens``
        are used.

    Returns
    -------
    encoder : Encoder or None
    faults : list of Fault
        Missing tokenizer, processor or chat template; system prompt that the template rejects or drops;
        ``max_tokens`` too small for any text. If ``max_tokens`` is the only fault, the encoder is returned
        without this limit, so that rows can still be checked.
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
        prompt = encoder.encode(["a"], [Image.new("RGB", (64, 64))])[0]
        if isinstance(prompt, str):
            return None, [Fault("image_column", f"an image {prompt}", "use another model")]
        if not (prompt.kinds == TokenKind.IMAGE).any():
            problem = "the chat template of the model writes no image token"
            return None, [Fault("image_column", problem, "use another model")]
    least = encoder.least_tokens()
    if config.max_tokens is not None and config.max_tokens <= least:
        reason = f"the {'tokenizer' if frame is None else 'template'} adds {least} tokens"
        problem = f"{config.max_tokens} leaves no room for text: {reason}"
        return encoder, [Fault("max_tokens", problem, f"set max_tokens to {least + 1} or more")]
    encoder.max_tokens = config.max_tokens
    return encoder, []
