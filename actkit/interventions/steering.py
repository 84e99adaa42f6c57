"""Steering: the effect of a direction on what a model predicts, beside that of random directions."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..canonical import Cube
from ..errors import Fault, InputError
from ..extraction.models.hook_points import HookPoints
from ..features.cube_model import model_name
from ..features.language_loss import LanguageLoss, load_language_loss
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.group_comparison import two_labels
from ..stats.holdout import cluster_names
from ..stats.kernels.gaps import GAP_SUMMARIES, gap_summaries
from .direction_edits import ablated, added, clamped, random_like
from .metrics import Metric
from .prompt_logits import last_logits
from .text_metrics import TextMetric, as_any_metric, measure_of

Mode = Literal["ablate", "add", "clamp"]
MODES = ("ablate", "add", "clamp")
_KEPT = ("by", "between", "first", "second", "vectors", "fit", "cluster")  # attributes of directions


def steer(
    cube: Cube,
    direction: xr.Dataset,
    *,
    metric: Metric | TextMetric | Callable[[torch.Tensor], Any],
    mode: Mode = "ablate",
    layers: Sequence[int] | None = None,
    scale: float | Sequence[float] = 1.0,
    model: str | Path | None = None,
    where: Mapping[str, Any] | None = None,
    controls: int = 5,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Measure what happens to the prediction after each prompt if a direction is removed, added or fixed.

    Parameters
    ----------
    cube
        Run folder or cube, whose prompts are run again from their token ids.
    direction
        From :func:`actkit.group_directions`, of one language: ``directions.sel(language="en")``.
    metric
        :class:`actkit.LogitDifference`, :class:`actkit.Refusal`, :class:`actkit.RefusalRate` (of generated
        answers), :class:`actkit.CrossEntropy`, or a function of the logits after the last token of each
        prompt, dims ``(sample, vocabulary)``, that returns one number per prompt.
    mode
        ``ablate`` removes the direction of a layer from everything that is written to the residual stream;
        ``add`` adds it to the output of that layer, times ``scale``; ``clamp`` moves the output of that layer
        along the direction to the mean of the second group, or as far beyond that of the first as ``scale``
        says.
    layers
        Layers whose directions are tried; all by default.
    scale
        Multiples of the direction that are tried; of no effect on ``ablate``.
    model
        Name or folder of the model; by default, that of the cube.
    where
        Required value of each label given, or of ``language``; by default, the language of the direction.
    controls
        Number of random directions of the same length that are tried in the same way.
    seed
        Random seed of the controls.
    device
        Device of the model.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        With the dims ``(layer, scale, direction, sample)``, where ``direction`` is ``groups`` or a random
        one: ``value``, the metric, and ``kl``, the Kullback-Leibler divergence in nats of the edited
        prediction from the intact one, whose metric is ``intact``, dims ``(sample,)``; for a metric of
        answers also ``answer`` and ``intact_answer``, the texts. With the dims
        ``(half, layer, scale, direction)`` and 95% intervals (``_low``, ``_high``): ``gap``, the difference
        between the groups; ``remaining``, the gap as a share of the intact one; ``change_first`` and
        ``change_second``, the mean change in each group. ``half`` is ``fit`` for the clusters that the
        direction was fitted on and ``held_out`` for the others, or ``all``. ``chosen``, dims
        ``(layer, scale)``, marks the setting whose effect on the first half is nearest to the intended one:
        no gap left, or the first group moved by the whole gap. Report its effect on the half ``held_out``.

    Raises
    ------
    InputError
        Lists all faults of the arguments, before the model is loaded.

    Notes
    -----
    Intervals: jackknife over clusters. Modes: Arditi et al., Refusal in language models is mediated by a
    single direction, NeurIPS 2024.
    """
    selection.check_counts(0, controls=controls)
    chosen_metric = as_any_metric(metric)
    whole = finite_cube(cube)
    if isinstance(direction, xr.Dataset) and "layer" in direction.coords and "layer" not in direction.dims:
        direction = direction.expand_dims("layer")
    vectors, faults = _directions(direction, whole, layers)
    scales = np.atleast_1d(np.asarray(scale, dtype=np.float64))
    if mode not in MODES:
        faults.append(Fault("mode", f"{mode!r} is not an option", f"use one of {', '.join(MODES)}"))
    if scales.ndim != 1 or not len(scales) or not np.isfinite(scales).all():
        faults.append(Fault("scale", f"is {scale!r}", "give a finite number or several"))
    name, unnamed = model_name(whole, model)
    faults += unnamed
    if faults:
        raise InputError(faults, "cannot steer")
    groups = _Groups.of(whole, direction, where)
    score = None if isinstance(chosen_metric, TextMetric) else chosen_metric.score
    check = None if score is None else lambda found: score(found.tokenizer)
    loss = load_language_loss(whole, name, rows=groups.rows, device=device, check=check)
    if model is not None and "residual" in whole:
        loss.check(whole, "residual", list(vectors)[:1])
    if mode == "ablate":
        scales = np.ones(1)
    means = direction["mean"].isel(group=0)
    targets = {layer: _tensor(means.sel(layer=layer)) for layer in vectors}
    arms = {"groups": vectors} | {
        f"random {at + 1}": random_like(vectors, seed + at) for at in range(controls)
    }
    edits = [
        _edit(loss.model.hook_points, mode, arm[layer], targets[layer], layer, factor)
        for layer, factor, arm in product(vectors, scales.tolist(), arms.values())
    ]
    table = _run(loss, groups.rows, chosen_metric, edits, progress=progress)
    shape = (len(vectors), len(scales), len(arms), len(groups.rows))
    dims = ("layer", "scale", "direction", "sample")
    result = xr.Dataset(
        {
            **{name: (dims, rows[1:].reshape(shape)) for name, rows in table.items()},
            "intact": (("sample",), table["value"][0]),
            **({"intact_answer": (("sample",), table["answer"][0])} if "answer" in table else {}),
        },
        coords={
            "layer": list(vectors),
            "scale": scales,
            "direction": np.array(list(arms), dtype=object),
            **{name: whole[name].isel(sample=groups.rows) for name in ("sample", "language", "sample_id")},
            str(direction.attrs["by"]): ("sample", groups.texts),
        },
    )
    result = _with_gaps(result, groups, mode)
    result.attrs = selection.settings(
        whole,
        "steer",
        mode=mode,
        metric=chosen_metric.name,
        controls=controls,
        seed=seed,
        interval=f"95%, jackknife over {direction.attrs.get('cluster') or 'samples'}",
        **{name: direction.attrs[name] for name in _KEPT},
    )
    result.attrs["n_samples"] = len(groups.rows)
    if isinstance(chosen_metric, TextMetric):
        result.attrs |= chosen_metric.attrs
    return result


