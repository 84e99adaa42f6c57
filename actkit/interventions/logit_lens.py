"""Logit lens: the prediction that each layer's hidden states already hold."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..canonical import Cube
from ..errors import Fault, InputError
from ..features.cube_model import find_model, model_name
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.token_selection import select_tokens
from .metrics import Metric, Score, as_metric
from .unembedding import Unembedding

_LOGIT_BYTES = 256 * 10**6  # of one layer of a batch
_LABELS = ("sample", "language", "sample_id")


def logit_lens(
    cube: Cube,
    *,
    metric: Metric | Callable[[torch.Tensor], Any] | None = None,
    vectors: Literal["last", "tokens"] = "last",
    tokens: selection.TokenSelection = "content",
    layers: Sequence[int] | None = None,
    top: int = 5,
    model: str | Path | None = None,
    device: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Decode the hidden states of each layer with the final norm and the head of the model.

    The prompts are not run again: the hidden states are those of the cube.

    Parameters
    ----------
    cube
        Run folder or cube with `last`, or with `residual` for ``vectors="tokens"``.
    metric
        :class:`actkit.LogitDifference`, or a function of logits with dims ``(vector, vocabulary)`` that
        returns one number per vector.
    vectors
        ``last``, the last content token of each sample, or ``tokens``, every selected token.
    tokens
        Tokens to decode, as for :func:`actkit.layer_norms`.
    layers
        Layers to decode; all by default.
    top
        Number of most probable next tokens to return.
    model
        Name or folder of the model; by default, that of the cube.
    device
        Device of the model.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        With the dims ``(layer, sample)``, and ``token`` of ``vectors="tokens"``: ``entropy`` of the
        prediction in nats; ``kl``, the Kullback-Leibler divergence in nats of the prediction from that of the
        last layer, if the cube holds it; ``value``, the metric. With the dimension ``rank`` as well:
        ``top_text`` and ``top_probability``. NaN and empty strings where no token is selected.

    Raises
    ------
    InputError
        Lists all faults of the arguments, before the model is loaded.
    ModelError
        If the logits of the model do not follow from the output of its last block alone.

    Notes
    -----
    nostalgebraist, Interpreting GPT: the logit lens, LessWrong 2020. Early layers may hold a prediction in
    another basis, which this lens misses (Belrose et al., Eliciting latent predictions from transformers with
    the tuned lens, arXiv 2303.08112); a high ``kl`` alone does not show that a layer knows nothing.
    """
    selection.check_counts(1, top=top)
    chosen = None if metric is None else as_metric(metric)
    whole = select_tokens(finite_cube(cube), tokens)
    faults = []
    if vectors not in ("last", "tokens"):
        faults.append(Fault("vectors", f"{vectors!r} is not one of last, tokens"))
        raise InputError(faults)
    states, mask = _states(whole, vectors)
    if layers is not None:
        available = states.layer.values.tolist()
        if unknown := [layer for layer in layers if layer not in available]:
            faults.append(Fault("layers", f"the cube lacks {unknown}", f"it has {available}"))
        elif not layers:
            faults.append(Fault("layers", "names no layer", f"the cube has {available}"))
        else:
            states = states.sel(layer=list(layers))
    name, unnamed = model_name(whole, model)
    faults += unnamed
    if faults:
        raise InputError(faults, "cannot decode")
    found, faults = find_model(whole, name, device)
    if found is not None and found.architecture.hidden != states.sizes["hidden"]:
        what = f"has {found.architecture.hidden} dimensions, the cube {states.sizes['hidden']}"
        faults.append(Fault("model", what, "give the model that the cube was extracted with"))
    if found is not None and states.layer.values.max() >= found.architecture.n_layers:
        what = f"has {found.architecture.n_layers} layers, the cube layer {states.layer.values.max()}"
        faults.append(Fault("model", what, "give the model that the cube was extracted with"))
    if faults or found is None:
        raise InputError(faults, "cannot decode")
    score = None if chosen is None else chosen.score(found.tokenizer)
    unembed = Unembedding(found.load())
    unembed.check()
    final = found.architecture.n_layers - 1
    table = _Table(states, mask, top, has_final=final in states.layer.values, scored=score is not None)
    vocabulary = int(found.architecture.config.vocab_size)
    with tqdm(total=int(mask.sum()), unit=" tokens", disable=None if progress else True) as bar:
        for samples in _batches(mask, max(1, _LOGIT_BYTES // (4 * vocabulary))):
            table.fill(samples, unembed, score, final)
            bar.update(int(mask[samples].sum()))
    result = table.dataset(whole, lambda token: str(found.tokenizer.decode([token])))
    options = {} if chosen is None else {"metric": chosen.name}
    result.attrs = selection.settings(whole, "logit_lens", vectors=vectors, **options)
    return result


def _states(cube: xr.Dataset, vectors: str) -> tuple[xr.DataArray, np.ndarray]:
    """Return hidden states, dims ``(layer, sample, token, hidden)``, and the tokens to decode."""
    if vectors == "last":
        array = selection.vectors(cube, "last")
        return array.expand_dims("token", axis=2), np.ones((array.sizes["sample"], 1), dtype=bool)
    selection.require(cube, "residual")
    mask = selection.token_mask(cube).values
    if not mask.any():
        raise InputError([Fault("tokens", "no token is selected")])
    array = selection.captured(cube).residual
    return array.transpose("layer", "sample", "token", "hidden"), mask


def _batches(mask: np.ndarray, most: int) -> Iterator[slice]:
    """Yield consecutive samples with at most so many tokens together, but at least one sample."""
    ends = np.cumsum(mask.sum(axis=1))
    start = 0
    while start < len(mask):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop


class _Table:
    """Results of all layers, filled batch by batch.

    Parameters
    ----------
    states
        Hidden states, dims ``(layer, sample, token, hidden)``.
    mask
        Tokens to decode, dims ``(sample, token)``.
    top
        Number of most probable tokens.
    has_final
        Whether the divergence from the last layer can be computed.
    scored
        Whether there is a metric.
    """

    def __init__(
        self, states: xr.DataArray, mask: np.ndarray, top: int, *, has_final: bool, scored: bool
    ) -> None:
        self._states, self._mask = states, mask
        shape = (states.sizes["layer"], *mask.shape)
        names = ["entropy", *(["kl"] if has_final else []), *(["value"] if scored else [])]
        self._numbers = {name: np.full(shape, np.nan) for name in names}
        self._probability = np.full((*shape, top), np.nan, dtype=np.float32)
        self._token = np.full((*shape, top), -1, dtype=np.int64)

    def fill(self, samples: slice, unembed: Unembedding, score: Score | None, final: int) -> None:
        """Decode a batch of samples at all layers."""
        where = self._mask[samples]
        values = self._states.isel(sample=samples).values[:, where]
        layers = self._states.layer.values.tolist()
        last = None
        for at in sorted(range(len(layers)), key=lambda at: layers[at] != final):  # the last layer first
            logits = unembed(torch.from_numpy(np.ascontiguousarray(values[at], dtype=np.float32)))
            log_p = logits.log_softmax(dim=-1)
            last = log_p if layers[at] == final else last
            found = {"entropy": -(log_p.exp() * log_p).nan_to_num(nan=0.0).sum(dim=-1)}
            if last is not None:
                found["kl"] = (last.exp() * (last - log_p)).nan_to_num(nan=0.0).sum(dim=-1)
            if score is not None:
                found["value"] = score(logits.cpu())
            for name, numbers in found.items():
                self._numbers[name][at, samples][where] = numbers.cpu().numpy()
            best = log_p.topk(self._token.shape[-1], dim=-1)
            self._probability[at, samples][where] = best.values.exp().cpu().numpy()
            self._token[at, samples][where] = best.indices.cpu().numpy()

    def dataset(self, cube: xr.Dataset, decode: Callable[[int], str]) -> xr.Dataset:
        """Return the results with their labels."""
        ids, places = np.unique(self._token, return_inverse=True)
        texts = np.array(["" if token < 0 else decode(int(token)) for token in ids], dtype=object)
        dims, ranked = ("layer", "sample", "token"), ("layer", "sample", "token", "rank")
        result = xr.Dataset(
            {
                **{name: (dims, numbers) for name, numbers in self._numbers.items()},
                "top_text": (ranked, texts[places].reshape(self._token.shape)),
                "top_probability": (ranked, self._probability),
            },
            coords={"layer": self._states.layer.values, "rank": np.arange(1, self._token.shape[-1] + 1)},
        )
        array = self._states
        shown = {
            name: array.coords[name]
            for name in (*_LABELS, *selection.label_names(array))
            if name in array.coords
        }
        result = result.assign_coords(
            {name: (("sample",), coord.values) for name, coord in shown.items() if coord.dims == ("sample",)}
        )
        if "token" not in array.coords:  # one vector of each sample
            return result.isel(token=0)
        kept = ("token", "token_text", "position")
        return result.assign_coords({name: array.coords[name] for name in kept if name in array.coords})
