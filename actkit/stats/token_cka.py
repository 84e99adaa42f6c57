"""Token-level CKA of adjacent layers, computed block by block in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import MissingError
from . import lazy_blocks, selection
from .finiteness import check_values, checked
from .kernels.cka import standard_error
from .kernels.token_hsic import TokenSums
from .lazy_blocks import SLAB, Block


def sampled_tokens(cube: xr.Dataset, most: int, seed: int) -> xr.DataArray:
    """Draw content tokens of each language at random, dims ``(layer, sample, hidden)``, one token per sample.

    The coordinates ``drawn_from`` and ``drawn_at`` hold the indices of each token's sample and position.

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
        .assign_coords(sample=np.arange(len(sample)))
        .assign_coords(drawn_from=("sample", sample), drawn_at=("sample", token))
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
        A label; samples that share its value are not independent. By default, each text is a cluster.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``cka``, ``se``; ``n``, the number of tokens, has dims ``(language,)``.

    Notes
    -----
    Only tokens of different clusters are compared, and each cluster has the same weight. In feature space,
    that HSIC depends only on sums over clusters, which are merged over blocks of whole clusters; memory grows
    with the largest cluster. The standard error is the jackknife over clusters, for which tokens are read a
    second time. One pass serves all languages.
    """
    selection.require(cube, "residual")
    available = selection.captured(cube)
    if available.sizes["layer"] < 2:
        raise MissingError("the cube has one layer, and layers are compared; select or extract several")
    has = selection.has_content(available, selection.token_mask(available).values)
    available = available if has.all() else available.isel(sample=np.flatnonzero(has))
    residual = available.residual.transpose("layer", "sample", "token", "hidden")
    is_lazy = dask.base.is_dask_collection(residual)
    n_samples = available.sizes["sample"]
    cluster_ids = np.arange(n_samples) if cluster is None else selection.clusters(available, cluster)
    mask, languages = selection.token_mask(available).values, list(selection.languages(available))
    language_of = np.empty(n_samples, dtype=np.int64)
    for number, (_, samples) in enumerate(languages):
        language_of[samples] = number
    parts = _parts(residual, mask, language_of, cluster_ids)
    cka, se = _adjacent(residual, parts, len(languages))

    def summarize(language: str, samples: np.ndarray) -> xr.Dataset:
        number = [name for name, _ in languages].index(language)
        n_tokens = int(mask[samples].sum())
        return xr.Dataset({"cka": ("layer", cka[:, number]), "se": ("layer", se[:, number]), "n": n_tokens})

    result = selection.by_language(available, summarize).assign_coords(layer=available.layer.values[:-1])
    return result if is_lazy else result.compute()


@dataclass(frozen=True)
class _Part:
    """Whole clusters that are read at once, sorted by language and cluster.

    Parameters
    ----------
    samples
        Positions of the samples in the cube, ascending.
    order
        Order of these samples by cluster.
    mask
        Content tokens of the samples in that order, dims ``(sample, token)``.
    language, cluster
        Language and cluster of the samples in that order, dims ``(sample,)``.
    """

    samples: np.ndarray
    order: np.ndarray
    mask: np.ndarray
    language: np.ndarray
    cluster: np.ndarray

    @property
    def positions(self) -> np.ndarray | slice:
        """The samples, as a slice if they are contiguous."""
        first, last = int(self.samples[0]), int(self.samples[-1])
        return slice(first, last + 1) if last - first + 1 == len(self.samples) else self.samples

    def tokens(self, values: Sequence[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray], np.ndarray]]:
        """Yield languages with the tokens of some whole clusters, and the cluster of each token.

        Parameters
        ----------
        values
            Values of each layer, dims ``(sample, token, hidden)``, as read.
        """
        for slab in _spans(self.cluster, values[0].nbytes // max(len(values[0]), 1), SLAB):
            for language in np.unique(self.language[slab]):
                places = slab.start + np.flatnonzero(self.language[slab] == language)
                mask = self.mask[places]
                tokens = [array[self.order[places]][mask] for array in values]
                yield (
                    int(language),
                    tokens,
                    selection.codes(np.repeat(self.cluster[places], mask.sum(axis=1))),
                )


def _parts(
    residual: xr.DataArray, mask: np.ndarray, language: np.ndarray, cluster: np.ndarray
) -> list[_Part]:
    """Divide samples into parts of whole clusters, which differ between languages."""
    codes = np.unique(np.column_stack([language, cluster]), axis=0, return_inverse=True)[1].ravel()
    firsts = np.unique(codes, return_index=True)[1]
    rank = np.empty(len(firsts), dtype=np.int64)
    rank[np.argsort(firsts)] = np.arange(len(firsts))  # clusters in the order of the cube
    by_cluster = np.argsort(rank[codes], kind="stable")
    item_bytes = residual.dtype.itemsize * residual.sizes["token"] * residual.sizes["hidden"]
    parts = []
    for span in _spans(codes[by_cluster], item_bytes, lazy_blocks.READ):
        samples = by_cluster[span]
        order = np.argsort(np.argsort(samples))
        parts.append(_Part(np.sort(samples), order, mask[samples], language[samples], codes[samples]))
    return parts


def _spans(clusters: np.ndarray, item_bytes: int, max_bytes: int) -> list[slice]:
    """Divide sorted samples into slices of whole clusters, each as large as allowed or a single cluster."""
    most = max(max_bytes // max(item_bytes, 1), 1)
    edges = [0]
    *starts, end = [*np.flatnonzero(np.diff(clusters, prepend=-1)).tolist(), len(clusters)]
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        if stop - edges[-1] > most and start > edges[-1]:
            edges.append(start)
    return [slice(*pair) for pair in pairwise([*edges, end])]


def _adjacent(residual: xr.DataArray, parts: Sequence[_Part], n_languages: int) -> tuple[da.Array, da.Array]:
    """Return CKA and its standard error for adjacent layers, dims ``(layer, language)``."""
    n_layers = residual.sizes["layer"]
    merge, leave_out, cka_and_error, item = (
        delayed(function, pure=False) for function in (_merge, _leave_out, _cka_and_error, _item)
    )
    empty: list[Any] = [None] * n_languages
    totals, left_out = [], []
    for layer in range(n_layers):
        pair = range(layer, min(layer + 2, n_layers))
        blocks = [[Block(residual[index, part.positions]) for index in pair] for part in parts]
        total: Any = empty
        for block, part in zip(blocks, parts, strict=True):
            total = merge(total, block, part)
        totals.append(total)
        left_out.append([leave_out(block, part, total) for block, part in zip(blocks, parts, strict=True)])
    results = [
        cka_and_error(totals[layer : layer + 2], left_out[layer : layer + 2]) for layer in range(n_layers - 1)
    ]
    shape = (n_languages,)
    cka, se = (
        da.stack(  # type: ignore[no-untyped-call]
            [da.from_delayed(item(pair, number), shape, np.float64) for pair in results]  # type: ignore[no-untyped-call]
        )
        for number in (0, 1)
    )
    return cka, se


Sums = list[TokenSums]  # a layer with itself, and with the next one
Hsic = dict[int, list[np.ndarray]]  # by language, the HSIC without one cluster at a time, for the same pairs


def _merge(total: Sequence[Sums | None], blocks: Sequence[Block], part: _Part) -> list[Sums | None]:
    values = [block.read() for block in blocks]
    merged = list(total)
    for language, tokens, members in part.tokens(values):
        check_values(np.stack(tokens), "residual")
        before = merged[language]
        if before is None:
            merged[language] = [TokenSums.of((tokens[0], other), members) for other in tokens]
        else:
            merged[language] = [
                sums.merge(TokenSums.of((tokens[0], other), members, like=sums))
                for sums, other in zip(before, tokens, strict=True)
            ]
    return merged


def _leave_out(blocks: Sequence[Block], part: _Part, totals: Sequence[Sums]) -> Hsic:
    """Return the HSIC without each of the clusters of a part."""
    values = [block.read() for block in blocks]
    result: Hsic = {}
    for language, tokens, members in part.tokens(values):
        hsic = [
            sums.hsic_without((tokens[0], other), members)
            for sums, other in zip(totals[language], tokens, strict=True)
        ]
        before = result.get(language)
        result[language] = (
            hsic if before is None else [np.append(*pair) for pair in zip(before, hsic, strict=True)]
        )
    return result


def _cka_and_error(
    totals: Sequence[Sequence[Sums]], left_out: Sequence[Sequence[Hsic]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return CKA and its jackknife standard error, dims ``(language,)``."""
    results = []
    for language, (lower, upper) in enumerate(zip(*totals, strict=True)):
        without_lower, without_cross = _joined(left_out[0], language)[:2]
        without_upper = _joined(left_out[1], language)[0]
        value = _ratio(lower[1].hsic(), lower[0].hsic(), upper[0].hsic())
        estimates = _ratio(without_cross, without_lower, without_upper)
        results.append((float(value), standard_error(estimates).item()))
    cka, se = np.array(results).T
    return cka, se


def _joined(parts: Sequence[Hsic], language: int) -> list[np.ndarray]:
    having = [part[language] for part in parts if language in part]
    return [np.concatenate(arrays) for arrays in zip(*having, strict=True)]


def _ratio(cross: Any, first: Any, second: Any) -> np.ndarray:
    """Return CKA from three values of the HSIC; NaN where it is undefined."""
    cross, first, second = np.asarray(cross), np.asarray(first), np.asarray(second)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt(np.where(first > 0, first, np.nan)) * np.sqrt(np.where(second > 0, second, np.nan))
        return np.asarray(cross / norm)


def _item(values: tuple[np.ndarray, np.ndarray], number: int) -> np.ndarray:
    return values[number]
