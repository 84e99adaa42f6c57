"""Permutations of labels with any values that respect clusters, with or without covariates."""

from dataclasses import dataclass

import numpy as np
from scipy.special import expit

_ROUNDS = 50  # of exchanges between the labels and a draw


@dataclass(frozen=True)
class Exchanges:
    """Units between which labels can be exchanged under the null hypothesis.

    Parameters
    ----------
    order
        Samples sorted by cluster, dims ``(sample,)``.
    starts, sizes
        First position of each cluster in ``order``, and its number of samples, dims ``(cluster,)``.
    strata
        Sets of clusters whose labels can be exchanged: those in which all samples have one label, of any
        size; and, for each size, those with several labels.
    is_mixed
        Whether a cluster has several labels, dims ``(cluster,)``.
    """

    order: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    strata: list[np.ndarray]
    is_mixed: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, groups: np.ndarray) -> "Exchanges":
        """Find the units; `values` has dims ``(sample,)``, and `groups` the cluster of each from 0."""
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups)
        starts = np.cumsum(sizes) - sizes
        ordered = values[order]
        is_mixed = np.maximum.reduceat(ordered, starts) > np.minimum.reduceat(ordered, starts)
        strata = [np.flatnonzero(~is_mixed)]
        strata += [np.flatnonzero(is_mixed & (sizes == size)) for size in np.unique(sizes[is_mixed])]
        return cls(order, starts, sizes, [stratum for stratum in strata if len(stratum) > 1], is_mixed)

    @property
    def representatives(self) -> np.ndarray:
        """Position of the sample whose label counts: the first of the cluster, unless it is mixed."""
        cluster = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.where(self.is_mixed[cluster], np.arange(len(cluster)), self.starts[cluster])

    def averaged(self, parameters: np.ndarray) -> np.ndarray:
        """Return parameters in order of clusters, averaged within those that have one label."""
        means = np.add.reduceat(parameters, self.starts) / self.sizes[:, None]
        cluster = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return np.where(self.is_mixed[cluster][:, None], parameters, means[cluster])

    def positions(self, cluster: np.ndarray) -> np.ndarray:
        """Return the positions in ``order`` of mixed clusters of one size, dims ``(cluster, sample)``."""
        return np.asarray(self.starts[cluster][:, None] + np.arange(self.sizes[cluster[0]]))


def permuted_sources(values: np.ndarray, groups: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Draw permutations under the null hypothesis, as the sample from which each sample takes its label.

    Parameters
    ----------
    values
        Labels, dims ``(sample,)``.
    groups
        Cluster of each sample, integers from 0, dims ``(sample,)``. Clusters with one label exchange it;
        clusters of equal size with several labels exchange all of them, and they are permuted within each.
    count
        Number of permutations.
    seed
        Random seed.

    Returns
    -------
    numpy.ndarray
        Dims ``(permutation, sample)``.

    Notes
    -----
    Winkler, Webster, Vidaurre, Nichols, Smith, Multi-level block permutation, NeuroImage 2015.
    """
    units = Exchanges.of(values, groups)
    rng = np.random.default_rng(seed)
    ordered_groups = groups[units.order]
    in_mixed = units.is_mixed[ordered_groups]
    drawn = np.empty((count, len(values)), dtype=np.int64)
    for row in drawn:
        donors = np.arange(len(units.sizes))
        for stratum in units.strata:
            donors[stratum] = rng.permutation(stratum)
        shuffled = np.lexsort((rng.random(len(values)), ordered_groups)) - units.starts[ordered_groups]
        places = units.starts[donors[ordered_groups]] + np.where(in_mixed, shuffled, 0)
        row[units.order] = units.order[places]
    return drawn


def conditional_sources(
    values: np.ndarray,
    statistics: np.ndarray,
    parameters: np.ndarray,
    groups: np.ndarray,
    count: int,
    *,
    seed: int,
) -> np.ndarray:
    """Draw permutations under the null hypothesis that labels depend on covariates and on nothing else.

    Parameters
    ----------
    values, groups, count, seed
        As for :func:`permuted_sources`.
    statistics
        Sufficient statistics of the labels, such as their one-hot code, dims ``(sample, statistic)``.
    parameters
        Natural parameters of the labels given the covariates, dims ``(sample, statistic)``: the density of a
        label is proportional to the exponential of their product with the statistics.

    Returns
    -------
    numpy.ndarray
        Dims ``(permutation, sample)``.

    Notes
    -----
    Berrett, Wang, Barber, Samworth, The conditional permutation test for independence while controlling for
    confounders, Journal of the Royal Statistical Society B 2020: pairs are exchanged with the odds that the
    density gives. The chain runs backwards from the labels, and then forwards once per permutation, so that
    labels and permutations are exchangeable.
    """
    units = Exchanges.of(values, groups)
    rng = np.random.default_rng(seed)
    rounds = [_pairings(units, groups, rng) for _ in range(_ROUNDS)]
    ordered = units.averaged(parameters[units.order])
    state = units.order[None].copy()
    for pairings in reversed(rounds):
        for pairs in reversed(pairings):
            _exchange(state, pairs, statistics, ordered, rng)
    state = np.repeat(state, count, axis=0)
    for pairings in rounds:
        for pairs in pairings:
            _exchange(state, pairs, statistics, ordered, rng)
    drawn = np.empty_like(state)
    drawn[:, units.order] = state[:, units.representatives]
    return drawn


def _exchange(
    state: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    statistics: np.ndarray,
    parameters: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Exchange the labels of each pair, or not, in each permutation."""
    first, second = pairs
    one, other = state[:, first], state[:, second]
    along = parameters[first] - parameters[second]
    log_odds = -np.einsum("cpmk,pmk->cp", statistics[one] - statistics[other], along)
    is_exchanged = (rng.random(log_odds.shape) < expit(log_odds))[..., None]
    state[:, first] = np.where(is_exchanged, other, one)
    state[:, second] = np.where(is_exchanged, one, other)


def _pairings(
    units: Exchanges, groups: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw disjoint pairs of units, as their positions, dims ``(pair, sample)``."""
    pairings = []
    for stratum in units.strata:
        pairs = rng.permutation(stratum)[: len(stratum) // 2 * 2].reshape(-1, 2)
        if units.is_mixed[stratum[0]]:
            pairings.append((units.positions(pairs[:, 0]), units.positions(pairs[:, 1])))
        else:
            pairings.append((units.starts[pairs[:, :1]], units.starts[pairs[:, 1:]]))
    ordered = groups[units.order]
    shuffled = np.lexsort((rng.random(len(groups)), ordered))
    at = np.flatnonzero((np.arange(len(groups)) - units.starts[ordered]) % 2 == 1)
    at = at[units.is_mixed[ordered[at]]]
    if len(at):
        pairings.append((shuffled[at - 1][:, None], shuffled[at][:, None]))
    return pairings