def _directions(
    direction: xr.Dataset, cube: xr.Dataset, layers: Sequence[int] | None
) -> tuple[dict[int, torch.Tensor], list[Fault]]:
    if not isinstance(direction, xr.Dataset) or not {"direction", "mean"} <= set(direction.data_vars):
        hint = "give the result of actkit.group_directions"
        return {}, [Fault("direction", "lacks the variables `direction` and `mean`", hint)]
    if "language" in direction.dims:
        languages = ", ".join(map(str, direction.language.values))
        hint = 'select one, such as directions.sel(language="en")'
        return {}, [Fault("direction", f"has the dimension language ({languages})", hint)]
    faults = []
    width = cube.attrs.get("hidden_size", cube.sizes.get("hidden"))
    if width is not None and direction.sizes["hidden"] != width:
        what = f"has {direction.sizes['hidden']} dimensions, the model {width}"
        faults.append(Fault("direction", what, "compute it from a cube of this model"))
    if (fitted := direction.attrs.get("model")) != cube.attrs.get("model"):
        what = f"was computed from {fitted}, the cube from {cube.attrs.get('model')}"
        faults.append(Fault("direction", what, "compute it from a cube of this model"))
    available = direction.layer.values.tolist()
    asked = available if layers is None else [int(layer) for layer in layers]
    if not asked:
        faults.append(Fault("layers", "names no layer", f"the direction has {available}"))
    unknown = [layer for layer in asked if layer not in available]
    if unknown:
        faults.append(Fault("layers", f"the direction lacks {unknown}", f"it has {available}"))
    if faults:
        return {}, faults
    vectors = {layer: _tensor(direction.direction.sel(layer=layer)) for layer in asked}
    empty = [layer for layer, vector in vectors.items() if not float(vector.norm()) > 0]
    if empty:
        faults.append(Fault("direction", f"has no length at layers {empty}", "leave these out of `layers`"))
    return vectors, faults


def _tensor(array: xr.DataArray) -> torch.Tensor:
    return torch.from_numpy(np.array(array.values, dtype=np.float32))


