"""CKA in feature space equals that of Gram matrices."""

import numpy as np
import pytest

from actkit.stats.kernels.cka import align
from actkit.stats.kernels.feature_cka import adjacent_cka, pair_cka

N = 90
GROUPS = {
    "independent": None,
    "twins": np.arange(N) // 2,
    "of several sizes, mixed": np.random.default_rng(1).integers(0, 25, N) * 3,
    "few": np.arange(N) % 5,
}


def layers(hidden: int) -> np.ndarray:
    """Return related layers of different sizes, one far from 0 and one with a dominant dimension."""
    x = np.random.default_rng(0).standard_normal((4, N, hidden))
    x[1] += x[0]
    x[2] += x[1] + 100
    x[3] = 1e-3 * (x[3] + x[0])
    x[3, :, 0] *= 1e4
    return x


@pytest.mark.parametrize("hidden", [12, N, N + 30])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_it_equals_cka_of_gram_matrices(hidden: int, groups: np.ndarray | None) -> None:
    x = layers(hidden)
    wanted = align(x, groups)
    np.testing.assert_allclose(adjacent_cka(x, groups), np.diagonal(wanted.cka, 1), rtol=1e-11, atol=1e-12)
    for a, b in ((0, 1), (3, 0)):
        one = wanted.cka[a, b], wanted.se[a, b], wanted.biased[a, b]
        np.testing.assert_allclose(pair_cka(x[a], x[b], groups), one, rtol=1e-10)
    cka, se, biased = pair_cka(x[0], x[0], groups)
    assert (cka, biased) == pytest.approx((1, 1))
    assert se == pytest.approx(0, abs=1e-12)


def test_it_is_undefined_for_constants_and_few_clusters() -> None:
    x = layers(12)
    assert np.isnan(pair_cka(x[0], x[1], np.arange(N) % 3)).all()
    x[1] = 7
    assert np.isnan(adjacent_cka(x)).tolist() == [True, True, False]
