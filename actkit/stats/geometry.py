"""Geometry of representations by language and layer: intrinsic dimension and anisotropy."""

from functools import partial

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .kernels.geometry import cosine_means, two_nn
from .representatives import independence, representatives
from .token_selection import select_tokens

_CORE = [["sample", "hidden"]]
_MEANS = ("between", "within", "corrected")


def intrinsic_dimension(
    cube: Cube,
    *,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
    fraction: float = 0.9,
    splits: int = 15,
    seed: int = 0,
) -> xr.Dataset:
    """Estimate the intrinsic dimension of the vectors of each layer: TwoNN.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these vectors represent, as for :func:`adjacent_cka`.
    cluster
        A label that dependent samples share, such as twins, which are each other's nearest neighbours;
        ``auto`` detects it, and None treats samples as independent. One sample of each cluster, drawn at
        random, is used.
    fraction
        Share of the samples that is fitted; those with the largest ratios of distances are left out.
    splits
        Number of random splits into quarters, from which the standard error is estimated.
    seed
        Random seed of the samples of the clusters and of the splits.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``dimension`` with its standard error ``se`` and 95% interval ``low`` to
        ``high``; ``n``, the number of distinct vectors, and ``n_repeated``, the number of vectors left
        out because they equal another to within a millionth of the overall scale. NaN with fewer than 20
        distinct vectors; the interval with fewer than 40. Lazy if the cube is.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data, or ``fraction`` is not between 0 and 1.

    Notes
    -----
    Facco, d'Errico, Rodriguez, Laio, Scientific Reports 2017. The interval is that of the random group
    method, because a jackknife would nearly double it (docs/methods/geometry.md).

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> result = intrinsic_dimension(open_cube(write_cube(n_samples=200, hidden=3)))
    >>> bool((abs(result.dimension - 3) < 3 * result.se).all())
    True
    """
    selection.check_counts(splits=splits)
    if not 0 < fraction < 1:
        raise InputError([Fault("fraction", f"is {fraction}", "give a number between 0 and 1, such as 0.9")])
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    choice = selection.cluster_choice(array, cluster)
    cluster_ids = None if choice.name is None else selection.clusters(array, choice.name)
    kernel = partial(two_nn, fraction=fraction, splits=splits, seed=seed)

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        if cluster_ids is not None:
            samples = samples[representatives(selection.codes(cluster_ids[samples]), seed)]
        outputs = selection.apply(kernel, array.isel(sample=samples), core=_CORE, out=[[]] * 4)
        return xr.Dataset(dict(zip(("dimension", "se", "n", "n_repeated"), outputs, strict=True)))

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    result["low"] = result.dimension - selection.Z95 * result.se
    result["high"] = result.dimension + selection.Z95 * result.se
    result.attrs = selection.settings(
        array,
        "intrinsic_dimension",
        vectors=vectors,
        estimator="TwoNN",
        fraction=fraction,
        **choice.attrs,
        independence=independence(choice.name, seed),
        interval="95%, random groups",
        splits=splits,
        seed=seed,
    )
    return result


def anisotropy(
    cube: Cube,
    *,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
) -> xr.Dataset:
    """Return the mean cosine between vectors of different clusters, and its excess within clusters.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these vectors represent, as for :func:`adjacent_cka`.
    cluster
        A label that dependent samples share, such as twins or the versions of a sentence; ``auto`` detects
        it. With None, every sample is a cluster, and ``within`` is undefined.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``between``, the mean cosine between vectors of different clusters, which
        is 0 if directions are used uniformly; ``within``, that between vectors of the same cluster; and
        ``corrected``, their difference. Each has a 95% interval, such as ``between_low`` to ``between_high``.
        Clusters weigh equally. With dims ``(language,)``, ``n`` samples and ``n_clusters``. Lazy if the cube
        is.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data.

    Notes
    -----
    Ethayarajh, How contextual are contextualized word representations?, EMNLP 2019. All pairs are included,
    in closed form; the intervals are those of a jackknife over clusters.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> result = anisotropy(open_cube(write_cube(n_samples=200)))
    >>> bool(abs(result.between).max() < 0.05)  # directions of the synthetic cube are uniform
    True
    """
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    choice = selection.cluster_choice(array, cluster)
    cluster_ids = None if choice.name is None else selection.clusters(array, choice.name)

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        groups = np.arange(len(samples)) if cluster_ids is None else selection.codes(cluster_ids[samples])

        def kernel(x: np.ndarray) -> tuple[float, ...]:
            return tuple(number for cosine in cosine_means(x, groups) for number in cosine)

        outputs = selection.apply(kernel, array.isel(sample=samples), core=_CORE, out=[[]] * 2 * len(_MEANS))
        result = xr.Dataset()
        for name, mean, se in zip(_MEANS, outputs[::2], outputs[1::2], strict=True):
            result[name] = mean
            result[f"{name}_low"], result[f"{name}_high"] = (
                mean - selection.Z95 * se,
                mean + selection.Z95 * se,
            )
        return result.assign(n=len(samples), n_clusters=len(np.unique(groups)))

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    result.attrs = selection.settings(
        array,
        "anisotropy",
        vectors=vectors,
        **choice.attrs,
        interval=f"95%, jackknife over {choice.name or 'samples'}",
    )
    return result
