"""Cubes written from the contents of files, window by window."""

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
from .folder_contents import FolderContents
from .sample_metadata import SampleMetadata

_COMMON_VARIABLES = ("last", "nonfinite", "n_tokens", "token_id", "token_kind", "token_text")
_NO_BATCH = _NO_TOKEN_ID = -1
_CONTENT_RULE = "all tokens except position 0: the files do not record token kinds"
_LAST_RULE = "the last content token, as stored in the files"


def write_contents(
    run: Path,
    contents: FolderContents,
    metadata: SampleMetadata,
    attrs: dict[str, str | int],
    on_samples: Callable[[int], object],
) -> None:
    """Write a cube.

    Parameters
    ----------
    run
        The existing run folder.
    contents, metadata
        Contents of the files, and metadata of their samples.
    attrs
        Attributes of the cube in addition to those of the files.
    on_samples
        Called with the number of samples of each window written.

    Raises
    ------
    InputError
        If a file turns out to be damaged.
    StorageError
        If the disk cannot be written.
    """
    plan = _plan(contents)
    n_samples = len(contents.lengths)
    coords = {
        "layer": np.array(contents.layers, dtype=np.int64),
        "has_residual": np.ones(len(contents.layers), dtype=bool),
        "sample": np.arange(n_samples),
        "token": np.arange(plan.shape.token),
        "truncated": np.zeros(n_samples, dtype=bool),
        **({} if contents.only_last else {"prompt_tokens": contents.lengths.astype(np.int32)}),
    }
    create_cube(
        run,
        plan,
        variables=_variables(contents),
        coords=coords,
        labels=metadata.label_dtypes,
        rows=[metadata.columns],
        attrs={**_content_attrs(contents), **contents.attrs, **metadata.attrs, **attrs},
    )
    positions = max(plan.stored_in(window) for window in range(plan.n_windows))
    # one buffer for all windows, because allocating memory takes longer than filling it
    buffer = np.empty((len(contents.layers), positions, contents.hidden), dtype=np.float32)
    with closing(CubeWriter(run / CUBE, plan, threads=min(8, os.cpu_count() or 1))) as writer:
        for window in range(plan.n_windows):
            samples = plan.samples_of(window)
            values = buffer[:, : plan.stored_in(window)]
            contents.reader.fill(samples, values)
            writer.write(window, _part(contents, samples, values, plan.shape.token))
            on_samples(len(samples))


def _variables(contents: FolderContents) -> tuple[str, ...]:
    last_only = ("norm", *_COMMON_VARIABLES)
    return last_only if contents.only_last else ("residual", "pooled", *last_only)


def _content_attrs(contents: FolderContents) -> dict[str, str | int | bool]:
    return {
        "layers": describe(contents.layers),
        "storage": "exact",
        "tokens_kept": "last" if contents.only_last else "all",
        "content_rule": _LAST_RULE if contents.only_last else _CONTENT_RULE,
        # as for an unknown tokenizer: position 0 is a special token, or attracts attention like one
        "first_is_content": contents.only_last,
    }


def _plan(contents: FolderContents) -> Plan:
    n_layers, n_samples = len(contents.layers), len(contents.lengths)
    single_token = Shape(n_layers, 1, 1, contents.hidden)
    token_bytes, sample_bytes = footprint(_variables(contents), {}, single_token, None, 4)
    plan = make_plan(
        Config(model="-", data="-", out="-"),
        np.maximum(contents.lengths, 1),
        layers=n_layers,
        hidden=contents.hidden,
        token_bytes=token_bytes,
        sample_bytes=sample_bytes,
        stored=contents.lengths,
        batch_tokens=1,  # so that batches do not enlarge windows
    )
    return replace(plan, batches=np.full(n_samples, _NO_BATCH, dtype=np.int32))


def _part(
    contents: FolderContents, samples: range, values: np.ndarray, n_tokens: int
) -> dict[str, np.ndarray | Ragged]:
    """Return a window in the form that :meth:`~actkit.store.writer.CubeWriter.write` expects."""
    lengths = contents.lengths[samples.start : samples.stop]
    starts, layers = np.cumsum(lengths) - lengths, tuple(range(len(values)))
    reduced = reduce(values, lengths, first_is_content=contents.only_last)
    is_token = np.arange(n_tokens) < lengths[:, None]
    ids = np.zeros(is_token.shape, dtype=np.int32)
    ids[is_token] = (
        _NO_TOKEN_ID if contents.token_ids is None else contents.token_ids[_positions(contents, samples)]
    )
    part: dict[str, np.ndarray | Ragged] = {
        **reduced,
        "norm": Ragged(reduced["norm"], starts, lengths, layers).dense(len(values), n_tokens),
        "residual": Ragged(values, starts, lengths, layers),
        "n_tokens": lengths.astype(np.int32),
        "token_id": ids,
        "token_kind": np.where(is_token, TokenKind.TEXT, TokenKind.PAD).astype(np.int8),
        "token_text": np.full(is_token.shape, "", dtype=object),
    }
    return {name: part[name] for name in _variables(contents)}


def _positions(contents: FolderContents, samples: range) -> slice:
    """Return the positions of the tokens of some samples among those of all samples."""
    start = int(contents.lengths[: samples.start].sum())
    return slice(start, start + int(contents.lengths[samples.start : samples.stop].sum()))


def reduce(values: np.ndarray, lengths: np.ndarray, *, first_is_content: bool) -> dict[str, np.ndarray]:
    """Compute the reductions over tokens that an extraction computes.

    Parameters
    ----------
    values
        Activations, dims ``(layer, position, hidden)``, float32.
    lengths
        Number of tokens of each sample, dims ``(sample,)``.
    first_is_content
        Whether the first token of a sample counts in ``pooled`` and ``last``.

    Returns
    -------
    dict
        ``norm``, dims ``(layer, position)``; ``pooled`` and ``last``, dims ``(layer, sample, hidden)``, NaN
        if a sample has no content; ``nonfinite``, dims ``(layer, sample)``.

    Examples
    --------
    >>> reduced = reduce(np.ones((1, 3, 4), dtype="float32"), np.array([1, 2]), first_is_content=True)
    >>> reduced["norm"].tolist(), reduced["pooled"][0, 1].tolist()
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
        (float64_norm,) = norms_of(rows)
        norm[layer] = float64_norm
        # the square of a finite float32 is always finite in float64
        for position in np.flatnonzero(~np.isfinite(float64_norm)):
            nonfinite[layer, owners[position]] += np.count_nonzero(~np.isfinite(rows[position]))
        for sample, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            if start < stop:
                with np.errstate(invalid="ignore"):  # Inf and -Inf
                    summed = np.add.reduce(rows[start:stop], axis=0, dtype=np.float64)
                pooled[layer, sample] = summed / (stop - start)
                last[layer, sample] = rows[stop - 1]
    return {"norm": norm, "pooled": pooled, "last": last, "nonfinite": nonfinite}
