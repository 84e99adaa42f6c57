"""Comparison of the values that actkit stores for an architecture with those that transformers computes."""

import csv
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import actkit
from actkit.errors import ActkitError

from .architectures import ARCHITECTURES, build
from .oracle import Oracle

TOLERANCE = 1e-4
# padding sides of the tokenizer, and batch sizes
EVERY_WAY = tuple(itertools.product(("left", "right"), (1, 5)))
TEXTS = (
    ("english", "He waits."),
    ("arabic", "امرأةٌ شابّة تقرأ كتابَها في مكتبة المدينة القديمة، ثم تكتب رسالةً طويلة إلى أختها."),
    ("english", "A doctor reads."),
    ("arabic", "ينتظر."),
    ("english", "A young woman reads her book in the old library, and then she writes a long letter."),
    ("arabic", "الطبيبُ يقرأ كتابًا."),
)


@dataclass
class Verdict:
    """Result of one architecture.

    Parameters
    ----------
    name
        Name of the architecture in the table.
    status
        SUPPORTED, ERROR, SILENTLY_WRONG, or CRASH if an error other than ``ActkitError`` was raised.
    message
        Message shown to the user, or description of what is wrong.
    errors
        Largest error of each component, relative to the largest value of its layer.
    sum_rule
        Largest relative difference between the residual and the combination of the stored parts of its block;
        None if the parts are not stored.
    """

    name: str
    status: str = "SUPPORTED"
    message: str = ""
    errors: dict[str, float] = field(default_factory=dict)
    sum_rule: float | None = None


def verdict(
    name: str, work: Path, ways: Sequence[tuple[str, int]] = EVERY_WAY, implementations: Sequence[str] = ()
) -> Verdict:
    """Extract with one architecture and compare each stored value.

    Parameters
    ----------
    name
        Name of the architecture in the table.
    work
        Empty folder.
    ways
        Padding sides and batch sizes for each attention implementation.
    implementations
        Attention implementations; all that the architecture has, if empty.
    """
    architecture = ARCHITECTURES[name]
    folder = build(name, work / architecture.model)
    result = Verdict(name)
    for attention in implementations or architecture.implementations:
        oracle, answers = Oracle(architecture, folder, attention), None
        for side, batch in ways:
            out = work / f"{attention}-{side}-{batch}"
            try:
                cube = _extract(folder, out, architecture.layers, attention, side, batch)
            except Exception as error:
                return Verdict(name, *_refusal(error, folder))
            answers = answers or [oracle.answers(text) for _, text in TEXTS]
            if wrong := _compare(cube, oracle, answers, result):
                result.status = "SILENTLY_WRONG"
                result.message = f"{attention}, padding {side}, batch {batch}: {wrong}"
                return result
    if not architecture.parts:
        try:
            _extract(folder, work / "parts", "attention_all mlp_all", attention, side, batch)
        except Exception as error:
            status, result.message = _refusal(error, folder)
            result.status = "SUPPORTED" if status == "ERROR" else status
        else:
            result.status, result.message = "SILENTLY_WRONG", "attention and mlp are stored nevertheless"
    return result


def _extract(folder: Path, out: Path, layers: str, attention: str, side: str, batch: int) -> Any:
    settings = folder / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "padding_side": side}))
    table = folder.parent / "prompts.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("language", "text"), *TEXTS])
    return actkit.extract(
        model=str(folder),
        data=str(table),
        out=str(out),
        layers=layers,
        dtype="float32",
        device="cpu",
        attn_implementation=attention,
        batch_size=batch,
        listeners=[],
    ).load()


def _refusal(error: Exception, folder: Path) -> tuple[str, str]:
    if isinstance(error, ActkitError):
        return "ERROR", str(error).replace(str(folder), folder.name)
    return "CRASH", f"{type(error).__name__}: {error}"


def _compare(cube: Any, oracle: Oracle, answers: list[dict[str, np.ndarray]], result: Verdict) -> str:
    """Compare one cube, record the largest errors, and return a description of what is wrong."""
    for sample, (_, text) in enumerate(TEXTS):
        stored, theirs, ids = cube.isel(sample=sample), answers[sample], oracle.ids(text)
        length = len(ids)
        if stored.token_id.values[:length].tolist() != ids or int(stored.n_tokens) != length:
            return f"sample {sample} has other tokens"
        ours = {
            name: stored[name].values
            for name in ("embedding", "residual", "attention", "mlp")
            if name in stored
        }
        if ours.keys() != theirs.keys():
            return f"holds {', '.join(ours)}, not {', '.join(theirs)}"
        for name, values in ours.items():
            if not np.isnan(values[..., length:, :]).all():
                return f"`{name}` of sample {sample} has values where there is no token"
            ours[name] = values[..., :length, :]
            column = "residual" if name == "embedding" else name
            error = _relative_error(ours[name], theirs[name])
            result.errors[column] = max(result.errors.get(column, 0.0), error)
        if "mlp" in ours:
            streams = [ours["embedding"], *ours["residual"]]
            for layer, stream in enumerate(streams[:-1]):
                total = oracle.combine(layer, stream, ours["attention"][layer], ours["mlp"][layer])
                error = _relative_error(streams[layer + 1], total)
                result.sum_rule = max(result.sum_rule or 0.0, error)
    errors = {**result.errors, "the sum rule": result.sum_rule or 0.0}
    return ", ".join(
        f"{name} is off by {error:.0e}" for name, error in errors.items() if not error < TOLERANCE
    )


def _relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the largest difference, relative to the largest value of its layer; NaN counts as infinite."""
    if ours.shape != theirs.shape:
        return math.inf
    largest = np.abs(theirs).max(axis=(-2, -1))
    difference = np.abs(ours - theirs).max(axis=(-2, -1))
    return float(np.nan_to_num(difference / largest, nan=np.inf).max())
