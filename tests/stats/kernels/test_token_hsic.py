"""HSIC of tokens from merged blocks of clusters against that of Gram matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actkit.stats.kernels.cka import align
from actkit.stats.kernels.token_hsic import ClusterBlock, Frame, TokenSums


def draw(seed: int, n: int = 60, hidden: int = 5, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, hidden)) @ rng.standard_normal((hidden, hidden)) + offset


def blocks_of(
    tokens: tuple[np.ndarray, np.ndarray], members: np.ndarray, frames: tuple[Frame, Frame] | None = None
) -> tuple[ClusterBlock, ClusterBlock]:
    """Return both representations as blocks, which are one if their tokens are the same."""
    of_x, of_y = frames or (Frame.of(tokens[0]), Frame.of(tokens[1]))
    x = ClusterBlock.of(tokens[0], members, of_x)
    is_same = np.array_equal(*tokens) and of_x.scale == of_y.scale
    return x, x if is_same else ClusterBlock.of(tokens[1], members, of_y)


def merged(x: np.ndarray, y: np.ndarray, clusters: np.ndarray, cuts: list[int]) -> TokenSums:
    """Merge the sums of blocks of whole clusters, whose tokens are in random order."""
    rng, total = np.random.default_rng(0), None
    for block in np.split(np.unique(clusters), sorted(cuts)):
        rows = rng.permutation(np.flatnonzero(np.isin(clusters, block)))
        if len(rows):
            members = np.unique(clusters[rows], return_inverse=True)[1]
            frames = (Frame.of(x[rows]), Frame.of(y[rows]))
            if total is not None:
                frames = total.frames[0].including(x[rows]), total.frames[1].including(y[rows])
            sums = TokenSums.of(*blocks_of((x[rows], y[rows]), members, frames))
            total = sums if total is None else total.merge(sums)
    assert total is not None
    return total


@given(st.integers(0, 2**31), st.lists(st.integers(0, 20), max_size=5), st.sampled_from([0.0, 1e3]))
def test_merged_blocks_have_the_cka_of_gram_matrices(seed: int, cuts: list[int], offset: float) -> None:
    """Clusters have more tokens than dimensions, or fewer."""
    both = np.stack([draw(seed, offset=offset), draw(seed + 1)])
    both[1] += both[0] - offset
    clusters = np.random.default_rng(seed).integers(0, 20, 60) ** 2 // 20
    wanted = align(both, clusters)
    pairs = [(0, 1), (0, 0), (1, 1)]
    sums = [merged(both[a], both[b], clusters, cuts) for a, b in pairs]
    cross, first, second = (part.hsic() for part in sums)
    assert cross / np.sqrt(first * second) == pytest.approx(wanted.cka[0, 1], abs=1e-9)
    members = np.unique(clusters, return_inverse=True)[1]
    left_out = [
        part.hsic_without(*blocks_of((both[a], both[b]), members, part.frames))
        for part, (a, b) in zip(sums, pairs, strict=True)
    ]
    np.testing.assert_allclose(
        left_out[0] / np.sqrt(left_out[1] * left_out[2]), wanted.left_out[:, 0, 1], atol=1e-9
    )


def test_fewer_than_four_clusters_have_no_hsic() -> None:
    tokens = draw(0, n=30), draw(1, n=30)
    assert np.isnan(TokenSums.of(*blocks_of(tokens, np.arange(30) // 10)).hsic())
    blocks = blocks_of(tokens, np.arange(30) % 4)
    four = TokenSums.of(*blocks)
    assert np.isfinite(four.hsic())
    assert np.isnan(four.hsic_without(*blocks)).all()


def test_parts_of_other_magnitudes_have_the_hsic_of_the_whole() -> None:
    parts = [draw(seed) * factor for seed, factor in enumerate((1e-200, 1e200, 0.0, 1.0))]
    x, clusters = np.concatenate(parts), np.arange(240) // 3
    blocks = merged(x, x, clusters, [20, 40, 60])
    whole = TokenSums.of(*blocks_of((x, x), clusters))
    assert blocks.frames[0].scale == whole.frames[0].scale
    assert blocks.hsic() == pytest.approx(whole.hsic(), rel=1e-9)
    tiny = np.concatenate([parts[2], parts[0]])
    assert merged(tiny, tiny, np.arange(120) // 3, [20]).hsic() > 0
