"""Centred kernel alignment of representations: debiased, with a jackknife; and what may distort it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

FEWEST = 4  # samples, below which HSIC has no unbiased estimate
TOP = 3  # dimensions that may dominate a representation
_BLOCK_BYTES = 2**28


@dataclass(frozen=True)
class Alignment:
    """How alike representations are, each with each.

    Parameters
    ----------
    cka
        Debiased, dims ``(layer, layer_2)``; NaN where it is undefined.
    se
        Its standard error, by the jackknife.
    biased
        The plain estimate, which has a floor far above 0.
    participation
        Participation ratio of each representation, dims ``(layer,)``.
    """

    cka: np.ndarray
    se: np.ndarray
    biased: np.ndarray
    participation: np.ndarray


@dataclass(frozen=True)
class _Sums:
    """What the unbiased HSIC is made of, dims ``(..., layer, layer_2)`` and ``(..., layer)``."""

    n: np.ndarray
    products: np.ndarray  # tr(Kt Lt)
    rows: np.ndarray  # 1ᵀ Kt Lt 1
    totals: np.ndarray  # 1ᵀ Kt 1

    def hsic(self) -> np.ndarray:
        n = self.n[..., None, None]
        means = self.totals[..., :, None] * self.totals[..., None, :] / ((n - 1) * (n - 2))
        return np.asarray((self.products + means - 2 / (n - 2) * self.rows) / (n * (n - 3)))

    def cka(self) -> np.ndarray:
        return normalize(self.hsic())


def normalize(hsic: np.ndarray) -> np.ndarray:
    """Divide HSIC by those of each representation with itself, dims ``(..., layer, layer_2)``."""
    own = np.diagonal(hsic, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        own = np.sqrt(np.where(own > 0, own, np.nan))
        return np.asarray(hsic / (own[..., :, None] * own[..., None, :]))


def align(vectors: np.ndarray, groups: np.ndarray | None = None, *, jackknife: bool = True) -> Alignment:
    """Compare representations of the same samples, each with each.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``; representations of another width are filled up with zeros.
    groups
        Which samples belong together, dims ``(sample,)``: the jackknife leaves them out at once.
    jackknife
        Whether to compute ``se``; it is NaN otherwise.

    Notes
    -----
    The unbiased HSIC of [1]_, normalised as in [2]_ and [3]_. It does not change where a constant is added
    to the rows and
    columns of a Gram matrix, so that one centring serves all samples and each leave-one-out. Time grows
    with ``layer * sample**2 * hidden``, memory with ``layer * sample``, beside the vectors.

    References
    ----------
    .. [1] Song et al., Feature selection via dependence maximization, JMLR 2012.
    .. [2] Kornblith et al., Similarity of neural network representations revisited, ICML 2019.
    .. [3] Nguyen, Raghu, Kornblith, Do wide and deep networks learn the same things?, ICLR 2021.
    """
    n_layers, n = vectors.shape[:2]
    if n < FEWEST:
        nothing = np.full((n_layers, n_layers), np.nan)
        return Alignment(nothing, nothing, nothing, np.full(n_layers, np.nan))
    order = np.arange(n) if groups is None else np.argsort(groups, kind="stable")
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1][order]
    means = vectors.mean(axis=1, dtype=np.float64)
    squares = np.empty((n_layers, n))
    for layer in range(n_layers):
        squares[layer] = np.square(vectors[layer] - means[layer])[order].sum(axis=1)
    rows = -squares  # those of a centred Gram matrix sum to 0, with its diagonal
    parts = [
        _block(gram, rows, members[block], block.start, jackknife=jackknife)
        for block, gram in _grams(vectors, means, order, members)
    ]
    products = sum(part.products.sum(axis=0) for part in parts)
    whole = _Sums(np.array(n), np.asarray(products), rows @ rows.T, rows.sum(axis=1))
    full = whole.products + squares @ squares.T
    own = np.sqrt(np.diagonal(full))
    with np.errstate(invalid="ignore", divide="ignore"):
        biased = full / np.outer(own, own)
        participation = squares.sum(axis=1) ** 2 / np.diagonal(full)
    cka = whole.cka()
    se = np.full_like(cka, np.nan)
    if jackknife:
        se = _standard_error(_without(whole, rows, members, parts))
    return Alignment(cka, se, biased, participation)


@dataclass(frozen=True)
class _Block:
    """What whole groups take with them, dims ``(group, layer, layer_2)`` and ``(group, layer)``."""

    products: np.ndarray  # of their rows with all
    inside: np.ndarray | None = None  # of their rows with each other
    totals: np.ndarray | None = None  # of their Gram matrix
    crossing: np.ndarray | None = None  # their summed rows with row sums, of the others
    summed: np.ndarray | None = None  # their summed rows with each other's, of the others


def _grams(
    vectors: np.ndarray, means: np.ndarray, order: np.ndarray, members: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of centred Gram matrices without diagonals, ``(row, layer, sample)``, by whole groups."""
    n_layers, n = vectors.shape[:2]
    most = max(_BLOCK_BYTES // (8 * n_layers * n), 1)
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    edges = [0]
    for start in [*starts[1:].tolist(), n]:
        if start - edges[-1] >= most or start == n:
            edges.append(start)
    for begin, end in pairwise(edges):
        gram = np.empty((end - begin, n_layers, n))
        for layer in range(n_layers):
            centred = (vectors[layer] - means[layer])[order]
            gram[:, layer] = centred[begin:end] @ centred.T
        gram[np.arange(end - begin), :, np.arange(begin, end)] = 0
        yield slice(begin, end), gram


def _block(gram: np.ndarray, rows: np.ndarray, members: np.ndarray, begin: int, *, jackknife: bool) -> _Block:
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    by_row = gram @ gram.transpose(0, 2, 1)
    products = np.add.reduceat(by_row, starts)
    if not jackknife:
        return _Block(products)
    single = len(starts) == len(members)
    sums = gram if single else np.add.reduceat(gram, starts)
    summed = by_row if single else sums @ sums.transpose(0, 2, 1)
    crossing = sums @ rows.T
    inside, totals = np.zeros_like(products), np.zeros(products.shape[:2])
    for group, (first, last) in enumerate(zip(starts, [*starts[1:], len(members)], strict=True)):
        if last - first == 1:  # the diagonal is 0
            continue
        own = slice(begin + first, begin + last)
        entries = gram[first:last, :, own].transpose(1, 0, 2).reshape(gram.shape[1], -1)
        inside[group] = entries @ entries.T
        totals[group] = entries.sum(axis=1)
        within = sums[group][:, own]
        crossing[group] -= within @ rows[:, own].T
        summed[group] -= within @ within.T
    return _Block(products, inside, totals, crossing, summed)


def _without(whole: _Sums, rows: np.ndarray, members: np.ndarray, parts: list[_Block]) -> np.ndarray:
    """Return the CKA without each of the groups, dims ``(group, layer, layer_2)``."""
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    sizes = np.diff([*starts, len(members)])
    inside, totals, crossing, summed, products = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("inside", "totals", "crossing", "summed", "products")
    )
    own = np.add.reduceat(rows[:, None] * rows[None], starts, axis=2).transpose(2, 0, 1)
    left = _Sums(
        whole.n - sizes,
        whole.products - 2 * products + inside,
        whole.rows - own - crossing - crossing.transpose(0, 2, 1) + summed,
        whole.totals - 2 * np.add.reduceat(rows, starts, axis=1).T + totals,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return left.cka()


def _standard_error(left_out: np.ndarray) -> np.ndarray:
    """Return the jackknife's standard error of what was computed without each group."""
    count = len(left_out)
    if count < 2:
        return np.full(left_out.shape[1:], np.nan)
    spread = np.square(left_out - left_out.mean(axis=0)).sum(axis=0)
    return np.asarray(np.sqrt((count - 1) / count * spread))


def minibatch_cka(vectors: np.ndarray, *, batch: int, seed: int = 0) -> np.ndarray:
    """Return the debiased CKA summed over batches, dims ``(layer, layer_2)``.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``.
    batch
        Samples in a batch, which are drawn at random: of sorted ones, no batch shows what all do. The
        last one is left out where it has fewer than 4.
    seed
        Of the order.
    """
    n_layers, n = vectors.shape[:2]
    order = np.random.default_rng(seed).permutation(n)
    total = np.zeros((n_layers, n_layers))
    for start in range(0, n, batch):
        part = vectors[:, order[start : start + batch]].astype(np.float64)
        if part.shape[1] < FEWEST:
            continue
        part -= part.mean(axis=1, keepdims=True)
        gram = part @ part.transpose(0, 2, 1)
        rows = -np.square(part).sum(axis=2)
        gram[:, np.arange(part.shape[1]), np.arange(part.shape[1])] = 0
        flat = gram.reshape(n_layers, -1)
        sums = _Sums(np.array(part.shape[1]), flat @ flat.T, rows @ rows.T, rows.sum(axis=1))
        total += sums.hsic()
    return normalize(total)


def top_share(vectors: np.ndarray) -> np.ndarray:
    """Return the part of the variance that its 3 largest dimensions hold, dims ``(layer,)``."""
    variance = vectors.var(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sort(variance, axis=1)[:, -TOP:].sum(axis=1) / variance.sum(axis=1))


def without_top(vectors: np.ndarray) -> np.ndarray:
    """Set the 3 dimensions of most variance to 0, layer by layer."""
    variance = vectors.var(axis=1, dtype=np.float64)
    kept = vectors.copy()
    np.put_along_axis(kept, np.argsort(variance, axis=1)[:, None, -TOP:], 0, axis=2)
    return kept


def z_scored(vectors: np.ndarray) -> np.ndarray:
    """Scale each dimension to a variance of 1; constant ones become 0. Float64."""
    exact = vectors.astype(np.float64)
    exact -= exact.mean(axis=1, keepdims=True)
    spread = exact.std(axis=1, keepdims=True)
    return np.asarray(np.divide(exact, spread, out=np.zeros_like(exact), where=spread > 0))


def unit_rms(vectors: np.ndarray) -> np.ndarray:
    """Scale each vector to a root mean square of 1. Float64."""
    exact = vectors.astype(np.float64)
    size = np.sqrt(np.square(exact).mean(axis=2, keepdims=True))
    return np.asarray(np.divide(exact, size, out=np.zeros_like(exact), where=size > 0))
