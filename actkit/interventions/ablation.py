"""Ablation of components, layer by layer, with random displacements of the same length as control."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..canonical import Cube
from ..errors import Fault, InputError
from ..features.cube_model import CubeModel, model_name
from ..features.language_loss import Batch, LanguageLoss, load_language_loss
from ..features.replacement import replaced
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.group_comparison import two_labels
from ..stats.kernels.gaps import gap_summaries, ratio_of_means
from .metrics import Metric, as_metric
from .prompt_logits import last_logits
from .sites import Site, parse_sites, recorded
from .twins import Twins, aligned, find_twins

Value = Literal["mean", "zero", "twin"]
Positions = Literal["content", "all", "last"]
VALUES = ("mean", "zero", "twin")
POSITIONS = ("content", "all", "last")


def ablate(
    cube: Cube,
    *,
    what: str | Sequence[str],
    metric: Metric | Callable[[torch.Tensor], Any],
    value: Value = "mean",
    positions: Positions = "content",
    by: str | None = None,
    between: tuple[Any, Any] | None = None,
    paired_by: str | None = None,
    cluster: str | None = None,
    where: Mapping[str, Any] | None = None,
    controls: int = 1,
    model: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Measure what happens to the prediction after each prompt if the output of a component is replaced.

    Parameters
    ----------
    cube
        Run folder or cube, whose prompts are run again from their token ids.
    what
        Sites, each replaced alone: ``mlp_5``, ``attention_3``, ``residual_7``, or ``mlp`` for those of all
        layers.
    metric
        :class:`actkit.LogitDifference`, or a function of the logits after the last token of each prompt, dims
        ``(sample, vocabulary)``, that returns one number per prompt.
    value
        Replacement: the ``mean`` of the site over the content tokens of the samples, ``zero``, or the output
        at the corresponding token of the ``twin``, aligned as by :func:`actkit.patch`.
    positions
        Tokens at which the output is replaced: ``content``, without special tokens and templates, ``all``, or
        the ``last`` of the prompt.
    by, between
        Label with two values, whose difference in the metric is summarised; of twins, the one in which they
        differ.
    paired_by
        Label that twins share; required for ``twin``, whose results are of the first group only.
    cluster
        Label that dependent samples share; by default, ``paired_by`` or each sample.
    where
        Required value of each label given, or of ``language``.
    controls
        Number of random displacements that are tried.
    model
        Name or folder of the model; by default, that of the cube.
    seed
        Random seed of the controls.
    device
        Device of the model.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        With the dims ``(site, arm, sample)``, where ``arm`` is ``ablated`` or a random one: ``value``, the
        metric; ``kl``, the Kullback-Leibler divergence in nats of the edited prediction from the intact one,
        whose metric is ``intact``, dims ``(sample,)``. With the dims ``(site, arm)`` and 95% intervals
        (``_low``, ``_high``): ``change``, the mean change of the metric, and, with ``by`` and without
        ``twin``, ``gap``, the difference between the groups, and ``remaining``, its share of the intact gap.

    Raises
    ------
    InputError
        Lists all faults of the arguments, before the model is loaded.

    Notes
    -----
    Control: at each token, the output moves as far as by the ablation, along one random direction for each
    site, so that site, tokens and size of the change are the same, and only its direction is not. Intervals:
    jackknife over clusters.
    """
    selection.check_counts(0, controls=controls)
    chosen_metric = as_metric(metric)
    whole = finite_cube(cube)
    name, unnamed = model_name(whole, model)
    faults = [
        Fault(option, f"{chosen!r} is not an option", f"use one of {', '.join(known)}")
        for option, chosen, known in (("value", value, VALUES), ("positions", positions, POSITIONS))
        if chosen not in known
    ]
    if value == "twin" and (paired_by is None or by is None):
        faults.append(Fault("paired_by", "is not given", "name the labels of twins: paired_by= and by="))
    faults += unnamed
    if faults:
        raise InputError(faults, "cannot ablate")
    twins = None
    kept = np.ones(whole.sizes["sample"], dtype=bool)
    is_second = np.zeros_like(kept)
    if value == "twin" and paired_by is not None and by is not None:
        twins = find_twins(whole, paired_by=paired_by, by=by, between=between, cluster=cluster, where=where)
        kept = np.isin(np.arange(len(kept)), twins.base)
    elif by is not None:
        _, kept, is_second = two_labels(whole["sample_id"], by, between)
    for label, wanted in (where or {}).items():
        column = selection.column(whole, label, "where")
        kept = kept & (column.codes == column.find(wanted))
    rows = np.flatnonzero(kept)
    if not len(rows) or (by is not None and twins is None and len(set(is_second[rows].tolist())) < 2):
        hint = "choose other values of `where`"
        raise InputError([Fault("where", "leaves a group without samples", hint)], "cannot ablate")
    loaded = rows if twins is None else np.unique(np.concatenate([twins.base, twins.twin]))
    sites: list[Site] = []

    def check(found: CubeModel) -> None:
        parsed, wrong = parse_sites(what, found.architecture.n_layers)
        if wrong:
            raise InputError(wrong, "cannot ablate")
        sites.extend(parsed)
        chosen_metric.score(found.tokenizer)

    loss = load_language_loss(whole, name, rows=loaded, device=device, check=check)
    targets = _targets(loss, sites, value, twins)
    values, divergences, intact = _run(
        loss, rows, chosen_metric, sites, targets, positions, controls, seed, progress=progress
    )
    arms = ["ablated", *(f"random {at + 1}" for at in range(controls))]
    dims = ("site", "arm", "sample")
    result = xr.Dataset(
        {"value": (dims, values), "kl": (dims, divergences), "intact": (("sample",), intact)},
        coords={
            "site": np.array([f"{component}_{layer}" for component, layer in sites], dtype=object),
            "component": ("site", np.array([component for component, _ in sites], dtype=object)),
            "layer": ("site", [layer for _, layer in sites]),
            "arm": np.array(arms, dtype=object),
            **{label: whole[label].isel(sample=rows) for label in ("sample", "language", "sample_id")},
        },
    )
    grouping = cluster or (paired_by if twins is not None else None)
    ids = (
        selection.clusters(whole.isel(sample=rows), grouping)
        if grouping
        else whole.sample_id.values[rows].astype(str)
    )
    groups = selection.codes(ids)
    changes = values - intact
    bounds = {"change": ratio_of_means(changes, np.ones_like(changes), groups)}
    if by is not None and twins is None:
        table = gap_summaries(values.reshape(-1, len(rows)), intact, is_second[rows], groups)
        bounds |= {
            key: table[at].reshape(3, *values.shape[:2]) for at, key in enumerate(("gap", "remaining"))
        }
    for key, bound in bounds.items():
        for at, suffix in enumerate(("", "_low", "_high")):
            result[f"{key}{suffix}"] = (dims[:2], bound[at])
    result.attrs = selection.settings(
        whole,
        "ablate",
        metric=chosen_metric.name,
        value=value,
        positions=positions,
        by=by,
        paired_by=paired_by,
        controls=controls,
        seed=seed,
        interval=f"95%, jackknife over {grouping or 'samples'}",
    )
    result.attrs["n_samples"] = len(rows)
    return result


