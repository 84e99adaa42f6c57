"""Debiased centred kernel alignment with jackknife errors, and checks for dominant dimensions."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .hsic import FEWEST, DistinctSums, gram_sums
from .magnitude import unit_scale

TOP = 3  # number of dimensions that may dominate a representation


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
    left_out
        Debiased CKA without one cluster at a time, dims ``(cluster, layer, layer_2)``; empty without a
        jackknife.

    Notes
    -----
    ``biased`` and ``participation`` give every cluster the same weight.
    """

    cka: np.ndarray
    se: np.ndarray
    biased: np.ndarray
    participation: np.ndarray
    left_out: np.ndarray


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
        Cluster of each sample, dims ``(sample,)``. The estimate compares samples of different clusters only,
        and the jackknife deletes one whole cluster at a time. By default, each sample is its own cluster.
    jackknife
        Whether to compute ``se``; it is NaN otherwise.

    Notes
    -----
    The unbiased HSIC of [1]_, averaged over all draws of one sample per cluster, and normalised as in [2]_
    and [3]_. The average is the HSIC itself where every cluster has one sample; see
    :func:`~actkit.stats.kernels.hsic.gram_sums`.

    References
    ----------
    .. [1] Song et al., Feature selection via dependence maximization, JMLR 2012.
    .. [2] Kornblith et al., Similarity of neural network representations revisited, ICML 2019.
    .. [3] Nguyen, Raghu, Kornblith, Do wide and deep networks learn the same things?, ICLR 2021.
    """
    n_layers, n = vectors.shape[:2]
    if (n if groups is None else len(np.unique(groups))) < FEWEST:
        undefined = np.full((n_layers, n_layers), np.nan)
        return Alignment(undefined, undefined, undefined, np.full(n_layers, np.nan), undefined[None][:0])
    sums = gram_sums(vectors, groups, jackknife=jackknife)
    norm = np.sqrt(np.diagonal(sums.squares))
    with np.errstate(invalid="ignore", divide="ignore"):
        biased = sums.squares / np.outer(norm, norm)
        participation = sums.traces**2 / np.diagonal(sums.squares)
    cka = normalize(sums.total.hsic())
    left_out = np.empty((0, n_layers, n_layers))
    if sums.remaining is not None:
        left_out = normalize(sums.remaining.hsic())
    return Alignment(cka, standard_error(left_out), biased, participation, left_out)


def standard_error(estimates: np.ndarray) -> np.ndarray:
    """Return the jackknife standard error from leave-one-out estimates."""
    count = len(estimates)
    if count < 2:
        return np.full(estimates.shape[1:], np.nan)
    deviations = np.square(estimates - estimates.mean(axis=0)).sum(axis=0)
    return np.asarray(np.sqrt((count - 1) / count * deviations))


def minibatch_cka(
    vectors: np.ndarray, groups: np.ndarray | None = None, *, batch: int, seed: int = 0
) -> np.ndarray:
    """Return minibatch CKA, which sums the unbiased HSIC over random batches, dims ``(layer, layer_2)``.

    Parameters
    ----------
    vectors
        Dims ``(layer, sample, hidden)``.
    groups
        Cluster of each sample, dims ``(sample,)``. A batch holds one random sample of each of its clusters.
    batch
        Number of samples per batch. Batches are random, because a batch of sorted samples is not
        representative; those with fewer than 4 samples are dropped.
    seed
        Random seed of the batches.

    Notes
    -----
    Nguyen, Raghu, Kornblith, Do wide and deep networks learn the same things?, ICLR 2021. Every cluster is
    drawn as many times as clusters have samples on average, so the work is that of all samples.
    """
    n_layers = len(vectors)
    total, scale = np.zeros((n_layers, n_layers)), unit_scale(vectors, axis=(1, 2))
    for samples in _batches(vectors.shape[1], groups, batch, np.random.default_rng(seed)):
        if len(samples) < FEWEST:
            continue
        part = vectors[:, samples] * scale
        part -= part.mean(axis=1, keepdims=True)
        gram = part @ part.transpose(0, 2, 1)
        gram[:, np.arange(len(samples)), np.arange(len(samples))] = 0
        rows, flat = -np.square(part).sum(axis=2), gram.reshape(n_layers, -1)
        pairs, crossing, totals = flat @ flat.T, rows @ rows.T, rows.sum(axis=1)
        quadruples = np.outer(totals, totals) - 4 * crossing + 2 * pairs
        total += DistinctSums(np.array(len(samples)), pairs, crossing - pairs, quadruples).hsic()
    return normalize(total)


def _batches(n: int, groups: np.ndarray | None, batch: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield random batches of samples of different clusters."""
    order = rng.permutation(n)
    members = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1][order]
    by_cluster = order[np.argsort(members, kind="stable")]
    sizes = np.bincount(members)
    starts, n_clusters = np.cumsum(sizes) - sizes, len(sizes)
    for number in range(-(-n // n_clusters)):
        drawn = by_cluster[starts + number % sizes]
        drawn = order if groups is None else drawn[rng.permutation(n_clusters)]
        for start in range(0, n_clusters, batch):
            yield drawn[start : start + batch]


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
