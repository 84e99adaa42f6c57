"""Activation patching between twins, one site and token at a time, with an unrelated prompt as control."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from ..canonical import Cube
from ..errors import Fault, InputError
from ..extraction.models.loader import LoadedModel
from ..extraction.prompts.encoder import Prompt
from ..features.cube_model import CubeModel, model_name
from ..features.language_loss import load_language_loss
from ..features.replacement import replaced
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.kernels.gaps import ratio_of_means
from .metrics import Metric, Score, as_metric
from .prompt_logits import last_logits
from .sites import COMPONENTS, Site, parse_sites, recorded
from .twins import Twins, aligned, find_twins

SOURCES = ("twin", "unrelated")
REGIONS = ("prefix", "changed", "suffix", "last")
_BATCH_TOKENS = 4096
_SMALL = 0.1  # of the median absolute difference of the twins


def patch(
    cube: Cube,
    *,
    metric: Metric | Callable[[torch.Tensor], Any],
    paired_by: str,
    by: str,
    between: tuple[Any, Any] | None = None,
    component: str | Sequence[str] = "residual",
    layers: Sequence[int] | None = None,
    cluster: str | None = None,
    where: Mapping[str, Any] | None = None,
    model: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool = True,
) -> xr.Dataset:
    """Measure how far one output of a twin, at one token of a component, moves the prediction to the twin's.

    Parameters
    ----------
    cube
        Run folder or cube, whose prompts are run again from their token ids.
    metric
        :class:`actkit.LogitDifference`, or a function of the logits after the last token of each prompt, dims
        ``(sample, vocabulary)``, that returns one number per prompt.
    paired_by
        Label that the two prompts of a pair share. They have the same language.
    by
        Label in which they differ.
    between
        Its two values: that of the prompts that are run, and that of the twins that the outputs are taken
        from.
    component
        ``residual``, ``attention``, ``mlp``, or several.
    layers
        Layers; all by default.
    cluster
        Label that dependent pairs share; by default, ``paired_by``.
    where
        Required value of each label given, or of ``language``.
    model
        Name or folder of the model; by default, that of the cube.
    seed
        Random seed of the choice of unrelated prompts.
    device
        Device of the model.
    progress
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        With the dims ``(source, component, layer, sample, token)``, where ``sample`` is the base of each pair
        and ``source`` the ``twin`` or, as control, an ``unrelated`` base of another cluster, of the nearest
        length: ``value``, the metric after patching, and ``effect``, its change as a share of the difference
        between the twins, ``(value - base) / (twin - base)``; NaN where a token has no counterpart, and
        ``effect`` also where the twins differ by less than a tenth of the median. ``base`` and ``twin``, dims
        ``(sample,)``, are the metric of the intact prompts. With the dims
        ``(source, component, layer, region)`` and 95% intervals (``_low``, ``_high``): ``share``, the mean
        change over the mean difference of the twins, where ``region`` is the tokens of the ``prefix`` that
        both twins begin with, the ``changed`` tokens, and the ``suffix`` that both end with, without its
        ``last`` token, which is a region of its own. Each pair counts with the mean over the tokens of the
        region.

    Raises
    ------
    InputError
        Lists all faults of the arguments, before the model is loaded.

    Notes
    -----
    Twins of the same number of tokens correspond token by token. Of others, the common prefix and the common
    suffix do, so that outputs of the suffix come from another position; other tokens are not patched. The
    same tokens of the unrelated prompt are used, counted from the end in the suffix. Prompts run in batches
    of equal length, without padding. Intervals: jackknife over clusters. Method: Vig et al. 2020; Zhang &
    Nanda, Towards best practices of activation patching, ICLR 2024.
    """
    chosen_metric = as_metric(metric)
    whole = finite_cube(cube)
    name, unnamed = model_name(whole, model)
    names = [component] if isinstance(component, str) else list(dict.fromkeys(component))
    faults = [
        Fault("component", f"{wrong!r} is not an option", f"use {', '.join(COMPONENTS)}")
        for wrong in names
        if wrong not in COMPONENTS
    ]
    if not names:
        faults.append(Fault("component", "names no component", f"use {', '.join(COMPONENTS)}"))
    faults += unnamed
    if layers is not None and not len(layers):
        faults.append(Fault("layers", "names no layer", "leave it out for all layers"))
    if faults:
        raise InputError(faults, "cannot patch")
    twins = find_twins(whole, paired_by=paired_by, by=by, between=between, cluster=cluster, where=where)
    if len(np.unique(twins.clusters)) < 2:
        hint = "the control needs an unrelated prompt: give pairs of two clusters at least"
        raise InputError([Fault("paired_by", "all belong to one cluster", hint)], "cannot patch")
    rows = np.unique(np.concatenate([twins.base, twins.twin]))
    chosen: list[int] = []
    sites: list[Site] = []

    def check(found: CubeModel) -> None:
        n_layers = found.architecture.n_layers
        chosen.extend(range(n_layers) if layers is None else dict.fromkeys(map(int, layers)))
        parsed, wrong = parse_sites([f"{part}_{layer}" for part in names for layer in chosen], n_layers)
        if wrong:
            raise InputError(wrong, "cannot patch")
        sites.extend(parsed)
        chosen_metric.score(found.tokenizer)

    loss = load_language_loss(whole, name, rows=rows, device=device, check=check)
    prompts = {
        row: prompt
        for batch in loss.batches
        for row, prompt in zip(batch.samples.tolist(), batch.prompts, strict=True)
    }
    cases = _cases(twins, prompts, seed)
    values, base, twin = _run(
        loss.model, chosen_metric.score(loss.tokenizer), prompts, cases, sites, progress=progress
    )
    result = xr.Dataset(
        {
            "value": (
                ("source", "component", "layer", "sample", "token"),
                values.reshape(len(SOURCES), len(names), len(chosen), *values.shape[2:]),
            ),
            "base": ("sample", base),
            "twin": ("sample", twin),
        },
        coords={
            "source": np.array(SOURCES, dtype=object),
            "component": np.array(names, dtype=object),
            "layer": chosen,
            "region": np.array(REGIONS, dtype=object),
            **{
                label: whole[label].isel(sample=twins.base)
                for label in ("sample", "language", "sample_id", "text")
                if label in whole.coords
            },
            paired_by: ("sample", twins.names),
            "twin_sample_id": ("sample", whole.sample_id.values[twins.twin]),
            "unrelated_sample_id": ("sample", whole.sample_id.values[[case.unrelated for case in cases]]),
        },
    )
    if "token_text" in whole.coords:
        texts = whole.token_text.values[twins.base][:, : values.shape[-1]]
        result = result.assign_coords(token_text=(("sample", "token"), texts))
    result = _with_summaries(result, cases, twins.clusters)
    result.attrs = selection.settings(
        whole,
        "patch",
        metric=chosen_metric.name,
        paired_by=paired_by,
        by=by,
        between=f"{twins.groups[0]} to {twins.groups[1]}",
        cluster=cluster or paired_by,
        n_incomplete=twins.n_incomplete,
        seed=seed,
        interval=f"95%, jackknife over {cluster or paired_by}",
    )
    result.attrs["n_samples"] = len(cases)
    return result


@dataclass(frozen=True)
class _Case:
    """One pair: rows of the base, twin and unrelated prompt, and their corresponding tokens.

    Parameters
    ----------
    base, twin, unrelated
        Indices of the samples in the cube.
    places
        Token of each source that is patched into each token of the base, or -1, dims ``(source, token)``.
    regions
        Index into `REGIONS` of each token of the base.
    """

    base: int
    twin: int
    unrelated: int
    places: np.ndarray
    regions: np.ndarray


def _cases(twins: Twins, prompts: Mapping[int, Prompt], seed: int) -> list[_Case]:
    random = np.random.default_rng(seed)
    lengths = np.array([len(prompts[row].ids) for row in twins.base.tolist()])
    cases = []
    for at, (base, twin) in enumerate(zip(twins.base.tolist(), twins.twin.tolist(), strict=True)):
        others = np.flatnonzero(twins.clusters != twins.clusters[at])
        distance = abs(lengths[others] - lengths[at])
        other = int(random.choice(others[distance == distance.min()]))
        length = int(lengths[at])
        places, prefix, suffix = aligned(prompts[base].ids, prompts[twin].ids)
        suffix_from = length - suffix
        control = np.arange(length)
        control[suffix_from:] += lengths[other] - length
        control[(control < 0) | (control >= lengths[other]) | (places < 0)] = -1
        regions = np.full(length, REGIONS.index("changed"))
        regions[:prefix] = REGIONS.index("prefix")
        regions[suffix_from:] = REGIONS.index("suffix")
        regions[-1] = REGIONS.index("last")
        cases.append(_Case(base, twin, int(twins.base[other]), np.stack([places, control]), regions))
    return cases


@torch.inference_mode()
def _run(
    model: LoadedModel,
    score: Score,
    prompts: Mapping[int, Prompt],
    cases: Sequence[_Case],
    sites: Sequence[Site],
    *,
    progress: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the metric, dims ``(source, site, sample, token)``, and that of intact bases and twins."""
    longest = max(len(case.regions) for case in cases)
    values = np.full((len(SOURCES), len(sites), len(cases), longest), np.nan)
    base, twin = np.empty((2, len(cases)))
    total = len(sites) * sum(int((case.places >= 0).sum()) for case in cases)
    with tqdm(total=total, unit=" prompts", disable=None if progress else True) as bar:
        for members in _of_equal_length(cases):
            sources: list[tuple[dict[Site, torch.Tensor], dict[Site, torch.Tensor]]] = []
            for at in members:
                case = cases[at]
                base[at] = float(score(last_logits(model, [prompts[case.base]]))[0])
                from_twin, logits = recorded(model, [prompts[case.twin]], sites)
                twin[at] = float(score(logits)[0])
                sources.append((from_twin, recorded(model, [prompts[case.unrelated]], sites)[0]))
            jobs = [
                (source, number, token)
                for number, at in enumerate(members)
                for source in range(len(SOURCES))
                for token in np.flatnonzero(cases[at].places[source] >= 0).tolist()
            ]
            size = max(1, _BATCH_TOKENS // len(cases[members[0]].regions))
            for start in range(0, len(jobs), size):
                batch = jobs[start : start + size]
                repeated = [prompts[cases[members[number]].base] for _, number, _ in batch]
                where = torch.zeros(len(batch), len(repeated[0].ids), dtype=torch.bool)
                tokens = torch.tensor([token for _, _, token in batch])
                where[torch.arange(len(batch)), tokens] = True
                for row, site in enumerate(sites):
                    vectors = torch.stack(
                        [
                            sources[number][source][site][0, cases[members[number]].places[source][token]]
                            for source, number, token in batch
                        ]
                    )
                    with patched(model, site, vectors, where):
                        scores = score(last_logits(model, repeated)).numpy()
                    for (source, number, token), number_scored in zip(batch, scores, strict=True):
                        values[source, row, members[number], token] = number_scored
                    bar.update(len(batch))
    return values, base, twin


def patched(model: LoadedModel, site: Site, vectors: torch.Tensor, where: torch.Tensor) -> Any:
    """Return a context in which a site has other vectors at some tokens.

    Parameters
    ----------
    model
        The model.
    site
        Component and layer.
    vectors
        One vector for each prompt, dims ``(sample, hidden)``.
    where
        Tokens that are given the vector of their prompt, boolean, dims ``(sample, token)``.
    """
    return replaced(
        model.hook_points,
        site[0],
        site[1],
        lambda output: vectors.to(output)[:, None].expand_as(output),
        where=where,
    )


def _of_equal_length(cases: Sequence[_Case]) -> Iterator[list[int]]:
    """Yield cases whose bases have the same number of tokens, as many as fill a batch."""
    lengths = np.array([len(case.regions) for case in cases])
    for length in np.unique(lengths).tolist():
        members = np.flatnonzero(lengths == length).tolist()
        size = max(1, _BATCH_TOKENS // (2 * length * length))
        yield from (members[start : start + size] for start in range(0, len(members), size))


def _with_summaries(result: xr.Dataset, cases: Sequence[_Case], clusters: np.ndarray) -> xr.Dataset:
    """Add the normalised effect of each token, and the mean share of each region with its interval."""
    difference = result.twin - result.base
    smallest = _SMALL * float(abs(difference).median())
    defined = abs(difference) > smallest
    result["effect"] = ((result.value - result.base) / difference.where(defined)).transpose(
        *result.value.dims
    )
    change = (result.value - result.base).transpose(*result.value.dims).values
    shares = []
    for region in range(len(REGIONS)):
        mask = np.zeros(change.shape[-2:], dtype=bool)
        for row, case in enumerate(cases):
            mask[row, : len(case.regions)] = case.regions == region
        inside = np.where(mask & ~np.isnan(change), change, 0.0).sum(axis=-1)
        count = (mask & ~np.isnan(change)).sum(axis=-1)
        means = np.where(count > 0, inside / np.maximum(count, 1), np.nan)
        shares.append(ratio_of_means(means, np.broadcast_to(difference.values, means.shape), clusters))
    for at, suffix in enumerate(("", "_low", "_high")):
        table = np.stack([share[at] for share in shares], axis=-1)
        result[f"share{suffix}"] = (("source", "component", "layer", "region"), table)
    return result
