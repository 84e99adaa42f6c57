"""The alignment of neighbouring layers token by token, block after block: none need fit into memory."""

from collections.abc import Sequence
from typing import Any

import dask.array as da
import dask.base
import numpy as np
import xarray as xr
from dask.delayed import delayed

from ..errors import MissingError
from . import parts
from .blocks import Block, slabs, spans
from .kernels.moments import Crossing


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
    All languages are counted in one pass.
    """
    parts.require(cube, "residual")
    own = parts.captured(cube)
    if own.sizes["layer"] < 2:
        raise MissingError("the cube has one layer; extract it again with more of them")
    residual = own.residual.transpose("layer", "sample", "token", "hidden")
    is_lazy = dask.base.is_dask_collection(residual)
    labels = None if pairs is None else parts.column(own, pairs, "pairs")
    mask, found = parts.token_mask(own).values, list(parts.languages(own))
    names = np.arange(own.sizes["sample"]) if labels is None else parts.codes(labels)
    counted = []
    for _, places in found:
        counts = np.zeros(mask.shape, dtype=bool)
        counts[places] = mask[places]
        members = np.zeros(len(names), dtype=np.int64)
        members[places] = parts.codes(names[places])
        counted.append((counts, members))
    cka, se = _neighbours(residual, counted)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        at = [name for name, _ in found].index(language)
        n_tokens = int(counted[at][0].sum())
        return xr.Dataset({"cka": ("layer", cka[:, at]), "se": ("layer", se[:, at]), "n": n_tokens})

    result = parts.by_language(own, summarize).assign_coords(layer=own.layer.values[:-1])
    return result if is_lazy else result.compute()


def _neighbours(
    residual: xr.DataArray, counted: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[da.Array, da.Array]:
    """Return CKA and standard error of neighbouring layers, dims ``(layer, language)``."""
    n_layers = residual.sizes["layer"]
    cut = spans(residual)
    masks = [[counts[span] for counts, _ in counted] for span in cut]
    owners = [[members[span] for _, members in counted] for span in cut]
    nothing = [np.zeros((2, int(members.max()) + 1)) for _, members in counted]
    merge, pull, relate, part = (
        delayed(function, pure=False) for function in (_merge, _pull, _relate, _part)
    )
    totals, pulled = [], []
    for layer in range(n_layers):
        both = range(layer, min(layer + 2, n_layers))
        blocks = [[Block(residual[at, span]) for at in both] for span in cut]
        total: Any = None
        for block, counts in zip(blocks, masks, strict=True):
            total = merge(total, block, counts)
        found: Any = nothing
        for block, counts, members in zip(blocks, masks, owners, strict=True):
            found = pull(found, block, counts, members, total)
        totals.append(total)
        pulled.append(found)
    related = [relate(totals[layer : layer + 2], pulled[layer : layer + 2]) for layer in range(n_layers - 1)]
    cka, se = (
        da.stack(  # type: ignore[no-untyped-call]
            [da.from_delayed(part(both, number), (len(counted),), np.float64) for both in related]  # type: ignore[no-untyped-call]
        )
        for number in (0, 1)
    )
    return cka, se


Sums = list[list[Crossing]]  # by language: of a layer with itself, and with the next one


def _merge(total: Sums | None, blocks: Sequence[Block], masks: Sequence[np.ndarray]) -> Sums:
    values = [block.read() for block in blocks]
    merged = []
    for at, mask in enumerate(masks):
        own = [] if total is None else total[at]
        for rows in slabs(values[0]):
            tokens = [array[rows][mask[rows]] for array in values]
            found = [Crossing.of(tokens[0], other) for other in tokens]
            own = [before.merge(after) for before, after in zip(own, found, strict=True)] if own else found
        merged.append(own)
    return merged


def _pull(
    pulled: Sequence[np.ndarray],
    blocks: Sequence[Block],
    masks: Sequence[np.ndarray],
    members: Sequence[np.ndarray],
    totals: Sums,
) -> list[np.ndarray]:
    """Add by how much each group pulls the unbiased HSIC, up to a factor; dims ``(2, group)`` by language."""
    values = [block.read() for block in blocks]
    found = [before.copy() for before in pulled]
    for into, mask, own, total in zip(found, masks, members, totals, strict=True):
        for rows in slabs(values[0]):
            tokens = [array[rows][mask[rows]] for array in values]
            groups = np.repeat(own[rows], mask[rows].sum(axis=1))
            for row, (other, crossing) in enumerate(zip(tokens, total, strict=True)):
                x, y = tokens[0] - crossing.means[0], other - crossing.means[1]
                pull = np.einsum("th,th->t", x @ crossing.scatter, y)
                pull -= np.square(x).sum(axis=1) * np.square(y).sum(axis=1)
                into[row] += np.bincount(groups, weights=pull, minlength=into.shape[1])
    return found


def _relate(totals: Sequence[Sums], pulled: Sequence[Sequence[np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Return CKA, and its standard error by the delta method, dims ``(language,)``."""
    found = []
    for at, (lower, upper) in enumerate(zip(*totals, strict=True)):
        one, between, two = lower[0].hsic, lower[1].hsic, upper[0].hsic
        if not (one > 0 and two > 0):
            found.append((np.nan, np.nan))
            continue
        value, n, count = between / np.sqrt(one * two), lower[0].n, pulled[0][at].shape[1]
        of_one, of_both = 2 * pulled[0][at] / (n * (n - 3))
        of_two = 2 * pulled[1][at][0] / (n * (n - 3))
        moved = of_both / np.sqrt(one * two) - value / 2 * (of_one / one + of_two / two)
        error = np.sqrt(count / max(count - 1, 1) * np.square(moved - moved.mean()).sum())
        found.append((value, error))
    cka, se = np.array(found).T
    return cka, se


def _part(values: tuple[np.ndarray, np.ndarray], number: int) -> np.ndarray:
    return values[number]
