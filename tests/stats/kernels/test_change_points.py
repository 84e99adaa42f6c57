"""Outlying steps, and segmentation against exhaustive search."""

from itertools import combinations, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from actkit.stats.kernels.change_points import robust_z, segment, transitions


def test_only_the_planted_step_is_an_outlier() -> None:
    rng = np.random.default_rng(0)
    distance = np.abs(rng.normal(0.02, 0.003, 33))
    assert not transitions(distance, distance - 0.005).any()
    distance[20] = 0.1
    assert np.flatnonzero(transitions(distance, distance - 0.005)).tolist() == [20]
    assert robust_z(distance)[20] > 20
    # a step whose lower bound is not above the others is no change point
    low = distance - 0.005
    low[20] = 0.01
    assert not transitions(distance, low).any()


def test_layers_that_do_not_vary_have_no_z() -> None:
    assert np.isnan(robust_z(np.full(5, 0.1))).all()
    assert not transitions(np.full(5, 0.1), np.full(5, 0.05)).any()


def cost(similarity: np.ndarray, edges: tuple[int, ...]) -> float:
    bounds = [0, *(edge + 1 for edge in edges), len(similarity)]
    total = 0.0
    for begin, end in pairwise(bounds):
        block = similarity[begin:end, begin:end]
        total += np.trace(block) - block.sum() / len(block)
    return total


@given(st.integers(0, 2**31), st.integers(1, 4))
def test_segments_are_optimal(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).standard_normal((7, 3)).cumsum(axis=0)
    similarity = vectors @ vectors.T
    result = segment(similarity, count)
    assert len(result) == count - 1
    best = min(cost(similarity, edges) for edges in combinations(range(6), count - 1))
    np.testing.assert_allclose(cost(similarity, tuple(result.tolist())), best, atol=1e-9)


def test_blocks_are_found() -> None:
    similarity = np.full((9, 9), 0.3)
    similarity[:4, :4] = similarity[4:7, 4:7] = similarity[7:, 7:] = 0.95
    np.fill_diagonal(similarity, 1)
    assert segment(similarity, 3).tolist() == [3, 6]
