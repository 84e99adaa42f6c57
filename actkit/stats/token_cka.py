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
from dask.system import CPU_COUNT

from ..errors import MissingError
from ..regular_files import MB
from . import lazy_blocks, selection
from .finiteness import check_values, checked
from .kernels.cka import standard_error
from .kernels.token_hsic import ClusterBlock, Frame, TokenSums
from .lazy_blocks import SLAB, Block

_SUMS = 256 * MB  # of the layers that one task reads


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
    second time. One pass serves all languages, and each pass reads most layers once. A token costs three
    products of ``hidden ** 2`` multiplications in each pass, which is most of the time.
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
    first_cluster
        Number of clusters in earlier parts, by language.
    """

    samples: np.ndarray
    order: np.ndarray
    mask: np.ndarray
    language: np.ndarray
    cluster: np.ndarray
    first_cluster: dict[int, int]

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
    counts = dict.fromkeys(np.unique(language).tolist(), 0)
    for span in _spans(codes[by_cluster], item_bytes, lazy_blocks.READ):
        samples = by_cluster[span]
        order = np.argsort(np.argsort(samples))
        parts.append(
            _Part(np.sort(samples), order, mask[samples], language[samples], codes[samples], counts.copy())
        )
        for name in counts:
            counts[name] += len(np.unique(codes[samples][language[samples] == name]))
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
    merge, leave_out, hsic_of, cka_and_error, item = (
        delayed(function, pure=False) for function in (_merge, _leave_out, _hsic, _cka_and_error, _item)
    )
    hsic, left_out = [], []
    n_at_once = _layers_at_once(n_layers, residual.sizes["hidden"])
    for start in range(0, n_layers, n_at_once):
        lowers = range(start, min(start + n_at_once, n_layers))
        layers = range(start, min(lowers.stop + 1, n_layers))
        blocks = [[Block(residual[index, part.positions]) for index in layers] for part in parts]
        total: Any = [[None] * n_languages for _ in lowers]
        for block, part in zip(blocks, parts, strict=True):
            total = merge(total, block, part)
        without = [leave_out(block, part, total) for block, part in zip(blocks, parts, strict=True)]
        whole = hsic_of(total)
        hsic += [item(whole, number) for number in range(len(lowers))]
        left_out += [[item(part, number) for part in without] for number in range(len(lowers))]
    results = [
        cka_and_error(hsic[layer : layer + 2], left_out[layer : layer + 2]) for layer in range(n_layers - 1)
    ]
    shape = (n_languages,)
    cka, se = (
        da.stack(  # type: ignore[no-untyped-call]
            [da.from_delayed(item(pair, number), shape, np.float64) for pair in results]  # type: ignore[no-untyped-call]
        )
        for number in (0, 1)
    )
    return cka, se


def _layers_at_once(n_layers: int, hidden: int) -> int:
    """Return how many layers one task reads: few, so that their sums fit in memory and no core is idle."""
    of_layer = 2 * 8 * hidden**2
    return max(min(_SUMS // of_layer, -(-n_layers // CPU_COUNT)), 1)


Sums = list[TokenSums]  # a layer with itself, and with the next one
Hsic = dict[int, list[np.ndarray]]  # by language, the HSIC without one cluster at a time, for the same pairs


def _blocks(
    block: Block, part: _Part, frames: dict[int, Frame], *, are_final: bool
) -> list[tuple[int, ClusterBlock]]:
    """Read the tokens of a layer, as blocks of clusters with their language.

    Parameters
    ----------
    block, part
        What is read.
    frames
        Frame of each language; missing ones are added.
    are_final
        Whether the frames suit all tokens.
    """
    found = []
    for language, (tokens,), members in part.tokens([block.read()]):
        if not are_final:
            check_values(tokens, "residual")
        if language not in frames:
            frames[language] = Frame.of(tokens)
        frame = frames[language]
        frame = frame if are_final else frame.including(tokens)
        found.append((language, ClusterBlock.of(tokens, members, frame)))
    return found


def _adjacent_blocks(
    blocks: Sequence[Block], part: _Part, totals: Sequence[Sequence[Sums | None]], *, are_final: bool
) -> Iterator[tuple[int, int, list[ClusterBlock]]]:
    """Yield layers and languages, each with its block and that of the next layer, if there is one."""
    known = [{name: sums[0].frames[0] for name, sums in enumerate(row) if sums} for row in totals]
    known.append({name: sums[1].frames[1] for name, sums in enumerate(totals[-1]) if sums and sums[1:]})
    lower = _blocks(blocks[0], part, known[0], are_final=are_final)
    for layer in range(len(totals)):
        upper = []
        if layer + 1 < len(blocks):
            upper = _blocks(blocks[layer + 1], part, known[layer + 1], are_final=are_final)
        for place, (language, block) in enumerate(lower):
            yield layer, language, [block, *(following for _, following in upper[place : place + 1])]
        lower = upper


def _merge(
    totals: Sequence[Sequence[Sums | None]], blocks: Sequence[Block], part: _Part
) -> list[list[Sums | None]]:
    """Add the sums of a part to those of each layer and language."""
    merged = [list(of_layer) for of_layer in totals]
    for layer, language, pair in _adjacent_blocks(blocks, part, totals, are_final=False):
        found = [TokenSums.of(pair[0], other) for other in pair]
        before = merged[layer][language]
        if before is not None:
            found = [sums.merge(more) for sums, more in zip(before, found, strict=True)]
        merged[layer][language] = found
    return merged


def _leave_out(blocks: Sequence[Block], part: _Part, totals: Sequence[Sequence[Sums]]) -> list[Hsic]:
    """Return the HSIC without each of the clusters of a part, by layer."""
    results: list[Hsic] = [{} for _ in totals]
    for layer, language, pair in _adjacent_blocks(blocks, part, totals, are_final=True):
        before = results[layer].get(language, [np.empty(0)] * len(pair))
        first = part.first_cluster[language] + len(before[0])
        sums_and_others = zip(totals[layer][language], pair, strict=True)
        hsic = [sums.hsic_without(pair[0], other, first) for sums, other in sums_and_others]
        results[layer][language] = [np.append(*both) for both in zip(before, hsic, strict=True)]
    return results


def _hsic(totals: Sequence[Sequence[Sums]]) -> list[list[list[float]]]:
    """Return the HSIC of each layer with itself and the next one, by layer and language."""
    return [[[pair.hsic() for pair in sums] for sums in of_layer] for of_layer in totals]


def _cka_and_error(
    hsic: Sequence[Sequence[Sequence[float]]], left_out: Sequence[Sequence[Hsic]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return CKA and its jackknife standard error, dims ``(language,)``."""
    results = []
    for language, (lower, upper) in enumerate(zip(*hsic, strict=True)):
        without_lower, without_cross = _joined(left_out[0], language)[:2]
        without_upper = _joined(left_out[1], language)[0]
        value = _ratio(lower[1], lower[0], upper[0])
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


def _item(values: Sequence[Any], number: int) -> Any:
    return values[number]
