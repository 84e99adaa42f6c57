"""Token-level CKA of adjacent layers, computed block by block in bounded memory."""

from collections.abc import Sequence
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import MissingError
from . import selection
from .finiteness import check_values, checked
from .kernels.moments import Crossing
from .lazy_blocks import Block, slabs, spans


def sampled_tokens(cube: xr.Dataset, most: int, seed: int) -> xr.DataArray:
    """Draw content tokens of each language at random, dims ``(layer, sample, hidden)``, one token per sample.

    The coordinate ``drawn_from`` holds the index of the sample that each token belongs to.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    most
        Maximum number of tokens per language.
    seed
        Random seed; the draw does not depend on the order of samples.
    """
    selection.require(cube, "residual")
    available = selection.captured(cube)
    mask = selection.token_mask(available).values
    selection.has_content(available, mask)
    rng = np.random.default_rng(seed)
    chosen = []
    for _, samples in selection.languages(available):
        candidates = np.argwhere(mask[samples])
        drawn = candidates[np.sort(rng.permutation(len(candidates))[:most])]
        chosen.append(np.column_stack([samples[drawn[:, 0]], drawn[:, 1]]))
    sample, token = np.concatenate(chosen).T
    kept = [
        name for name, coord in available.coords.items() if coord.dims == ("sample",) and name != "sample"
    ]
    picked = available.residual.drop_vars([name for name in available.coords if name not in (*kept, "layer")])
    picked = picked.isel(sample=xr.DataArray(sample, dims="picked"), token=xr.DataArray(token, dims="picked"))
    tokens: xr.DataArray = (
        picked.rename(picked="sample")
        .transpose("layer", "sample", "hidden")
        .assign_coords(sample=np.arange(len(sample)), drawn_from=("sample", sample))
        .assign_attrs(available.attrs)
    )
    return checked(tokens)


def token_cka(cube: xr.Dataset, cluster: str | None = None) -> xr.Dataset:
    """Return the debiased CKA of adjacent layers over all content tokens.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    cluster
        A label; samples that share its value are not independent.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``cka``, ``se``; ``n``, the number of tokens, has dims ``(language,)``.

    Notes
    -----
    In feature space, the unbiased HSIC depends only on sums, which are merged over blocks. The standard error
    is the infinitesimal jackknife (Efron, The jackknife, the bootstrap and other resampling plans, SIAM 1982)
    over samples or clusters, for which tokens are read a second time. One pass serves all languages.
    """
    selection.require(cube, "residual")
    available = selection.captured(cube)
    if available.sizes["layer"] < 2:
        raise MissingError("the cube has one layer, and layers are compared; select or extract several")
    has = selection.has_content(available, selection.token_mask(available).values)
    available = available if has.all() else available.isel(sample=np.flatnonzero(has))
    residual = available.residual.transpose("layer", "sample", "token", "hidden")
    is_lazy = dask.base.is_dask_collection(residual)
    cluster_ids = None if cluster is None else selection.clusters(available, cluster)
    mask, languages = selection.token_mask(available).values, list(selection.languages(available))
    names = np.arange(available.sizes["sample"]) if cluster_ids is None else selection.codes(cluster_ids)
    masks_and_clusters = []
    for _, samples in languages:
        included = np.zeros(mask.shape, dtype=bool)
        included[samples] = mask[samples]
        members = np.zeros(len(names), dtype=np.int64)
        members[samples] = selection.codes(names[samples])
        masks_and_clusters.append((included, members))
    cka, se = _adjacent(residual, masks_and_clusters)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        number = [name for name, _ in languages].index(language)
        n_tokens = int(masks_and_clusters[number][0].sum())
        return xr.Dataset({"cka": ("layer", cka[:, number]), "se": ("layer", se[:, number]), "n": n_tokens})

    result = selection.by_language(available, summarize).assign_coords(layer=available.layer.values[:-1])
    return result if is_lazy else result.compute()