@dataclass(frozen=True)
class _Groups:
    """The samples of two groups, and the clusters that their direction was fitted on.

    Parameters
    ----------
    rows
        Indices of the samples in the cube.
    is_second
        Whether each belongs to the second group.
    texts
        Label of each sample.
    clusters
        Cluster of each sample, integers from 0.
    halves
        Name of each half and its samples, boolean, dims ``(sample,)``.
    """

    rows: np.ndarray
    is_second: np.ndarray
    texts: np.ndarray
    clusters: np.ndarray
    halves: dict[str, np.ndarray]

    @classmethod
    def of(cls, cube: xr.Dataset, direction: xr.Dataset, where: Mapping[str, Any] | None) -> "_Groups":
        attrs = direction.attrs
        first, second = str(attrs["first"]), str(attrs["second"])
        where = {**_language_of(direction), **(where or {})}
        names, has_label, is_second = two_labels(cube["sample_id"], attrs["by"], (first, second))
        kept = has_label.copy()
        for name, value in where.items():
            column = selection.column(cube, name, "where")
            kept &= column.codes == column.find(value)
        rows = np.flatnonzero(kept)
        if faults := [
            Fault(f"{attrs['by']} {name}", "has no sample", "choose other values of `where`")
            for name, mask in zip(names, (~is_second, is_second), strict=True)
            if not (mask & kept).any()
        ]:
            raise InputError(faults, "cannot steer")
        cluster = attrs.get("cluster") or None
        ids = (
            selection.codes(selection.clusters(cube.isel(sample=rows), cluster))
            if cluster
            else selection.codes(cube.sample_id.values.astype(str)[rows])
        )
        halves = {"all": np.ones(len(rows), dtype=bool)}
        if attrs["fit"] == "half":
            inside = np.isin(
                np.array(cluster_names(cube, cluster))[rows], direction.fit_cluster.values.astype(str)
            )
            halves = {"fit": inside, "held_out": ~inside}
        faults = [
            Fault(
                f"{attrs['by']} {name}",
                f"has no sample in the half {half}",
                "give group_directions another seed",
            )
            for half, members in halves.items()
            for name, mask in zip(names, (~is_second[rows], is_second[rows]), strict=True)
            if not (mask & members).any()
        ]
        if faults:
            raise InputError(faults, "cannot steer")
        texts = np.where(is_second[rows], second, first).astype(object)
        return cls(rows, is_second[rows], texts, ids, halves)


def _language_of(direction: xr.Dataset) -> dict[str, Any]:
    return {"language": direction.language.item()} if "language" in direction.coords else {}


def _edit(
    hook_points: HookPoints,
    mode: str,
    direction: torch.Tensor,
    first_mean: torch.Tensor,
    layer: int,
    scale: float,
) -> Callable[[], AbstractContextManager[None]]:
    if mode == "ablate":
        return lambda: ablated(hook_points, direction)
    if mode == "add":
        return lambda: added(hook_points, scale * direction, layer)
    return lambda: clamped(hook_points, direction, first_mean + scale * direction, layer)


@torch.inference_mode()
def _run(
    loss: LanguageLoss,
    rows: np.ndarray,
    metric: Metric | TextMetric,
    edits: Sequence[Callable[[], AbstractContextManager[None]]],
    *,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Return the results of the intact model and then of each edit, dims ``(edit, sample)``."""
    measure = measure_of(metric, loss)
    place = {row: at for at, row in enumerate(rows.tolist())}
    shape = (1 + len(edits), len(rows))
    table: dict[str, np.ndarray] = {}
    with tqdm(total=shape[0] * shape[1], unit=" prompts", disable=None if progress else True) as bar:
        for batch in loss.batches:
            at = [place[row] for row in batch.samples.tolist()]
            intact: torch.Tensor | None = None
            for number, edit in enumerate([nullcontext, *edits]):
                with edit():
                    logits = last_logits(loss.model, batch.prompts)
                    results = measure(batch, logits)
                edited = logits.log_softmax(dim=-1)
                intact = edited if intact is None else intact
                results["kl"] = (intact.exp() * (intact - edited)).sum(dim=-1).double().numpy()
                for name, column in results.items():
                    cells = table.setdefault(name, np.empty(shape, dtype=column.dtype))
                    cells[number, at] = column
                bar.update(len(at))
    return table


def _with_gaps(result: xr.Dataset, groups: _Groups, mode: str) -> xr.Dataset:
    """Add the summaries of each half, and mark the setting with the strongest effect on the first one."""
    table = result.value.values.reshape(-1, len(groups.rows))
    summaries = np.stack(
        [
            gap_summaries(
                table[:, half],
                result.intact.values[half],
                groups.is_second[half],
                selection.codes(groups.clusters[half]),
            )
            for half in groups.halves.values()
        ]
    )
    dims = ("half", "layer", "scale", "direction")
    shape = (len(groups.halves), *result.value.shape[:-1])
    result = result.assign_coords(half=np.array(list(groups.halves), dtype=object))
    for at, name in enumerate(GAP_SUMMARIES):
        for bound, suffix in enumerate(("", "_low", "_high")):
            result[f"{name}{suffix}"] = (dims, summaries[:, at, bound].reshape(shape))
    halves = np.stack(list(groups.halves.values())).astype(np.int64)
    result["n"] = (
        ("half", "group"),
        np.stack([halves @ ~groups.is_second, halves @ groups.is_second], axis=1),
    )
    first = result.isel(half=0, direction=0)
    intact_gap = first.gap / first.remaining
    distance = abs(first.remaining) if mode == "ablate" else abs(first.change_first / intact_gap - 1)
    result["chosen"] = distance == distance.min()
    return result
