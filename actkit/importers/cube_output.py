"""A cube, written from what files hold: window after window."""

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..batch_plan import Plan, Shape, footprint, make_plan
from ..config import Config
from ..layer_spec import describe
from ..schema import TokenKind
from ..stats.kernels.norms import lengths as norms_of
from ..store.layout import CUBE
from ..store.ragged import Ragged
from ..store.writer import CubeWriter, create_cube
from .folder_contents import Found
from .sample_metadata import Known

_OF_SAMPLES = ("last", "nonfinite", "n_tokens", "token_id", "token_kind", "token_text")
_NO_BATCH = _NO_TOKEN_ID = -1
_CONTENT_RULE = "all tokens but position 0: the files do not say what tokens are"
_LAST_RULE = "the last content token, as the files have it"


def write_found(
    run: Path, found: Found, known: Known, attrs: dict[str, str | int], on_samples: Callable[[int], object]
) -> None:
    """Write a cube.

    Parameters
    ----------
    run
        The run folder, which exists.
    found, known
        What the files hold, and what is known of their samples.
    attrs
        What the cube says of itself beside what they say.
    on_samples
        Called with the number of samples of each window that is written.

    Raises
    ------
    InputError
        Where a file turns out to be damaged.
    StorageError
        Where the disk refuses.
    """
    plan = _plan(found)
    n_samples = len(found.lengths)
    coords = {
        "layer": np.array(found.layers, dtype=np.int64),
        "has_residual": np.ones(len(found.layers), dtype=bool),
        "sample": np.arange(n_samples),
        "token": np.arange(plan.shape.token),
        "truncated": np.zeros(n_samples, dtype=bool),
        **({} if found.only_last else {"prompt_tokens": found.lengths.astype(np.int32)}),
    }
    create_cube(
        run,
        plan,
        variables=_variables(found),
        coords=coords,
        labels=known.label_dtypes,
        rows=[known.columns],
        attrs={**_described(found), **found.said, **known.said, **attrs},
    )
    positions = max(plan.stored_in(window) for window in range(plan.n_windows))
    # one for all windows: fresh memory costs more than what is put into it
    buffer = np.empty((len(found.layers), positions, found.hidden), dtype=np.float32)
    with closing(CubeWriter(run / CUBE, plan, threads=min(8, os.cpu_count() or 1))) as writer:
        for window in range(plan.n_windows):
            samples = plan.samples_of(window)
            values = buffer[:, : plan.stored_in(window)]
            found.reader.fill(samples, values)
            writer.write(window, _part(found, samples, values, plan.shape.token))
            on_samples(len(samples))


def _variables(found: Found) -> tuple[str, ...]:
    return ("norm", *_OF_SAMPLES) if found.only_last else ("residual", "norm", "pooled", *_OF_SAMPLES)


def _described(found: Found) -> dict[str, str | int | bool]:
    return {
        "layers": describe(found.layers),
        "storage": "exact",
        "tokens_kept": "last" if found.only_last else "all",
        "content_rule": _LAST_RULE if found.only_last else _CONTENT_RULE,
        # as of a tokenizer that is unknown: position 0 is a special token, or draws attention like one
        "first_is_content": found.only_last,
    }


def _plan(found: Found) -> Plan:
    n_layers, n_samples = len(found.layers), len(found.lengths)
    one = Shape(n_layers, 1, 1, found.hidden)
    token, sample = footprint(_variables(found), {}, one, None, 4)
    plan = make_plan(
        Config(model="-", data="-", out="-"),
        np.maximum(found.lengths, 1),
        layers=n_layers,
        hidden=found.hidden,
        token_bytes=token,
        sample_bytes=sample,
        stored=found.lengths,
        batch_tokens=1,  # no batch asks for a larger window
    )
    return replace(plan, batches=np.full(n_samples, _NO_BATCH, dtype=np.int32))


def _part(found: Found, samples: range, values: np.ndarray, n_tokens: int) -> dict[str, np.ndarray | Ragged]:
    """Return a window as :meth:`~actkit.store.writer.CubeWriter.write` takes it."""
    lengths = found.lengths[samples.start : samples.stop]
    starts, layers = np.cumsum(lengths) - lengths, tuple(range(len(values)))
    reduced = reduce(values, lengths, first_is_content=found.only_last)
    held = np.arange(n_tokens) < lengths[:, None]
    ids = np.zeros(held.shape, dtype=np.int32)
    ids[held] = _NO_TOKEN_ID if found.token_ids is None else found.token_ids[_positions(found, samples)]
    part: dict[str, np.ndarray | Ragged] = {
        **reduced,
        "norm": Ragged(reduced["norm"], starts, lengths, layers).dense(len(values), n_tokens),
        "residual": Ragged(values, starts, lengths, layers),
        "n_tokens": lengths.astype(np.int32),
        "token_id": ids,
        "token_kind": np.where(held, TokenKind.TEXT, TokenKind.PAD).astype(np.int8),
        "token_text": np.full(held.shape, "", dtype=object),
    }
    return {name: part[name] for name in _variables(found)}


def _positions(found: Found, samples: range) -> slice:
    """Return where the tokens of samples lie among those of all."""
    start = int(found.lengths[: samples.start].sum())
    return slice(start, start + int(found.lengths[samples.start : samples.stop].sum()))


def reduce(values: np.ndarray, lengths: np.ndarray, *, first_is_content: bool) -> dict[str, np.ndarray]:
    """Compute what an extraction computes of the tokens of samples.

    Parameters
    ----------
    values
        Float32, dims ``(layer, position, hidden)``.
    lengths
        Number of tokens of each sample, dims ``(sample,)``.
    first_is_content
        Whether the first token of a sample counts in ``pooled`` and ``last``.

    Returns
    -------
    dict
        ``norm``, dims ``(layer, position)``; ``pooled`` and ``last``, dims ``(layer, sample, hidden)``, NaN
        where a sample has no content; ``nonfinite``, dims ``(layer, sample)``.

    Examples
    --------
    >>> found = reduce(np.ones((1, 3, 4), dtype="float32"), np.array([1, 2]), first_is_content=True)
    >>> found["norm"].tolist(), found["pooled"][0, 1].tolist()
    ([[2.0, 2.0, 2.0]], [1.0, 1.0, 1.0, 1.0])
    """
    n_layers, n_positions, hidden = values.shape
    stops = np.cumsum(lengths)
    starts = stops - lengths + (not first_is_content)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    norm = np.empty((n_layers, n_positions), dtype=np.float32)
    pooled, last = np.full((2, n_layers, len(lengths), hidden), np.nan, dtype=np.float32)
    nonfinite = np.zeros((n_layers, len(lengths)), dtype=np.int32)
    for layer, rows in enumerate(values):
        (wide,) = norms_of(rows)
        norm[layer] = wide
        # no float32 is so large that its square is not finite in float64
        for position in np.flatnonzero(~np.isfinite(wide)):
            nonfinite[layer, owners[position]] += np.count_nonzero(~np.isfinite(rows[position]))
        for sample, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            if start < stop:
                with np.errstate(invalid="ignore"):  # Inf and -Inf
                    summed = np.add.reduce(rows[start:stop], axis=0, dtype=np.float64)
                pooled[layer, sample] = summed / (stop - start)
                last[layer, sample] = rows[stop - 1]
    return {"norm": norm, "pooled": pooled, "last": last, "nonfinite": nonfinite}
