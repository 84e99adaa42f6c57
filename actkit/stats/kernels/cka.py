"""Debiased centred kernel alignment with jackknife errors, and checks for dominant dimensions."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .magnitude import unit_scale

FEWEST = 4  # samples; with fewer, HSIC has no unbiased estimate
TOP = 3  # number of dimensions that may dominate a representation
_BLOCK_BYTES = 2**28


@dataclass(frozen=True)
class Alignment:
    """CKA of every pair of representations.

    Parameters
    ----------
    cka
        Debiased CKA, dims ``(layer, layer_2)``; NaN where it is undefined.
    se
        Jackknife standard error of ``cka``.
    biased
        The biased estimate, which has a floor far above 0.
    participation
        Participation ratio of each representation, dims ``(layer,)``.
    """

    cka: np.ndarray
    se: np.ndarray
    biased: np.ndarray
    participation: np.ndarray


@dataclass(frozen=True)
class _Sums:
    """Sums that make up the unbiased HSIC, dims ``(..., layer, layer_2)`` and ``(..., layer)``."""

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
    """Normalise HSIC to CKA: divide by the root of the self-HSICs, dims ``(..., layer, layer_2)``."""
    norm = np.diagonal(hsic, axis1=-2, axis2=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        norm = np.sqrt(np.where(norm > 0, norm, np.nan))
        return np.asarray(hsic / (norm[..., :, None] * norm[..., None, :]))


def align(vectors: np.ndarray, groups: np.ndarray | None = None, *, jackknife: bool = True) -> Alignment:
    """Return the CKA of every pair of representations of the same samples.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``; narrower representations are padded with zeros.
    groups
        Cluster of each sample, dims ``(sample,)``; the jackknife deletes one whole cluster at a time.
    jackknife
        Whether to compute ``se``; it is NaN otherwise.

    Notes
    -----
    The unbiased HSIC of [1]_, normalised as in [2]_ and [3]_. It is invariant to constants added to rows and
    columns of a Gram matrix, so a single centring serves all samples and every leave-one-out estimate. Time
    grows with ``layer * sample**2 * hidden``; memory, excluding the vectors, with ``layer * sample``.

    References
    ----------
    .. [1] Song et al., Feature selection via dependence maximization, JMLR 2012.
    .. [2] Kornblith et al., Similarity of neural network representations revisited, ICML 2019.
    .. [3] Nguyen, Raghu, Kornblith, Do wide and deep networks learn the same things?, ICLR 2021.
    """
    n_layers, n = vectors.shape[:2]
    if n < FEWEST:
        undefined = np.full((n_layers, n_layers), np.nan)
        return Alignment(undefined, undefined, undefined, np.full(n_layers, np.nan))
    order = np.arange(n) if groups is None else np.argsort(groups, kind="stable")
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1][order]
    squares = np.empty((n_layers, n))
    for layer in range(n_layers):
        squares[layer] = np.square(_centred(vectors[layer]))[order].sum(axis=1)
    rows = -squares  # row sums without the diagonal; those of a centred Gram matrix are 0
    parts = [
        _block(gram, rows, members[block], block.start, jackknife=jackknife)
        for block, gram in _grams(vectors, order, members)
    ]
    products = sum(part.products.sum(axis=0) for part in parts)
    total = _Sums(np.array(n), np.asarray(products), rows @ rows.T, rows.sum(axis=1))
    diagonal_included = total.products + squares @ squares.T
    norm = np.sqrt(np.diagonal(diagonal_included))
    with np.errstate(invalid="ignore", divide="ignore"):
        biased = diagonal_included / np.outer(norm, norm)
        participation = squares.sum(axis=1) ** 2 / np.diagonal(diagonal_included)
    cka = total.cka()
    se = np.full_like(cka, np.nan)
    if jackknife:
        se = _standard_error(_leave_one_out(total, rows, members, parts))
    return Alignment(cka, se, biased, participation)


@dataclass(frozen=True)
class _Block:
    """Contributions of clusters to the sums, dims ``(group, layer, layer_2)`` and ``(group, layer)``."""

    products: np.ndarray  # products of the cluster's rows with all rows
    inside: np.ndarray | None = None  # products within the cluster
    totals: np.ndarray | None = None  # sum of the cluster's Gram matrix
    crossing: np.ndarray | None = None  # summed rows times the row sums of the other samples
    summed: np.ndarray | None = None  # products of the summed rows, over the other samples


def _centred(matrix: np.ndarray) -> np.ndarray:
    """Return centred vectors as float64, scaled so that no product overflows or underflows."""
    exact = matrix * unit_scale(matrix)
    exact -= exact.mean(axis=0)
    return np.asarray(exact)


def _grams(vectors: np.ndarray, order: np.ndarray, members: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield rows of centred Gram matrices with zero diagonal, ``(row, layer, sample)``, by whole clusters."""
    n_layers, n = vectors.shape[:2]
    n_rows = max(_BLOCK_BYTES // (8 * n_layers * n), 1)
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    edges = [0]
    for start in [*starts[1:].tolist(), n]:
        if start - edges[-1] >= n_rows or start == n:
            edges.append(start)
    for begin, end in pairwise(edges):
        gram = np.empty((end - begin, n_layers, n))
        for layer in range(n_layers):
            centred = _centred(vectors[layer])[order]
            gram[:, layer] = centred[begin:end] @ centred.T
        gram[np.arange(end - begin), :, np.arange(begin, end)] = 0
        yield slice(begin, end), gram


def _block(gram: np.ndarray, rows: np.ndarray, members: np.ndarray, begin: int, *, jackknife: bool) -> _Block:
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    row_products = gram @ gram.transpose(0, 2, 1)
    products = np.add.reduceat(row_products, starts)
    if not jackknife:
        return _Block(products)
    single = len(starts) == len(members)
    sums = gram if single else np.add.reduceat(gram, starts)
    summed = row_products if single else sums @ sums.transpose(0, 2, 1)
    crossing = sums @ rows.T
    inside, totals = np.zeros_like(products), np.zeros(products.shape[:2])
    for group, (first, last) in enumerate(zip(starts, [*starts[1:], len(members)], strict=True)):
        if last - first == 1:  # the diagonal is 0
            continue
        columns = slice(begin + first, begin + last)
        entries = gram[first:last, :, columns].transpose(1, 0, 2).reshape(gram.shape[1], -1)
        inside[group] = entries @ entries.T
        totals[group] = entries.sum(axis=1)
        within = sums[group][:, columns]
        crossing[group] -= within @ rows[:, columns].T
        summed[group] -= within @ within.T
    return _Block(products, inside, totals, crossing, summed)


def _leave_one_out(total: _Sums, rows: np.ndarray, members: np.ndarray, parts: list[_Block]) -> np.ndarray:
    """Return the leave-one-cluster-out CKA, dims ``(group, layer, layer_2)``."""
    starts = np.flatnonzero(np.diff(members, prepend=-1))
    sizes = np.diff([*starts, len(members)])
    inside, totals, crossing, summed, products = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("inside", "totals", "crossing", "summed", "products")
    )
    group_rows = np.add.reduceat(rows[:, None] * rows[None], starts, axis=2).transpose(2, 0, 1)
    remaining = _Sums(
        total.n - sizes,
        total.products - 2 * products + inside,
        total.rows - group_rows - crossing - crossing.transpose(0, 2, 1) + summed,
        total.totals - 2 * np.add.reduceat(rows, starts, axis=1).T + totals,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return remaining.cka()


def _standard_error(estimates: np.ndarray) -> np.ndarray:
    """Return the jackknife standard error from leave-one-out estimates."""
    count = len(estimates)
    if count < 2:
        return np.full(estimates.shape[1:], np.nan)
    deviations = np.square(estimates - estimates.mean(axis=0)).sum(axis=0)
    return np.asarray(np.sqrt((count - 1) / count * deviations))


def minibatch_cka(vectors: np.ndarray, *, batch: int, seed: int = 0) -> np.ndarray:
    """Return minibatch CKA, which sums the unbiased HSIC over random batches, dims ``(layer, layer_2)``.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``.
    batch
        Number of samples per batch. Batches are random, because a batch of sorted samples is not
        representative; the last one is dropped if it has fewer than 4 samples.
    seed
        Random seed of the sample order.

    Notes
    -----
    Nguyen, Raghu, Kornblith, Do wide and deep networks learn the same things?, ICLR 2021.
    """
    n_layers, n = vectors.shape[:2]
    order = np.random.default_rng(seed).permutation(n)
    total, scale = np.zeros((n_layers, n_layers)), unit_scale(vectors, axis=(1, 2))
    for start in range(0, n, batch):
        part = vectors[:, order[start : start + batch]] * scale
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
    """Return the share of the variance in the 3 dimensions of largest variance, dims ``(layer,)``."""
    variance = _variance(vectors)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sort(variance, axis=1)[:, -TOP:].sum(axis=1) / variance.sum(axis=1))


