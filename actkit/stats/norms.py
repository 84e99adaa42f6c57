"""Norms of the residual stream by layer, updates between adjacent layers, and massive activations."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError, MissingError
from ..schema import WIDTH, Component
from . import selection
from .cluster_detection import ClusterChoice
from .finiteness import checked, finite_cube
from .kernels.norms import NORM_SUMMARIES, empty_summary, largest, lengths, summarize_norms, updates
from .lazy_blocks import apply_to_samples
from .token_selection import select_tokens

_GROUP = "group"  # temporary name of the group dimension, until the result's variables are known


def layer_norms(
    cube: Cube,
    *,
    by: str | None = None,
    cluster: str | None = selection.AUTO,
    tokens: selection.TokenSelection = "content",
    component: Component = "residual",
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Summarise the L2 norms of token vectors by language and layer.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `norm`; or its group ``vision``, with all patches included.
    by
        A label column by which samples are grouped as well; samples without a value are excluded.
    cluster
        The label that dependent samples share; by default detected (see "Dependent
        samples" in the methods). None if all samples are independent.
    tokens
        Tokens included: ``content``, ``special``, ``template``, ``text``, ``image``, ``generated``, ``first``
        (position 0) or ``all``; or a :class:`TokenFilter`. A cube that keeps only last tokens or means uses
        those.
    component
        ``residual``, whose norms the cube stores; or ``attention`` or ``mlp``, whose norms are computed.
    resamples
        Number of bootstrap resamples for ``low`` and ``high``. Clusters are resampled, not samples or tokens.
    seed
        Random seed of the bootstrap.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, or ``(language, by, layer)`` (named ``<by>_label`` if a variable of the
        result is named ``by``; the attribute ``group_dim`` holds the name): ``mean`` (tokens weighted
        equally) with its 95% interval ``low`` to ``high``, ``sample_mean`` (samples weighted equally),
        ``median``, ``p5``, ``p95``, ``p99``, ``max``, ``n_tokens``, ``n_outliers`` (tokens above 10 times the
        median of the layer), and ``rms`` (the mean over the square root of the width, to compare models). In
        units of the residual stream. Lazy if the cube is.

    Raises
    ------
    InputError, MissingError
        If the label, kind of token or component does not exist.

    Notes
    -----
    Cluster bootstrap: Davison, Hinkley, Bootstrap methods and their application, Cambridge 1997, section 3.8.
    Expanded percentiles: Hesterberg, What teachers should know about the bootstrap, The American Statistician
    2015. The interval is NaN if all tokens belong to one cluster.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> norms = layer_norms(open_cube(write_cube(hidden=64)))
    >>> bool(abs(norms["mean"].mean() - 8) < 0.5)  # sqrt(64), for standard normal numbers
    True
    """
    selection.check_counts(resamples=resamples)
    selected, norms = _norms(select_tokens(finite_cube(cube), tokens), component)
    choice = selection.cluster_choice(selected, cluster, by)
    cluster_ids = _cluster_ids(selected, choice)
    mask = selection.token_mask(selected)
    is_captured = selected.coords.get(f"has_{component}", True)  # layers without it are all NaN
    result = _summarize(selected, checked(norms, mask & is_captured), mask, by, cluster_ids, resamples, seed)
    if hidden := selected.sizes.get("hidden"):
        result["rms"] = result["mean"] / np.sqrt(hidden)
    result, group_dim = _name_groups(result, by)
    result.attrs = selection.settings(
        selected,
        "layer_norms",
        by=by,
        group_dim=group_dim,
        tokens=selection.counted(selected, "content"),
        component=component,
        interval=f"95%, bootstrap over {choice.name or 'samples'}",
        resamples=resamples,
        seed=seed,
        **choice.attrs,
    )
    return result


