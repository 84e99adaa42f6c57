"""Group differentials: probe AUROC, effect sizes and directions by layer, with text-only baselines."""

from functools import partial
from typing import Any

import dask.base
import numpy as np
import xarray as xr

from ..canonical import Cube
from . import selection
from .finiteness import finite_cube
from .group_comparison import Contrast, contrasts_of, cut_folds
from .kernels import contrasts, probes

_SUMMARIES = ("auroc", "auroc_sd", "balanced_accuracy", "squared_smd", "squared_smd_se", "ridge")
_CORE = [["sample", "hidden"]]


def group_differential(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    folds: int = 5,
    seeds: int = 3,
    permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how separable two groups of samples are at each layer, with baselines and permutation tests.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by
        The label column that defines the groups, such as ``gender``.
    cluster
        The label that dependent samples share, such as a scene or a template, which are never split between
        training and test; by default detected (:func:`~actkit.stats.selection.cluster_choice`). None if all
        samples are independent.
    between
        Two values of ``by``, the reference first, as values or text; by default, its only two values in
        ascending order. Samples without a value are excluded.
    vectors
        ``pooled`` or ``last``.
    folds, seeds
        Number of cross-validation folds, and of repetitions with different seeds.
    permutations
        Number of label permutations, which respect ``cluster``.
    seed
        Random seed of the permutations.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``:

        - ``auroc`` of a linear probe, its standard deviation ``auroc_sd`` over folds and seeds, and
          ``balanced_accuracy``;
        - ``p``, the max-T permutation p-value, corrected over layers, and ``auroc_bound``, the 95% quantile
          of the permuted maximum over layers; both for a least-squares probe, whose AUROC is ``auroc_ridge``;
        - ``squared_smd``, the squared standardized mean difference over all dimensions, bias-corrected: the
          squared distance between the means, minus its expectation under no difference, over the total
          within-group variance (in one dimension, Cohen's d squared); ``squared_smd_se`` (jackknife),
          ``squared_smd_low`` and ``squared_smd_high`` (95% interval);
        - with ``hidden``: ``direction``, the difference between the means (second label minus first) scaled
          to length 1, and ``d``, Cohen's d; ``d_bound``, the 95% quantile of the permuted maximum of ``|d|``
          over dimensions and layers.

        With dims ``(language,)``, baselines without the model's layers: ``auroc_embedding`` (input of the
        first block; NaN if a selection dropped tokens), ``auroc_tfidf`` (characters of the text),
        ``auroc_length`` (number of tokens); and the group sizes ``n_<label>``. Lazy if the cube is.

    Raises
    ------
    InputError
        If a label is missing, has fewer than 10 samples, or occurs in too few clusters for the folds.

    Warns
    -----
    UserWarning
        If there are too few clusters for a small p-value, or some folds lack a label.

    Notes
    -----
    Max-T: Westfall, Young, Resampling-based multiple testing, Wiley 1993. docs/decisions/0022 explains why
    the permutations use a separate probe.
    """
    selection.check_counts(seeds=seeds, permutations=permutations)
    selection.check_counts(2, folds=folds)
    whole = finite_cube(cube)
    selection.require(whole, "text", "n_tokens")
    array = selection.vectors(whole, vectors)
    choice = selection.cluster_choice(array, cluster, by)
    names, group_contrasts = contrasts_of(array, by=by, cluster=choice.name, between=between, folds=folds)
    embedding = _embedding(whole, vectors)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        contrast = group_contrasts[language]
        splits = cut_folds(language, contrast.labels, contrast.groups, folds, seeds)
        permuted = contrasts.permuted(contrast.labels, contrast.groups, permutations, seed=seed)
        kernel = partial(
            _layer_statistics, contrast=contrast, folds=splits, n_folds=folds, permuted=permuted, seed=seed
        )
        part = array.isel(sample=contrast.places)
        out: list[list[str]] = [[]] * len(_SUMMARIES) + [["draw"]] * 2 + [["hidden"]] * 2
        *single, ridge, largest, direction, d = selection.apply(
            kernel, part, core=_CORE, out=out, sizes={"draw": permutations}
        )
        result = xr.Dataset(dict(zip(_SUMMARIES, single, strict=True))).rename(ridge="auroc_ridge")
        null_maxima = ridge.max("layer")
        n_exceeding = (null_maxima >= result.auroc_ridge).sum("draw")
        result["p"] = ((1 + n_exceeding) / (1 + permutations)).where(result.auroc_ridge.notnull())
        result["auroc_bound"], result["d_bound"] = (
            _null_quantile(null_maxima),
            _null_quantile(largest.max("layer")),
        )
        result["squared_smd_low"] = result.squared_smd - selection.Z95 * result.squared_smd_se
        result["squared_smd_high"] = result.squared_smd + selection.Z95 * result.squared_smd_se
        result["direction"], result["d"] = direction, d
        first_seed = splits[:folds]
        result = result.merge(_baselines(array, embedding, contrast, first_seed))
        counts = {f"n_{names[0]}": (~contrast.labels).sum(), f"n_{names[1]}": contrast.labels.sum()}
        return result.assign({name: int(count) for name, count in counts.items()})

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    result.attrs = selection.settings(
        array,
        "group_differential",
        by=by,
        between=" to ".join(names),
        vectors=vectors,
        folds=folds,
        seeds=seeds,
        permutations=permutations,
        seed=seed,
        **choice.attrs,
    )
    return result


def _layer_statistics(
    x: np.ndarray,
    *,
    contrast: Contrast,
    folds: list[probes.Fold],
    n_folds: int,
    permuted: np.ndarray,
    seed: int,
) -> tuple[float | np.ndarray, ...]:
    """Return the `_SUMMARIES`, the permutation draws, the direction and Cohen's d of one layer."""
    if not np.isfinite(x).all():
        undefined = np.full(len(permuted), np.nan)
        return (*[np.nan] * len(_SUMMARIES), undefined, undefined, *np.full((2, x.shape[1]), np.nan))
    is_second, groups = contrast.labels, contrast.groups if contrast.is_grouped else None
    auroc, accuracy = probes.probe(x, is_second, folds)
    ridge = probes.ridge_scores(x, np.vstack([is_second, permuted]), folds[:n_folds])
    difference = contrasts.contrast(is_second) @ x.astype(np.float64)
    norm = np.linalg.norm(difference)
    return (
        auroc.mean(),
        auroc.std(ddof=1),
        accuracy.mean(),
        contrasts.squared_smd(x, is_second, groups),
        contrasts.squared_smd_error(x, is_second, groups, seed=seed),
        ridge[0],
        ridge[1:],
        contrasts.largest_d(x, permuted),
        difference / norm if norm > 0 else np.full(len(difference), np.nan),
        contrasts.cohens_d(x, is_second),
    )


def _null_quantile(draws: xr.DataArray) -> xr.DataArray:
    """Return the 95% quantile of the draws."""
    (bound,) = selection.apply(lambda x: (np.quantile(x, 0.95),), draws, core=[["draw"]], out=[[]])
    return bound


def _embedding(cube: xr.Dataset, vectors: selection.Pooling) -> xr.DataArray | None:
    """Return the mean input of the first block over content tokens, dims ``(sample, hidden)``."""
    part = cube.isel(sample=np.flatnonzero(selection.with_vectors(cube, vectors)))
    if "embedding" not in cube or not selection.holds_all_tokens(part).all():
        return None
    mask = selection.token_mask(part)
    core = [["token", "hidden"], ["token"]]
    (means,) = selection.apply(_means, part.embedding, mask, core=core, out=[["hidden"]], each=False)
    return means


def _means(x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray]:
    return (
        np.stack(
            [rows[included].mean(axis=0, dtype=np.float64) for rows, included in zip(x, mask, strict=True)]
        ),
    )


def _baselines(
    array: xr.DataArray,
    embedding: xr.DataArray | None,
    contrast: Contrast,
    folds: list[probes.Fold],
) -> xr.Dataset:
    """Return the AUROC of baselines that do not use the layers: text, length and embedding."""
    part = array.isel(sample=contrast.places)
    texts, lengths = part.text.variable, part.n_tokens.variable.astype(np.float64)
    inputs = [xr.DataArray(texts), xr.DataArray(lengths)]
    if dask.base.is_dask_collection(array):
        inputs = [array.chunk() for array in inputs]
    is_second = contrast.labels

    def text_auroc(texts: np.ndarray) -> tuple[float]:
        return (probes.probe_texts([str(text) for text in texts], is_second, folds)[0].mean(),)

    def vector_auroc(x: np.ndarray) -> tuple[float]:
        return (probes.probe(x.reshape(len(is_second), -1), is_second, folds)[0].mean(),)

    result = xr.Dataset()
    (result["auroc_tfidf"],) = selection.apply(text_auroc, inputs[0], core=[["sample"]], out=[[]])
    (result["auroc_length"],) = selection.apply(vector_auroc, inputs[1], core=[["sample"]], out=[[]])
    result["auroc_embedding"] = xr.DataArray(np.nan)
    if embedding is not None:
        chosen = embedding.isel(sample=contrast.places)
        (result["auroc_embedding"],) = selection.apply(vector_auroc, chosen, core=_CORE, out=[[]])
    return result
