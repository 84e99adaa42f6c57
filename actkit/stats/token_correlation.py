"""Correlation of tokens between layers: of their vectors, or of a quantity such as the norm."""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import check_values, checked, finite_cube
from .kernels.token_correlation import (
    mean_with_error,
    pearson_correlations,
    spearman_correlations,
    vector_sums,
)
from .lazy_blocks import apply_to_samples
from .token_selection import select_tokens

VECTOR = "vector"
_MEASURES = {True: ("cosine", "pearson"), False: ("pearson", "spearman")}
_DIMS = ["layer", "layer_2"]


def token_correlation(
    cube: Cube,
    *,
    of: str = VECTOR,
    layers: Sequence[int] | None = None,
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
) -> xr.Dataset:
    """Correlate tokens between every pair of layers: their vectors, or their norms.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    of
        ``vector`` correlates the vectors of each token in two layers, and averages over tokens. ``norm``, or
        another variable of the cube with the dims ``(layer, sample, token)``, is correlated over tokens.
    layers
        Layers compared; all by default.
    tokens
        Tokens included, as for :func:`layer_norms`.
    cluster
        The label that dependent samples share; by default detected (see "Dependent samples" in the methods).
        With None, each text is a cluster of tokens.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer, layer_2)``. If ``of`` is ``vector``: the mean over tokens of ``cosine``, and
        of ``pearson``, the correlation over ``hidden``. Otherwise, ``pearson`` and ``spearman`` over tokens.
        Each has a 95% interval by cluster, such as ``pearson_low`` to ``pearson_high``. Tokens weigh equally;
        ``n_tokens`` and ``n_clusters`` have dims ``(language,)``. Lazy if the cube is.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data or a layer, or no sample has a content token.

    Notes
    -----
    A mean over tokens has the interval of a ratio of sums over clusters. A correlation over tokens has an
    interval on the scale of Fisher's z, with a jackknife over clusters for Pearson's and the influence of
    clusters for Spearman's (Croux and Dehon 2010). Vectors are read once, at all layers; memory grows with
    the number of samples times the square of the number of layers.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=40))
    >>> result = token_correlation(cube, of="norm").compute()
    >>> float(result.spearman.sel(language="english", layer=0, layer_2=0).round(6))
    1.0
    """
    is_vector = of == VECTOR
    available = selection.captured(selection.of_layers(select_tokens(finite_cube(cube), tokens), layers))
    selection.require(available, "residual" if is_vector else of)
    array = available["residual" if is_vector else of]
    wanted = ("layer", "sample", "token", *(["hidden"] if is_vector else []))
    if set(array.dims) != set(wanted):
        problem = f"`{of}` has the dims ({', '.join(map(str, array.dims))}), not (layer, sample, token)"
        raise InputError([Fault("of", problem, "name another variable, or `vector`")])
    mask = selection.token_mask(available)
    has = selection.has_content(available, mask.values)
    kept = {"sample": np.flatnonzero(has)}
    available, array, mask = available.isel(kept), array.isel(kept), mask.isel(kept)
    choice = selection.cluster_choice(available, cluster)
    by_sample = np.arange(len(mask)) if choice.name is None else selection.clusters(available, choice.name)
    array = array.transpose(*wanted)
    if is_vector:
        n_layers = array.sizes["layer"]
        sizes = {"measure": 2, "layer": n_layers, "layer_2": n_layers}
        values = apply_to_samples(_vector_sums, array, mask, sizes, layers_at_once=n_layers)
        values = values.transpose("measure", "sample", *_DIMS)
    else:
        values = checked(array, mask)
    names = [f"{name}{end}" for name in _MEASURES[is_vector] for end in ("", "_low", "_high")]

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        members, part = selection.codes(by_sample[samples]), mask.values[samples]
        kernel = partial(_of_vectors if is_vector else _of_scalars, mask=part, clusters=members)
        outputs = selection.apply(
            kernel,
            values.isel(sample=samples),
            core=[list(values.dims)],
            out=[_DIMS] * len(names),
            sizes={} if is_vector else {"layer_2": array.sizes["layer"]},
            each=False,
        )
        result = xr.Dataset(dict(zip(names, outputs, strict=True)))
        return result.assign(n_tokens=int(part.sum()), n_clusters=int(members.max()) + 1)

    result = selection.by_language(available, summarize)
    result = result.assign_coords(layer=available.layer.values, layer_2=available.layer.values)
    result.attrs = selection.settings(
        available,
        "token_correlation",
        of=of,
        tokens=selection.counted(available, "content"),
        interval=f"95%, by {choice.name or 'text'}",
        **choice.attrs,
    )
    return result


def _vector_sums(layers: Iterator[np.ndarray], mask: np.ndarray) -> np.ndarray:
    """Return sums over the tokens of each sample, dims ``(sample, measure, layer, layer_2)``."""
    # without padding, so that no more is held than what is added up
    tokens = np.stack([layer[mask] for layer in layers])
    check_values(tokens, "residual")
    ends = np.cumsum(mask.sum(axis=1))[:-1]
    return np.stack([vector_sums(part) for part in np.split(tokens, ends, axis=1)])


def _of_vectors(sums: np.ndarray, *, mask: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, ...]:
    tables = []
    for measure in sums:
        mean, error = mean_with_error(measure, mask.sum(axis=1), clusters)
        tables += [mean, mean - selection.Z95 * error, mean + selection.Z95 * error]
    return tuple(tables)


def _of_scalars(values: np.ndarray, *, mask: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, ...]:
    of_tokens = np.repeat(clusters, mask.sum(axis=1))
    correlations = (pearson_correlations, spearman_correlations)
    return tuple(table for correlate in correlations for table in correlate(values[:, mask], of_tokens))