# takes a batch and a site; returns the replacement, which broadcasts to dims (sample, token, hidden), and
# the tokens that have one, boolean, dims (sample, token), or None for all
_Target = Callable[[Batch, Site], tuple[torch.Tensor, torch.Tensor | None]]


def _targets(loss: LanguageLoss, sites: Sequence[Site], value: str, twins: Twins | None) -> _Target:
    if twins is not None:
        return _twin_outputs(loss, sites, twins)
    if value == "zero":
        return lambda _batch, _site: (torch.zeros(()), None)
    sums: dict[Site, torch.Tensor] = {}
    count = 0
    for batch in loss.batches:
        outputs, _ = recorded(loss.model, batch.prompts, sites)
        count += int(batch.mask.sum())
        for site, output in outputs.items():
            total = output[batch.mask.to(output.device)].double().sum(dim=0)
            sums[site] = sums[site] + total if site in sums else total
    return lambda _batch, site: (sums[site] / count, None)


def _twin_outputs(loss: LanguageLoss, sites: Sequence[Site], twins: Twins) -> _Target:
    prompts = {
        row: prompt
        for batch in loss.batches
        for row, prompt in zip(batch.samples.tolist(), batch.prompts, strict=True)
    }
    twin_of = dict(zip(twins.base.tolist(), twins.twin.tolist(), strict=True))
    cached: dict[str, Any] = {}

    def target(batch: Batch, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
        if cached.get("batch") is not batch:
            outputs = [
                recorded(loss.model, [prompts[twin_of[row]]], sites)[0] if row in twin_of else None
                for row in batch.samples.tolist()
            ]
            cached.update(batch=batch, outputs=outputs)
        hidden = next(kept for kept in cached["outputs"] if kept is not None)[site].shape[-1]
        values = torch.zeros(*batch.mask.shape, hidden)
        present = torch.zeros(batch.mask.shape, dtype=torch.bool)
        for at, (row, kept) in enumerate(zip(batch.samples.tolist(), cached["outputs"], strict=True)):
            if kept is None:
                continue
            places, _, _ = aligned(prompts[row].ids, prompts[twin_of[row]].ids)
            tokens = np.flatnonzero(places >= 0)
            values[at, tokens] = kept[site][0, places[tokens]].float().cpu()
            present[at, tokens] = True
        return values, present

    return target


@torch.inference_mode()
def _run(
    loss: LanguageLoss,
    rows: np.ndarray,
    metric: Metric,
    sites: Sequence[Site],
    targets: _Target,
    positions: str,
    controls: int,
    seed: int,
    *,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the metric and the divergence, dims ``(site, arm, sample)``, and the intact metric."""
    score = metric.score(loss.tokenizer)
    place = {row: at for at, row in enumerate(rows.tolist())}
    values, divergences = np.empty((2, len(sites), controls + 1, len(rows)))
    intact = np.empty(len(rows))
    with tqdm(total=values.size, unit=" prompts", disable=None if progress else True) as bar:
        for batch in loss.batches:
            inside = np.array([row in place for row in batch.samples.tolist()])
            if not inside.any():
                continue
            at = [place[row] for row in batch.samples[inside].tolist()]
            before = last_logits(loss.model, batch.prompts)[inside]
            intact[at] = score(before)
            before = before.log_softmax(dim=-1)
            for number, site in enumerate(sites):
                target, present = targets(batch, site)
                where = _where(batch, positions)
                where = where if present is None else where & present
                for arm in range(controls + 1):
                    replace = _replacement(target, site, arm, seed)
                    with replaced(loss.model.hook_points, site[0], site[1], replace, where=where):
                        after = last_logits(loss.model, batch.prompts)[inside]
                    values[number, arm, at] = score(after)
                    after = after.log_softmax(dim=-1)
                    divergences[number, arm, at] = (before.exp() * (before - after)).sum(dim=-1)
                    bar.update(len(at))
    return values, divergences, intact


def _where(batch: Batch, positions: str) -> torch.Tensor:
    if positions == "content":
        return batch.mask
    where = torch.zeros_like(batch.mask)
    for row, prompt in enumerate(batch.prompts):
        where[row, len(prompt.ids) - 1 if positions == "last" else 0 : len(prompt.ids)] = True
    return where


def _replacement(
    target: torch.Tensor, site: Site, arm: int, seed: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the replacement of an output by its target or, of later arms, a random one as far away."""

    def replace(output: torch.Tensor) -> torch.Tensor:
        wide = output.float()
        goal = target.to(wide).expand_as(wide)
        if arm == 0:
            return goal
        noise = np.random.default_rng([seed, arm, site[1]]).standard_normal(wide.shape[-1])
        unit = torch.from_numpy(noise / np.linalg.norm(noise)).to(wide)
        moved: torch.Tensor = wide + (goal - wide).norm(dim=-1, keepdim=True) * unit
        return moved

    return replace
