"""Cosines between group directions, across layers and across languages."""

from typing import Any

import dask.base
import numpy as np
import xarray as xr
from dask.graph_manipulation import bind

from ..canonical import Cube
from . import selection
from .finiteness import finite_cube
from .group_comparison import contrasts_of
from .kernels.layer_directions import LAYER_SUMMARIES, deletion_changes, layer_cosines
from .kernels.split_halves import (
    PAIR_SUMMARIES,
    RELIABILITIES,
    Cells,
    cluster_halves,
    deletion_weights,
    half_cosines,
)
from .token_selection import select_tokens

_UNDEFINED = (
    "NaN where a direction cannot be told from sampling noise, because the 95% interval of its reliability "
    "contains 0, or where the interval of the cosine contains every value from -1 to 1"
)
_LANGUAGES = {"cosine": "languages", "cosine_low": "languages_low", "cosine_high": "languages_high"}


def direction_cosines(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    splits: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Return cosines between the directions that separate two groups, across layers and across languages.

    The two directions of a cosine come from disjoint halves of the clusters, so they share no sampling noise:
    the cosine of unrelated directions is 0 on average, even between languages that translate the same samples
    and between adjacent layers.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by, cluster, between, vectors, tokens
        As for :func:`actkit.group_differential`. Without a cluster label, samples with the same ``sample_id``
        form a cluster.
    splits
        Number of random divisions of the clusters into halves, over which products are averaged.
    seed
        Random seed of the divisions.

    Returns
    -------
    xarray.Dataset
        Across languages, dims ``(language, language_2, layer)``: the cosine ``languages``; its ``ceiling``,
        the cosine that equal directions would have, given their reliabilities; and ``disattenuated``, the
        cosine over its ceiling, which estimates the cosine of the true directions. Within a language, dims
        ``(language, layer, layer_2)``: ``layers`` and ``layers_disattenuated``, correspondingly. With dims
        ``(language, layer)``: ``reliability``, the cosine between the directions of two halves. All but the
        ceiling have 95% intervals, such as ``disattenuated_low`` to ``disattenuated_high``. Lazy if the cube
        is.

        A ceiling or disattenuated cosine is NaN where the interval of a reliability contains 0; so is a
        disattenuated cosine whose interval contains every value from -1 to 1 (attribute ``undefined``).
        Otherwise, values and limits beyond -1 or 1 are set to -1 or 1.

    Raises
    ------
    InputError
        As for :func:`actkit.group_differential`.

    Warns
    -----
    UserWarning
        As for :func:`actkit.group_differential`.

    Notes
    -----
    Correction for attenuation: Spearman, The proof and measurement of association between two things,
    American Journal of Psychology 1904. Intervals: jackknife over clusters.
    """
    selection.check_counts(splits=splits)
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    choice = selection.cluster_choice(array, cluster, by)
    names, group_contrasts = contrasts_of(array, by=by, cluster=choice.name, between=between, folds=2)
    contrasts = list(group_contrasts.values())
    shared = selection.codes(np.concatenate([contrast.shared for contrast in contrasts]))
    ends = np.cumsum([len(contrast.places) for contrast in contrasts])
    cells = [
        Cells.of(np.arange(end - len(contrast.places), end), contrast.labels, clusters, int(shared.max()) + 1)
        for contrast, end, clusters in zip(contrasts, ends, np.split(shared, ends[:-1]), strict=True)
    ]
    halves = cluster_halves(cells, splits, seed=seed)
    chosen = array.isel(sample=np.concatenate([contrast.places for contrast in contrasts]))
    pairs, reliabilities, directions = selection.apply(
        lambda x: half_cosines(x, cells, halves),
        chosen,
        core=[["sample", "hidden"]],
        out=[
            ["pair", "language", "language_2"],
            ["summary", "language"],
            ["half", "split", "language", "hidden"],
        ],
        sizes={
            **{"pair": len(PAIR_SUMMARIES), "summary": len(RELIABILITIES), "half": 2, "split": splits},
            **dict.fromkeys(("language", "language_2"), len(cells)),
        },
    )
    result = xr.Dataset(
        {
            **{_LANGUAGES.get(name, name): pairs.isel(pair=at) for at, name in enumerate(PAIR_SUMMARIES)},
            **{name: reliabilities.isel(summary=at) for at, name in enumerate(RELIABILITIES)},
        }
    )
    result = result.merge(_layer_cosines(chosen, directions, result.reliability_low > 0, cells, halves))
    languages = np.array(list(group_contrasts), dtype=object)
    result = result.assign_coords(language=languages, language_2=languages, layer=array.layer.values)
    result = result.assign_coords(layer_2=array.layer.values)
    result = result.transpose("language", "language_2", "layer", "layer_2")
    for name in ("ceiling", "disattenuated", "layers_disattenuated"):
        result[name].attrs["undefined"] = _UNDEFINED
    result.attrs = selection.settings(
        array,
        "direction_cosines",
        by=by,
        between=" to ".join(names),
        vectors=vectors,
        splits=splits,
        seed=seed,
        interval=f"95%, jackknife over {choice.name or 'samples'}",
        undefined=_UNDEFINED,
        **choice.attrs,
    )
    return result


def _layer_cosines(
    vectors: xr.DataArray,
    directions: xr.DataArray,
    is_reliable: xr.DataArray,
    cells: list[Cells],
    halves: np.ndarray,
) -> xr.Dataset:
    """Return cosines between layers from directions of disjoint halves, with intervals.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``.
    directions
        Dims ``(layer, half, split, language, hidden)``.
    is_reliable
        Whether the direction differs from noise, dims ``(layer, language)``.
    cells
        Samples of each language.
    halves
        Dims ``(split, cluster)``.
    """
    if dask.base.is_dask_collection(vectors):  # read again rather than kept until all directions are known
        vectors = bind(vectors, directions)
    dims = ["half", "split", "language", "hidden"]
    changes, lengths = selection.apply(
        lambda x, d: deletion_changes(x, d, cells, halves),
        vectors,
        directions.rename(layer="layer_2"),
        core=[["sample", "hidden"], ["layer_2", *dims]],
        out=[["language", "layer_2", "cluster"], ["language", "cluster"]],
        sizes={"cluster": halves.shape[1]},
    )
    weights = xr.DataArray(
        np.stack([deletion_weights(part, halves) for part in cells]), dims=["language", "cluster", "split"]
    )
    (summaries,) = selection.apply(
        lambda *values: (layer_cosines(*values),),
        directions,
        changes,
        lengths,
        is_reliable,
        weights,
        core=[
            ["layer", "half", "split", "hidden"],
            ["layer", "layer_2", "cluster"],
            ["layer", "cluster"],
            ["layer"],
            ["cluster", "split"],
        ],
        out=[["summary", "layer", "layer_2"]],
        sizes={"summary": len(LAYER_SUMMARIES)},
    )
    return xr.Dataset({name: summaries.isel(summary=at) for at, name in enumerate(LAYER_SUMMARIES)})
