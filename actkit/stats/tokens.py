"""The alignment of neighbouring layers token by token, block after block: none need fit into memory."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import MissingError
from . import parts
from .kernels.moments import Crossing

_AT_ONCE = 64  # samples of a cube that is in memory already


def sampled_tokens(cube: xr.Dataset, most: int, seed: int) -> xr.DataArray:
    """Draw content tokens of each language, dims ``(layer, sample, hidden)``: each stands as a sample.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    most
        How many of each language.
    seed
        Of the draws, which the order of samples does not change.
    """
    parts.require(cube, "residual")
    own = parts.captured(cube)
    mask = parts.token_mask(own).values
    rng = np.random.default_rng(seed)
    chosen = []
    for _, places in parts.languages(own):
        found = np.argwhere(mask[places])
        drawn = found[np.sort(rng.permutation(len(found))[:most])]
        chosen.append(np.column_stack([places[drawn[:, 0]], drawn[:, 1]]))
    sample, token = np.concatenate(chosen).T
    kept = [name for name, coord in own.coords.items() if coord.dims == ("sample",) and name != "sample"]
    picked = own.residual.drop_vars([name for name in own.coords if name not in (*kept, "layer")])
    picked = picked.isel(sample=xr.DataArray(sample, dims="picked"), token=xr.DataArray(token, dims="picked"))
    tokens: xr.DataArray = (
        picked.rename(picked="sample")
        .transpose("layer", "sample", "hidden")
        .assign_coords(sample=np.arange(len(sample)))
        .assign_attrs(own.attrs)
    )
    return tokens


def token_cka(cube: xr.Dataset, pairs: str | None = None) -> xr.Dataset:
    """Compare each layer with the next one on all content tokens.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    pairs
        A label that samples share which are not independent.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``: ``cka``, ``se``; ``n``, the number of tokens, has dims ``(language,)``.

    Notes
    -----
    In the space of features, where the unbiased HSIC needs sums alone: those of blocks are merged. The
    standard error is the infinitesimal jackknife over samples, for which tokens are read a second time.
    """
    parts.require(cube, "residual")
    own = parts.captured(cube)
    if own.sizes["layer"] < 2:
        raise MissingError("the cube has one layer; extract it again with more of them")
    residual = own.residual.transpose("layer", "sample", "token", "hidden")
    is_lazy = dask.base.is_dask_collection(residual)
    residual = residual.chunk(layer=1, token=-1, hidden=-1, **({} if is_lazy else {"sample": _AT_ONCE}))
    mask = parts.token_mask(own).values
    labels = None if pairs is None else parts.column(own, pairs, "pairs")

    def summarize(_language: str, places: np.ndarray) -> xr.Dataset:
        kept = np.sort(places)  # as they lie on disk
        groups = np.arange(len(kept)) if labels is None else parts.codes(labels[kept])
        values = _neighbours(residual.isel(sample=kept).data, mask[kept], groups)
        return xr.Dataset(
            {"cka": ("layer", values[0]), "se": ("layer", values[1]), "n": int(mask[kept].sum())}
        )

    result = parts.by_language(own, summarize).assign_coords(layer=own.layer.values[:-1])
    return result if is_lazy else result.compute()


def _neighbours(array: da.Array, mask: np.ndarray, groups: np.ndarray) -> tuple[da.Array, da.Array]:
    """Return CKA and standard error of neighbouring layers, dims ``(layer,)``."""
    blocks = array.to_delayed()[:, :, 0, 0]  # type: ignore[no-untyped-call]
    edges = np.cumsum([0, *array.chunks[1]])
    masks = [mask[begin:end] for begin, end in pairwise(edges)]
    members = [groups[begin:end] for begin, end in pairwise(edges)]
    n_groups = int(groups.max()) + 1
    merge, pull, relate, part = (delayed(function, pure=True) for function in (_merge, _pull, _relate, _part))

    def sums(one: Sequence[Any], two: Sequence[Any]) -> Any:
        total = None
        for block in zip(one, two, masks, strict=True):
            total = merge(total, *block)
        return total

    def pulls(one: Sequence[Any], two: Sequence[Any], total: Any) -> Any:
        pulled = np.zeros(n_groups)
        for first, second, counts, own in zip(one, two, masks, members, strict=True):
            pulled = pull(pulled, first, second, counts, own, total)
        return pulled

    totals = [sums(layer, layer) for layer in blocks]
    influences = [pulls(layer, layer, total) for layer, total in zip(blocks, totals, strict=True)]
    found = []
    for lower in range(len(blocks) - 1):
        pair = blocks[lower], blocks[lower + 1]
        total = sums(*pair)
        both = relate(
            (total, *totals[lower : lower + 2]), (pulls(*pair, total), *influences[lower : lower + 2])
        )
        found.append([part(both, number) for number in (0, 1)])
    columns = zip(*found, strict=True)
    cka, se = (da.stack([_scalar(value) for value in column]) for column in columns)  # type: ignore[no-untyped-call]
    return cka, se


def _scalar(value: Any) -> da.Array:
    return da.from_delayed(value, (), np.float64)  # type: ignore[no-any-return, no-untyped-call]


def _merge(total: Crossing | None, one: np.ndarray, two: np.ndarray, mask: np.ndarray) -> Crossing:
    x = one[0][mask]
    found = Crossing.of(x, x if one is two else two[0][mask])
    return found if total is None else total.merge(found)


def _pull(
    pulled: np.ndarray,
    one: np.ndarray,
    two: np.ndarray,
    mask: np.ndarray,
    members: np.ndarray,
    total: Crossing,
) -> np.ndarray:
    """Add by how much each group pulls the unbiased HSIC, up to a factor."""
    x, y = (array[0][mask] - mean for array, mean in zip((one, two), total.means, strict=True))
    own = np.einsum("th,th->t", x @ total.scatter, y)
    own -= np.square(x).sum(axis=1) * np.square(y).sum(axis=1)
    owners = np.repeat(members, mask.sum(axis=1))
    return pulled + np.bincount(owners, weights=own, minlength=len(pulled))


def _relate(totals: Sequence[Crossing], pulled: Sequence[np.ndarray]) -> tuple[float, float]:
    """Return CKA, and its standard error by the delta method."""
    between, one, two = (total.hsic for total in totals)
    if not (one > 0 and two > 0):
        return float("nan"), float("nan")
    value, n, count = between / np.sqrt(one * two), totals[0].n, len(pulled[0])
    scale = n * (n - 3)
    shares = [2 * own / scale for own in pulled]
    moved = shares[0] / np.sqrt(one * two) - value / 2 * (shares[1] / one + shares[2] / two)
    error = np.sqrt(count / max(count - 1, 1) * np.square(moved - moved.mean()).sum())
    return float(value), float(error)


def _part(values: tuple[float, float], number: int) -> np.ndarray:
    return np.asarray(values[number])
