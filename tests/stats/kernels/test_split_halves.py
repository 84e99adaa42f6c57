"""Cosines from disjoint halves, against a plain computation that deletes clusters one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.stats.kernels.split_halves import (
    PAIR_SUMMARIES,
    RELIABILITIES,
    Cells,
    cluster_halves,
    half_cosines,
)

N_CLUSTERS, N_SPLITS = 14, 6


def two_languages(seed: int, effect: float = 2.0) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    """Vectors, and the rows, labels and clusters of two languages of which one lacks a few clusters."""
    rng = np.random.default_rng(seed)
    samples = []
    for start, n_clusters in ((0, N_CLUSTERS), (60, N_CLUSTERS - 2)):
        labels = rng.random(60) < 0.5
        samples.append((np.arange(start, start + 60), labels, rng.permutation(np.arange(60) % n_clusters)))
    vectors = rng.standard_normal((120, 5)) + 100
    for rows, labels, _ in samples:
        vectors[rows[labels]] += effect * np.array([1, 0.5, 0, 0, 0])
    return vectors, samples


def plain(
    vectors: np.ndarray,
    samples: list[tuple[np.ndarray, ...]],
    halves: np.ndarray,
    deleted: int = -1,
) -> tuple[float, float, float, float]:
    """Cosine, disattenuated cosine and reliabilities, from the formulas."""
    product, true, lengths = 0.0, np.zeros(2), np.zeros(2)
    for half_of in halves:
        directions = np.empty((2, 2, vectors.shape[1]))
        for language, (rows, labels, clusters) in enumerate(samples):
            for half in (0, 1):
                kept = (half_of[clusters] == half) & (clusters != deleted)
                x, y = vectors[rows[kept]], labels[kept]
                directions[language, half] = x[y].mean(axis=0) - x[~y].mean(axis=0)
        product += (directions[0, 0] @ directions[1, 1] + directions[0, 1] @ directions[1, 0]) / 2
        true += (directions[:, 0] * directions[:, 1]).sum(axis=1)
        lengths += np.square(directions).sum(axis=(1, 2)) / 2
    reliability = true / lengths
    return product / np.sqrt(lengths.prod()), product / np.sqrt(true.prod()), *reliability


@pytest.mark.parametrize("seed", range(3))
def test_values_and_intervals_are_those_of_the_formulas(seed: int) -> None:
    vectors, samples = two_languages(seed)
    cells = [Cells.of(*part, N_CLUSTERS) for part in samples]
    halves = cluster_halves(cells, N_SPLITS, seed=seed)
    pairs, reliabilities, directions = half_cosines(vectors, cells, halves)
    pair = dict(zip(PAIR_SUMMARIES, pairs[:, 0, 1], strict=True))
    whole = plain(vectors, samples, halves)
    without = np.array([plain(vectors, samples, halves, cluster) for cluster in range(N_CLUSTERS)])
    errors = np.sqrt((N_CLUSTERS - 1) / N_CLUSTERS * np.square(without - without.mean(axis=0)).sum(axis=0))
    assert pair["cosine"] == pytest.approx(whole[0], rel=1e-9)
    assert pair["cosine_low"] == pytest.approx(whole[0] - 1.959964 * errors[0], rel=1e-6)
    assert pair["ceiling"] == pytest.approx(np.sqrt(whole[2] * whole[3]), rel=1e-9)
    assert pair["disattenuated"] == pytest.approx(min(whole[1], 1), rel=1e-9)
    assert pair["disattenuated_low"] == pytest.approx(whole[1] - 1.959964 * errors[1], rel=1e-6)
    reliability = dict(zip(RELIABILITIES, reliabilities[:, 0], strict=True))
    assert reliability["reliability"] == pytest.approx(whole[2], rel=1e-9)
    assert reliability["reliability_low"] == pytest.approx(whole[2] - 1.959964 * errors[2], rel=1e-6)
    half = np.einsum("sh,sh->s", directions[0, :, 0], directions[1, :, 0]).mean()
    assert half / np.square(directions[:, :, 0]).sum(axis=2).mean() == pytest.approx(whole[2], rel=1e-9)


@given(st.integers(0, 2**31))
def test_halves_divide_each_kind_of_cluster_equally(seed: int) -> None:
    _, samples = two_languages(seed)
    cells = [Cells.of(*part, N_CLUSTERS) for part in samples]
    halves = cluster_halves(cells, N_SPLITS, seed=seed)
    assert set(np.unique(halves)) == {0, 1}
    kinds = np.concatenate([part.sizes > 0 for part in cells], axis=1)
    for kind in np.unique(kinds, axis=0):
        in_second = halves[:, (kinds == kind).all(axis=1)].sum(axis=1)
        assert (np.abs(2 * in_second - (kinds == kind).all(axis=1).sum()) <= 1).all()


def test_noise_is_undefined_and_no_cosine_exceeds_1() -> None:
    for seed in range(20):
        vectors, samples = two_languages(seed, effect=0.0)
        cells = [Cells.of(*part, N_CLUSTERS) for part in samples]
        pairs, reliabilities, _ = half_cosines(vectors, cells, cluster_halves(cells, 4, seed=seed))
        if not (reliabilities[1] > 0).all():
            assert np.isnan(pairs[PAIR_SUMMARIES.index("disattenuated"), 0, 1])
        assert not (np.abs(pairs) > 1).any()
    # equal vectors have no direction
    pairs, reliabilities, _ = half_cosines(np.ones((120, 5)), cells, cluster_halves(cells, 4, seed=0))
    assert np.isnan(pairs[:, 0, 1]).all()
    assert np.isnan(reliabilities).all()


def test_values_that_are_not_finite_give_nan() -> None:
    vectors, samples = two_languages(0)
    vectors[3, 2] = np.inf
    cells = [Cells.of(*part, N_CLUSTERS) for part in samples]
    for result in half_cosines(vectors, cells, cluster_halves(cells, 2, seed=0)):
        assert np.isnan(result).all()
