"""Metrics of a model's prediction after each prompt."""

from collections.abc import Callable, Mapping, Sequence
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
        sides = (_quoted(side) for side in (self.positive, self.negative))
        return " - ".join(f"log P({side})" for side in sides)

    def score(self, tokenizer: PreTrainedTokenizerBase) -> Score:
        """Return the function of the logits.

        Raises
        ------
        InputError
            If a string is not one token, or both sets share a token.
        """
        sides = {"positive": self.positive, "negative": self.negative}
        first, second = _token_sets(
            tokenizer, sides, "cannot compute the logit difference", first=self.first_token
        )

        def difference(logits: torch.Tensor) -> torch.Tensor:
            wide = logits.double()
            return wide[:, first].logsumexp(dim=-1) - wide[:, second].logsumexp(dim=-1)

        return difference


@dataclass(frozen=True)
class Refusal:
    """Log-odds that the next token is one with which refusals begin.

    Parameters
    ----------
    tokens
        Strings with which the model begins to refuse, each one token. They differ between models, and ``"I"``
        also begins answers that comply: read the model's answers first (:class:`actkit.RefusalRate`).
    others
        Tokens against which the odds are taken; by default, all other tokens of the vocabulary.
    first_token
        Whether to use the first token of a string of several tokens, rather than to refuse it.

    Notes
    -----
    Arditi et al., Refusal in language models is mediated by a single direction, NeurIPS 2024. They use
    ``"I"``, and ``"As"`` as well for one family of models.

    Examples
    --------
    >>> Refusal().name
    'log odds of "I" or "As"'
    >>> Refusal("Sorry", others=["Sure", "Here"]).name
    'log odds of "Sorry" against "Sure" or "Here"'
    """

    tokens: str | Sequence[str] = ("I", "As")
    others: str | Sequence[str] | None = None
    first_token: bool = False

    @property
    def name(self) -> str:
        """Description for results and axes."""
        against = "" if self.others is None else f" against {_quoted(self.others)}"
        return f"log odds of {_quoted(self.tokens)}{against}"

    def score(self, tokenizer: PreTrainedTokenizerBase) -> Score:
        """Return the function of the logits.

        Raises
        ------
        InputError
            If a string is not one token, or both sets share a token.
        """
        sides = {"tokens": self.tokens} | ({} if self.others is None else {"others": self.others})
        refusal, *others = _token_sets(
            tokenizer, sides, "cannot compute the log odds", first=self.first_token
        )

        def log_odds(logits: torch.Tensor) -> torch.Tensor:
            wide = logits.double()
            if others:
                against = wide[:, others[0]]
            else:
                against = wide.index_fill(dim=1, index=refusal, value=-torch.inf)
            return wide[:, refusal].logsumexp(dim=-1) - against.logsumexp(dim=-1)

        return log_odds


def _strings(side: str | Sequence[str]) -> list[str]:
    return [side] if isinstance(side, str) else list(side)


def _quoted(side: str | Sequence[str]) -> str:
    return " or ".join(f'"{text}"' for text in _strings(side))


def _token_sets(
    tokenizer: PreTrainedTokenizerBase,
    sides: Mapping[str, str | Sequence[str]],
    summary: str,
    *,
    first: bool,
) -> list[torch.Tensor]:
    """Return the token ids of each set, checked to be disjoint."""
    ids, faults = [], []
    for where, side in sides.items():
        if not _strings(side):
            faults.append(Fault(where, "names no token", "give a string, such as ' his'"))
        new_ids, new_faults = _token_ids(tokenizer, _strings(side), where, first=first)
        ids.append(set(new_ids))
        faults += new_faults
    if not faults and len(ids) > 1 and (shared := set.intersection(*ids)):
        text = tokenizer.convert_ids_to_tokens(sorted(shared))
        faults.append(Fault(", ".join(sides), f"both contain {text}", "name different tokens"))
    if faults:
        raise InputError(faults, summary)
    return [torch.tensor(sorted(side)) for side in ids]


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
        raise InputError(
            [
                Fault(
                    "metric",
                    what,
                    "give a metric, such as actkit.LogitDifference, or a function of the logits",
                )
            ]
        )
    return _Function(metric, getattr(metric, "__name__", "metric"))
