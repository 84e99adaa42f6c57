"""Reference values computed by transformers for one unpadded prompt at a time.

The contribution of each part of a block is found by ablation: the final weights of the feed-forward part are
set to zero, and `output_hidden_states` returns the output of the block without it. This needs no names of
attention modules and does not use actkit's table of hook points.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import nn

from .record import LAYERS, Architecture


class Oracle:
    """Reference values of one model.

    Parameters
    ----------
    architecture
        Record of the architecture.
    folder
        Folder of the model.
    attention
        Attention implementation.
    """

    def __init__(self, architecture: Architecture, folder: Path, attention: str) -> None:
        self._architecture = architecture
        self._tokenizer = tf.AutoTokenizer.from_pretrained(folder)
        self._model: Any = getattr(tf, architecture.model).from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )
        self._model = self._model.get_submodule(architecture.part).eval()
        for module in self._model.modules():
            if isinstance(module, tf.PreTrainedModel):
                # return the last hidden state before the final norm, if transformers supports that
                module.config.tie_last_hidden_states = False

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a prompt."""
        return list(self._tokenizer(text)["input_ids"])

    def answers(self, text: str) -> dict[str, np.ndarray]:
        """Return `embedding`, `residual`, `attention` and `mlp` of one prompt.

        Returns
        -------
        dict
            Arrays of dims ``(layer, token, hidden)``; `embedding` has no ``layer``.
        """
        states = self._states(text)
        answers = {"embedding": states[0], "residual": states[1:]}
        if self._architecture.parts:
            parts = [self._parts(text, layer, states) for layer in range(LAYERS)]
            answers["attention"], answers["mlp"] = map(torch.stack, zip(*parts, strict=True))
        return {name: value.numpy() for name, value in answers.items()}

    @torch.inference_mode()
    def combine(self, layer: int, stream: np.ndarray, attention: np.ndarray, mlp: np.ndarray) -> np.ndarray:
        """Return the expected output of a block, given its input and the contributions of its two parts."""
        norms = [self._norm(layer, name) for name in self._architecture.norms]
        for norm, part in zip(norms, (0, attention, mlp), strict=True):
            stream = norm(torch.from_numpy(stream + part)).numpy()
        return stream

    def _parts(self, text: str, layer: int, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        before, *after = self._architecture.norms
        with torch.inference_mode():
            stream = self._norm(layer, before)(states[layer])
        with self._changed(layer, ablate=True, skip=after):
            attention = self._states(text)[layer + 1] - stream
        with self._changed(layer, ablate=False, skip=after[1:]):
            complete = self._states(text)[layer + 1]
        with self._changed(layer, ablate=True, skip=after[1:]):
            ablated = self._states(text)[layer + 1]
        return attention, complete - ablated

    @torch.inference_mode()
    def _states(self, text: str) -> torch.Tensor:
        streams: dict[str, torch.Tensor] = {}

        def record(name: str, side: str) -> torch.utils.hooks.RemovableHandle:
            (module,) = [m for path, m in self._model.named_modules() if path.split(".")[-1] == name]
            return module.register_forward_hook(
                lambda _module, args, output: streams.update({side: args[0] if side == "after" else output})
            )

        sides = {"before": self._architecture.embedding, "after": self._architecture.final_norm}
        handles = [record(name, side) for side, name in sides.items() if name]
        encoded = torch.tensor([self.ids(text)])
        states = self._model(
            input_ids=encoded, attention_mask=torch.ones_like(encoded), output_hidden_states=True
        ).hidden_states
        for handle in handles:
            handle.remove()
        states = [streams["before"], *states] if "before" in streams else list(states)
        if "after" in streams:
            states = [*states[:LAYERS], streams["after"]]
        assert len(states) == LAYERS + 1
        return torch.cat(states).clone()

    @contextmanager
    def _changed(self, layer: int, *, ablate: bool, skip: Sequence[str]) -> Iterator[None]:
        """Ablate the feed-forward part of a block, and skip norms, within the context."""
        # the first number in the name of a parameter is the index of its block
        pattern = re.compile(rf"\D+\.{layer}\.{self._architecture.mlp_output}([._](weight|bias))?")
        parameters = [p for name, p in self._model.named_parameters() if ablate and pattern.fullmatch(name)]
        assert bool(parameters) == ablate
        original = [parameter.detach().clone() for parameter in parameters]
        norms = [self._norm(layer, name) for name in skip if name]
        handles = [norm.register_forward_hook(lambda _module, args, _out: args[0]) for norm in norms]
        try:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.zero_()
                yield
        finally:
            for handle in handles:
                handle.remove()
            with torch.no_grad():
                for parameter, value in zip(parameters, original, strict=True):
                    parameter.copy_(value)

    def _norm(self, layer: int, name: str) -> nn.Module:
        if not name:
            return nn.Identity()
        pattern = re.compile(rf"\D+\.{layer}\.{re.escape(name)}")
        (norm,) = [module for path, module in self._model.named_modules() if pattern.fullmatch(path)]
        return norm
