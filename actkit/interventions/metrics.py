"""Metrics of a model's prediction after each prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..errors import Fault, InputError

# takes logits after the last token of each prompt, dims (sample, vocabulary); returns dims (sample,)
Score = Callable[[torch.Tensor], torch.Tensor]


@runtime_checkable
class Metric(Protocol):
    """A number per prompt, computed from the logits after its last token."""

    @property
    def name(self) -> str:
        """Description for results and axes."""

    def score(self, tokenizer: PreTrainedTokenizerBase) -> Score:
        """Return the function of the logits, after checking the metric against a tokenizer."""


@dataclass(frozen=True)
class LogitDifference:
    """Difference of log-probability between two sets of next tokens.

    Of a set of several tokens, the probabilities are added. With one token each, the metric is the difference
    between their logits.

    Parameters
    ----------
    positive, negative
        A string or several; each has to be one token of the model. Most tokenizers distinguish ``" his"``
        from ``"his"``.
    first_token
        Whether to use the first token of a string of several tokens, rather than to refuse it.

    Examples
    --------
    >>> LogitDifference(" his", " her").name
    'log P(" his") - log P(" her")'
    """

    positive: str | Sequence[str]
    negative: str | Sequence[str]
    first_token: bool = False

    @property
    def name(self) -> str:
        """Description for results and axes."""
        sides = [
            " or ".join(f'"{text}"' for text in _strings(side)) for side in (self.positive, self.negative)
        ]
        return " - ".join(f"log P({side})" for side in sides)

    def score(self, tokenizer: PreTrainedTokenizerBase) -> Score:
        """Return the function of the logits.

        Raises
        ------
        InputError
            If a string is not one token, or both sets share a token.
        """
        ids, faults = [], []
        for where, side in (("positive", self.positive), ("negative", self.negative)):
            if not _strings(side):
                faults.append(Fault(where, "names no token", "give a string, such as ' his'"))
            found, new = _token_ids(tokenizer, _strings(side), where, first=self.first_token)
            ids.append(found)
            faults += new
        if not faults and (shared := set(ids[0]) & set(ids[1])):
            text = tokenizer.convert_ids_to_tokens(sorted(shared))
            faults.append(Fault("positive, negative", f"both contain {text}", "name different tokens"))
        if faults:
            raise InputError(faults, "cannot compute the logit difference")
        first, second = (torch.tensor(sorted(set(side))) for side in ids)

        def difference(logits: torch.Tensor) -> torch.Tensor:
            wide = logits.double()
            return wide[:, first].logsumexp(dim=-1) - wide[:, second].logsumexp(dim=-1)

        return difference


def _strings(side: str | Sequence[str]) -> list[str]:
    return [side] if isinstance(side, str) else list(side)


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], where: str, *, first: bool
) -> tuple[list[int], list[Fault]]:
    ids, faults = [], []
    for text in texts:
        tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if len(tokens) == 1 or (tokens and first):
            ids.append(int(tokens[0]))
            continue
        shown = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(tokens)))
        problem = f'"{text}" is {len(tokens)} tokens: {shown}' if tokens else f'"{text}" is no token'
        hint = "choose a single token (a leading space often matters), or set first_token=True"
        faults.append(Fault(where, problem, hint))
    return ids, faults


@dataclass(frozen=True)
class _Function:
    """A function of the logits given by the caller, as a metric."""

    function: Callable[[torch.Tensor], Any]
    name: str

    def score(self, tokenizer: PreTrainedTokenizerBase) -> Score:
        del tokenizer

        def checked(logits: torch.Tensor) -> torch.Tensor:
            values = torch.as_tensor(np.asarray(self.function(logits)))
            if values.shape != logits.shape[:1]:
                what = f"returned shape {tuple(values.shape)} for {len(logits)} prompts"
                raise InputError([Fault("metric", what, "return one number per prompt")])
            return values.double()

        return checked


def as_metric(metric: Metric | Callable[[torch.Tensor], Any]) -> Metric:
    """Return a metric from a metric or a function of logits with dims ``(sample, vocabulary)``."""
    if isinstance(metric, Metric):
        return metric
    if not callable(metric):
        what = f"is a {type(metric).__name__}"
        raise InputError([Fault("metric", what, "give actkit.LogitDifference or a function of the logits")])
    return _Function(metric, getattr(metric, "__name__", "metric"))