def without_top(vectors: np.ndarray) -> np.ndarray:
    """Set the 3 dimensions of largest variance in each layer to 0."""
    kept = vectors.copy()
    np.put_along_axis(kept, np.argsort(_variance(vectors), axis=1)[:, None, -TOP:], 0, axis=2)
    return kept


def _variance(vectors: np.ndarray) -> np.ndarray:
    """Return the variance of each dimension up to a factor per layer, dims ``(layer, hidden)``."""
    return np.stack([(matrix * unit_scale(matrix)).var(axis=0) for matrix in vectors])


def z_scored(vectors: np.ndarray) -> np.ndarray:
    """Return dimensions centred and scaled to unit variance, as float64; constant dimensions become 0."""
    exact = vectors * unit_scale(vectors, axis=1)
    exact -= exact.mean(axis=1, keepdims=True)
    spread = exact.std(axis=1, keepdims=True)
    return np.asarray(np.divide(exact, spread, out=np.zeros_like(exact), where=spread > 0))


def unit_rms(vectors: np.ndarray) -> np.ndarray:
    """Return vectors scaled to a root mean square of 1, as float64."""
    exact = vectors * unit_scale(vectors, axis=2)
    size = np.sqrt(np.square(exact).mean(axis=2, keepdims=True))
    return np.asarray(np.divide(exact, size, out=np.zeros_like(exact), where=size > 0))
