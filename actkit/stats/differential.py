"""Where two groups of samples become separable, and by what else they could have been told apart."""

from functools import partial

import dask.base
import numpy as np
import xarray as xr

from . import parts
from .comparing import Contrast, contrasts_of, cut_folds
from .kernels import contrasts, probes

_SUMMARIES = ("auroc", "auroc_sd", "balanced_accuracy", "effect", "effect_se", "ridge")
_CORE = [["sample", "hidden"]]


def group_differential(
    cube: xr.Dataset,
    *,
    by: str = "gender",
    pairs: str | None = "image_id",
    labels: tuple[str, str] | None = None,
    values: str = "pooled",
    folds: int = 5,
    seeds: int = 3,
    permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Tell how far two groups of samples are apart, layer by layer, and what that proves.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by
        The label column that tells the groups, such as ``gender``.
    pairs
        The label column that samples share which are not independent (an image, a template, twins): they
        are never trained and tested on at once. None where each sample stands alone.
    labels
        Its two values, the reference first; by default the two that there are, in the order of the alphabet.
    values
        ``pooled`` or ``last``.
    folds, seeds
        The probe is cross-validated in so many folds, once for each seed.
    permutations
        How often labels are permuted, within what ``pairs`` leaves free.
    seed
        Of the permutations.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``:

        - ``auroc`` of a linear probe, ``auroc_sd`` over folds and seeds, ``balanced_accuracy``;
        - ``p``, the largest of all layers counted, and ``auroc_bound``, which 95% of the permutations
          stay below at every layer; both of a least-squares probe, whose AUROC is ``auroc_ridge``;
        - ``effect``, the squared distance of the means over the variance within the groups, without what
          chance adds, ``effect_se`` (jackknife), ``effect_low`` and ``effect_high`` (95%);
        - with ``hidden``: ``direction``, the difference of the means (second label less the first) at
          length 1, and ``d``, Cohen's d; ``d_bound``, which 95% of the permutations stay below anywhere.

        Of the language alone, what the text tells without the model: ``auroc_embedding`` (what enters the
        first block), ``auroc_tfidf`` (characters of the text), ``auroc_length``; ``n_<label>``. Computed
        when asked for.

    Raises
    ------
    InputError
        Where a label is missing, has fewer than 10 samples, or lies in too few groups for the folds.

    Warns
    -----
    UserWarning
        Where the permutations that there are allow no p below 0.05.

    Notes
    -----
    docs/decisions/0022 says why the permutations have a probe of their own.
    """
    own = parts.vectors(cube, values)
    names, found = contrasts_of(own, by=by, pairs=pairs, labels=labels, folds=folds)
    embedding = _embedding(cube, own)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        contrast = found[language]
        cut = cut_folds(language, contrast.labels, contrast.groups, folds, seeds)
        drawn = contrasts.permuted(contrast.labels, contrast.groups, permutations, seed=seed)
        kernel = partial(_differ, contrast=contrast, folds=cut, n_folds=folds, drawn=drawn, seed=seed)
        part = own.isel(sample=contrast.places)
        out: list[list[str]] = [[]] * len(_SUMMARIES) + [["draw"]] * 2 + [["hidden"]] * 2
        *single, ridge, largest, direction, d = parts.apply(
            kernel, part, core=_CORE, out=out, sizes={"draw": permutations}
        )
        result = xr.Dataset(dict(zip(_SUMMARIES, single, strict=True))).rename(ridge="auroc_ridge")
        null = ridge.max("layer")
        reached = (null >= result.auroc_ridge).sum("draw")
        result["p"] = ((1 + reached) / (1 + permutations)).where(result.auroc_ridge.notnull())
        result["auroc_bound"], result["d_bound"] = _most(null), _most(largest.max("layer"))
        result["effect_low"] = result.effect - 1.96 * result.effect_se
        result["effect_high"] = result.effect + 1.96 * result.effect_se
        result["direction"], result["d"] = direction, d
        once = cut[:folds]
        result = result.merge(_baselines(cube, own, embedding, contrast, once))
        counts = {f"n_{names[0]}": (~contrast.labels).sum(), f"n_{names[1]}": contrast.labels.sum()}
        return result.assign({name: int(count) for name, count in counts.items()})

    result = parts.by_language(own, summarize).assign_coords(layer=own.layer.values)
    result.attrs = parts.settings(
        own,
        "group_differential",
        by=by,
        labels=" to ".join(names),
        pairs=pairs,
        values=values,
        folds=folds,
        seeds=seeds,
        permutations=permutations,
        seed=seed,
    )
    return result


def _differ(
    x: np.ndarray,
    *,
    contrast: Contrast,
    folds: list[probes.Fold],
    n_folds: int,
    drawn: np.ndarray,
    seed: int,
) -> tuple[float | np.ndarray, ...]:
    """Return what is in `_SUMMARIES`, what permutations give, and the direction and Cohen's d."""
    if not np.isfinite(x).all():
        nothing = np.full(len(drawn), np.nan)
        return (*[np.nan] * len(_SUMMARIES), nothing, nothing, *np.full((2, x.shape[1]), np.nan))
    second, groups = contrast.labels, contrast.groups if contrast.is_grouped else None
    auroc, accuracy = probes.probe(x, second, folds)
    ridge = probes.ridge_scores(x, np.vstack([second, drawn]), folds[:n_folds])
    difference = contrasts.contrast(second) @ x.astype(np.float64)
    length = np.linalg.norm(difference)
    return (
        auroc.mean(),
        auroc.std(ddof=1),
        accuracy.mean(),
        contrasts.effect(x, second, groups),
        contrasts.effect_error(x, second, groups, seed=seed),
        ridge[0],
        ridge[1:],
        contrasts.largest_d(x, drawn),
        difference / length if length > 0 else np.full(len(difference), np.nan),
        contrasts.cohens_d(x, second),
    )


def _most(null: xr.DataArray) -> xr.DataArray:
    """Return what 95% of the draws stay below."""
    (bound,) = parts.apply(lambda x: (np.quantile(x, 0.95),), null, core=[["draw"]], out=[[]])
    return bound


def _embedding(cube: xr.Dataset, own: xr.DataArray) -> xr.DataArray | None:
    """Return the mean over content tokens of what enters the first block, dims ``(sample, hidden)``."""
    if "embedding" not in cube:
        return None
    part = cube.isel(sample=np.flatnonzero(np.isin(cube.sample.values, own.sample.values)))
    mask = parts.token_mask(part)
    core = [["token", "hidden"], ["token"]]
    (means,) = parts.apply(_means, part.embedding, mask, core=core, out=[["hidden"]], each=False)
    return means


def _means(x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray]:
    return (
        np.stack([rows[counts].mean(axis=0, dtype=np.float64) for rows, counts in zip(x, mask, strict=True)]),
    )


def _baselines(
    cube: xr.Dataset,
    own: xr.DataArray,
    embedding: xr.DataArray | None,
    contrast: Contrast,
    folds: list[probes.Fold],
) -> xr.Dataset:
    """Return what the labels can be told by without the model."""
    part = own.isel(sample=contrast.places)
    sample = part.sample.values
    words, lengths = part.text.variable, part.n_tokens.variable.astype(np.float64)
    inputs = [xr.DataArray(words), xr.DataArray(lengths)]
    if dask.base.is_dask_collection(own):
        inputs = [array.chunk() for array in inputs]
    second = contrast.labels

    def of_texts(texts: np.ndarray) -> tuple[float]:
        return (probes.probe_texts([str(text) for text in texts], second, folds)[0].mean(),)

    def of_vectors(x: np.ndarray) -> tuple[float]:
        return (probes.probe(x.reshape(len(second), -1), second, folds)[0].mean(),)

    result = xr.Dataset()
    (result["auroc_tfidf"],) = parts.apply(of_texts, inputs[0], core=[["sample"]], out=[[]])
    (result["auroc_length"],) = parts.apply(of_vectors, inputs[1], core=[["sample"]], out=[[]])
    result["auroc_embedding"] = xr.DataArray(np.nan)
    if embedding is not None:
        chosen = embedding.isel(sample=contrast.places)
        assert len(chosen.sample) == len(sample)
        (result["auroc_embedding"],) = parts.apply(of_vectors, chosen, core=_CORE, out=[[]])
    return result