def layer_updates(
    cube: Cube,
    *,
    by: str | None = None,
    cluster: str | None = selection.AUTO,
    tokens: selection.TokenSelection = "content",
    resamples: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """Summarise the updates between adjacent layers: how much each token's vector changes.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    by, cluster, tokens, resamples, seed
        As for :func:`layer_norms`.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, or ``(language, by, layer)``; ``layer`` is the lower of the two. Means
        over content tokens of ``update_norm``, the norm of the difference; ``relative``, that norm over the
        norm of the lower layer; and ``cosine`` of the two vectors. Each has a 95% bootstrap interval, such as
        ``cosine_low`` to ``cosine_high``.

    Raises
    ------
    InputError, MissingError
        If the label does not exist, or the cube has no `residual` or only one layer.
    """
    selection.check_counts(resamples=resamples)
    cube = select_tokens(finite_cube(cube), tokens)
    selection.require(cube, "residual")
    available = selection.captured(cube)
    choice = selection.cluster_choice(available, cluster, by)
    if available.sizes["layer"] < 2:
        raise MissingError("the cube has one layer, and layers are compared; select or extract several")
    cluster_ids = _cluster_ids(available, choice)
    mask, result = selection.token_mask(available), xr.Dataset()
    sizes = {"measure": 3, "layer": available.sizes["layer"] - 1, "token": mask.sizes["token"]}
    residual = available.residual.transpose("layer", "sample", "token", "hidden")
    measures = apply_to_samples(partial(_updates, n_tokens=sizes["token"]), residual, mask, sizes)
    measures = measures.transpose("measure", "layer", "sample", "token")
    measures = measures.assign_coords(layer=available.layer.values[:-1])
    outputs = (checked(measures[0].rename("update_norm"), mask), *measures[1:])
    for name, values in zip(("update_norm", "relative", "cosine"), outputs, strict=True):
        summary = _summarize(available, values, mask, by, cluster_ids, resamples, seed)
        result[name] = summary["mean"]
        result[f"{name}_low"], result[f"{name}_high"] = summary["low"], summary["high"]
    result["n_tokens"] = summary["n_tokens"]
    result, group_dim = _name_groups(result, by)
    result.attrs = selection.settings(
        available,
        "layer_updates",
        by=by,
        group_dim=group_dim,
        tokens=selection.counted(available, "content"),
        interval=f"95%, bootstrap over {choice.name or 'samples'}",
        resamples=resamples,
        seed=seed,
        **choice.attrs,
    )
    return result


def massive_activations(cube: Cube, *, tokens: selection.TokenSelection = "content") -> xr.Dataset:
    """Find the largest activation of each layer and its ratio to the median, and count massive activations.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    tokens
        Tokens included, as for :func:`layer_norms`; massive activations often occur at the ``first`` one.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``max`` of the absolute values, ``median`` (of the medians of the
        samples), ``ratio`` of the two, and the location of the maximum: ``at_sample``, ``at_token``,
        ``at_hidden``. ``n_massive`` is the number of massive activations as Sun et al. define them, whose
        absolute value is above 100 and above 1,000 times the median of the tokens included of its sample;
        ``n_massive_samples`` is the number of samples with one.

    Raises
    ------
    InputError, MissingError
        If the kind of token does not exist, or the cube has no `residual`.

    Notes
    -----
    Sun, Chen, Kolter, Liu, Massive activations in large language models, 2024, arXiv:2402.17762.
    """
    cube = select_tokens(finite_cube(cube), tokens)
    selection.require(cube, "residual")
    available = selection.captured(cube)
    mask = selection.token_mask(available)
    residual = available.residual.transpose("layer", "sample", "token", "hidden")
    values = apply_to_samples(_largest, residual, mask, {"summary": 5, "layer": available.sizes["layer"]})
    values = values.assign_coords(layer=available.layer.values).transpose("summary", "layer", "sample")
    largest_value, median, token, hidden, n_massive = values
    largest_value = checked(largest_value.rename("residual"), mask.any("token"))

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        arrays = (largest_value, median, token, hidden, n_massive)
        part = [array.isel(sample=samples) for array in arrays]
        core = [["sample"]] * 5
        outputs = selection.apply(
            partial(_where_largest, samples=available.sample.values[samples], tokens=available.token.values),
            *part,
            core=core,
            out=[[]] * 7,
        )
        names = ("max", "median", "at_sample", "at_token", "at_hidden", "n_massive", "n_massive_samples")
        return xr.Dataset(dict(zip(names, outputs, strict=True)))

    result = selection.by_language(available, summarize)
    result["ratio"] = result["max"] / result["median"]
    result.attrs = selection.settings(
        available, "massive_activations", tokens=selection.counted(available, "content")
    )
    return result


def _cluster_ids(cube: xr.Dataset, choice: ClusterChoice) -> np.ndarray | None:
    return None if choice.name is None else selection.clusters(cube, choice.name)


def _norms(cube: xr.Dataset, component: Component) -> tuple[xr.Dataset, xr.DataArray]:
    width = cube.attrs.get(WIDTH)
    is_subset = cube.sizes.get("hidden", width) != (width or cube.sizes.get("hidden"))
    if component == "residual" and not is_subset:  # `norm` is that of all dimensions
        selection.require(cube, "norm")
        return cube, cube.norm
    selection.require(cube, component)
    available = selection.captured(cube, component)
    mask = selection.token_mask(available)
    sizes = {"layer": available.sizes["layer"], "token": mask.sizes["token"]}
    array = available[component].transpose("layer", "sample", "token", "hidden")
    norms = apply_to_samples(partial(_lengths, n_tokens=sizes["token"]), array, mask, sizes)
    return available, norms.transpose("layer", "sample", "token").assign_coords(layer=available.layer.values)


def _updates(layers: Iterator[np.ndarray], mask: np.ndarray, *, n_tokens: int) -> np.ndarray:
    """Return the measures of updates between adjacent layers, dims ``(sample, measure, layer, token)``."""
    measures = [updates(*pair, mask) for pair in pairwise(layers)]
    return _padded(np.array(measures).transpose(2, 1, 0, 3), n_tokens)


def _largest(layers: Iterator[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return the summaries of the largest activations, dims ``(sample, summary, layer)``."""
    summaries = [largest(layer[None], mask) for layer in layers]
    return np.concatenate(summaries, axis=1).transpose(2, 0, 1)


def _lengths(layers: Iterator[np.ndarray], mask: np.ndarray, *, n_tokens: int) -> np.ndarray:
    """Return the norms of tokens, dims ``(sample, layer, token)``."""
    norms = [np.where(mask, *lengths(layer), np.nan) for layer in layers]
    return _padded(np.stack(norms, axis=1), n_tokens)


def _padded(values: np.ndarray, n_tokens: int) -> np.ndarray:
    """Return values with the last dimension extended by NaN."""
    result = np.full((*values.shape[:-1], n_tokens), np.nan)
    result[..., : values.shape[-1]] = values
    return result


def _summarize(
    cube: xr.Dataset,
    norms: xr.DataArray,
    mask: xr.DataArray,
    by: str | None,
    cluster_ids: np.ndarray | None,
    resamples: int,
    seed: int,
) -> xr.Dataset:
    groups = None if by is None else selection.column(cube, by, "by")
    if groups is not None and not len(groups.values):
        raise InputError([Fault("by", f"no sample has a value of `{by}`", "choose another label")])
    core, out = [["layer", "sample", "token"], ["sample", "token"]], [["layer", "summary"]]

    empty = xr.DataArray(empty_summary(norms.sizes["layer"]), dims=["layer", "summary"])

    def summary_table(samples: np.ndarray) -> xr.DataArray:
        part = norms.isel(sample=samples), mask.isel(sample=samples)
        members = None if cluster_ids is None else cluster_ids[samples]
        kernel = partial(summarize_norms, clusters=members, resamples=resamples, seed=seed)
        (table,) = selection.apply(
            lambda *arrays: (kernel(*arrays),),
            *part,
            core=core,
            out=out,
            sizes={"summary": len(NORM_SUMMARIES)},
            each=False,
        )
        return table

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        if groups is None:
            table = summary_table(samples)
        else:
            by_group = [samples[groups.codes[samples] == code] for code in range(len(groups.values))]
            tables = [summary_table(members) if len(members) else empty for members in by_group]
            table = xr.concat(tables, xr.Variable(_GROUP, groups.values))
        return xr.Dataset({name: table.isel(summary=i) for i, name in enumerate(NORM_SUMMARIES)})

    return selection.by_language(cube, summarize).assign_coords(layer=norms.layer.values)


def _name_groups(result: xr.Dataset, by: str | None) -> tuple[xr.Dataset, str | None]:
    """Name the group dimension after its label, or a variant that the result does not use."""
    if by is None:
        return result, None
    name = selection.free_name(by, {*result.variables, *result.dims} - {_GROUP})
    return result.rename({_GROUP: name}), name


def _where_largest(
    maxima: np.ndarray,
    medians: np.ndarray,
    token_positions: np.ndarray,
    hidden_indices: np.ndarray,
    n_massive: np.ndarray,
    *,
    samples: np.ndarray,
    tokens: np.ndarray,
) -> tuple[Any, ...]:
    if np.isnan(maxima).all():
        return (np.nan,) * 7
    sample = int(np.nanargmax(maxima))
    return (
        maxima[sample],
        np.nanmedian(medians),
        samples[sample],
        tokens[int(token_positions[sample])],
        hidden_indices[sample],
        np.nansum(n_massive),
        np.nansum(n_massive > 0),
    )