def _adjacent(
    residual: xr.DataArray, languages: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[da.Array, da.Array]:
    """Return CKA and its standard error for adjacent layers, dims ``(layer, language)``."""
    n_layers = residual.sizes["layer"]
    slices = spans(residual)
    masks = [[mask[span] for mask, _ in languages] for span in slices]
    clusters = [[members[span] for _, members in languages] for span in slices]
    zeros = [np.zeros((2, int(members.max()) + 1)) for _, members in languages]
    merge, add_influences, cka_and_error, part = (
        delayed(function, pure=False) for function in (_merge, _add_influences, _cka_and_error, _part)
    )
    totals, influences = [], []
    for layer in range(n_layers):
        pair = range(layer, min(layer + 2, n_layers))
        blocks = [[Block(residual[index, span]) for index in pair] for span in slices]
        total: Any = None
        for block, mask in zip(blocks, masks, strict=True):
            total = merge(total, block, mask)
        influence: Any = zeros
        for block, mask, members in zip(blocks, masks, clusters, strict=True):
            influence = add_influences(influence, block, mask, members, total)
        totals.append(total)
        influences.append(influence)
    results = [
        cka_and_error(totals[layer : layer + 2], influences[layer : layer + 2])
        for layer in range(n_layers - 1)
    ]
    shape = (len(languages),)
    cka, se = (
        da.stack(  # type: ignore[no-untyped-call]
            [da.from_delayed(part(pair, number), shape, np.float64) for pair in results]  # type: ignore[no-untyped-call]
        )
        for number in (0, 1)
    )
    return cka, se


Sums = list[list[Crossing]]  # by language: a layer with itself, and with the next one


def _merge(total: Sums | None, blocks: Sequence[Block], masks: Sequence[np.ndarray]) -> Sums:
    values = [block.read() for block in blocks]
    merged = []
    for language, mask in enumerate(masks):
        sums = [] if total is None else total[language]
        for rows in slabs(values[0]):
            tokens = [array[rows][mask[rows]] for array in values]
            check_values(np.stack(tokens), "residual")
            block_sums = [Crossing.of(tokens[0], other) for other in tokens]
            pairs = zip(sums, block_sums, strict=True)
            sums = [before.merge(after) for before, after in pairs] if sums else block_sums
        merged.append(sums)
    return merged


def _add_influences(
    influences: Sequence[np.ndarray],
    blocks: Sequence[Block],
    masks: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    totals: Sums,
) -> list[np.ndarray]:
    """Add each cluster's influence on the unbiased HSIC, up to a factor; dims ``(2, group)`` by language."""
    values = [block.read() for block in blocks]
    updated = [before.copy() for before in influences]
    for sums, mask, clusters, total in zip(updated, masks, members, totals, strict=True):
        for rows in slabs(values[0]):
            tokens = [array[rows][mask[rows]] for array in values]
            cluster_of = np.repeat(clusters[rows], mask[rows].sum(axis=1))
            for row, (other, crossing) in enumerate(zip(tokens, total, strict=True)):
                x, y = crossing.centred(tokens[0], 0), crossing.centred(other, 1)
                influence = np.einsum("th,th->t", x @ crossing.scatter, y)
                influence -= np.square(x).sum(axis=1) * np.square(y).sum(axis=1)
                sums[row] += np.bincount(cluster_of, weights=influence, minlength=sums.shape[1])
    return updated


def _cka_and_error(
    totals: Sequence[Sums], influences: Sequence[Sequence[np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return CKA and its delta-method standard error, dims ``(language,)``."""
    results = []
    for language, (lower, upper) in enumerate(zip(*totals, strict=True)):
        hsic_lower, hsic_cross, hsic_upper = lower[0].hsic, lower[1].hsic, upper[0].hsic
        if not (hsic_lower > 0 and hsic_upper > 0):
            results.append((np.nan, np.nan))
            continue
        value = hsic_cross / np.sqrt(hsic_lower * hsic_upper)
        n, n_clusters = lower[0].n, influences[0][language].shape[1]
        d_lower, d_cross = 2 * influences[0][language] / (n * (n - 3))
        d_upper = 2 * influences[1][language][0] / (n * (n - 3))
        influence = d_cross / np.sqrt(hsic_lower * hsic_upper)
        influence -= value / 2 * (d_lower / hsic_lower + d_upper / hsic_upper)
        error = np.sqrt(n_clusters / max(n_clusters - 1, 1) * np.square(influence - influence.mean()).sum())
        results.append((value, error))
    cka, se = np.array(results).T
    return cka, se


def _part(values: tuple[np.ndarray, np.ndarray], number: int) -> np.ndarray:
    return values[number]
