"""Similarity measures against other implementations; the permutations against explicit ones."""

from collections.abc import Callable

import numpy as np
import pytest
from rsatoolbox.rdm import RDMs, compare
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from sklearn.neighbors import NearestNeighbors

from actkit.stats.kernels import similarity as kernels
from actkit.stats.kernels.cka import align

N, K = 40, 5


def pair(seed: int = 0, hidden: tuple[int, int] = (12, 7)) -> tuple[np.ndarray, np.ndarray]:
    """Draw two related representations of different widths, with an offset."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, hidden[0])) + 1
    y = x @ rng.standard_normal(hidden) / 3 + rng.standard_normal((N, hidden[1]))
    return x, y


def identity(n: int = N) -> np.ndarray:
    return np.arange(n)[None]


def padded(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x, np.pad(y, ((0, 0), (0, x.shape[1] - y.shape[1])))])


def test_cka_is_that_of_the_other_kernel() -> None:
    x, y = pair()
    found = kernels.pair_similarities(
        kernels.cka_pairs(x)[None], kernels.cka_pairs(y)[None], identity()
    ).item()
    assert found == pytest.approx(align(padded(x, y)).cka[0, 1], abs=1e-12)


def test_rsa_is_that_of_rsatoolbox() -> None:
    x, y = pair()
    rdms = [RDMs(pdist(vectors, "cosine")[None]) for vectors in (x, y)]
    wanted = compare(*rdms, method="spearman").item()
    found = kernels.pair_similarities(
        kernels.rsa_pairs(x)[None], kernels.rsa_pairs(y)[None], identity()
    ).item()
    assert found == pytest.approx(wanted, abs=1e-12)


def test_neighbours_are_those_of_scikit_learn() -> None:
    x, y = pair()
    wanted = []
    for vectors in (x, y):
        brute = NearestNeighbors(n_neighbors=K, metric="cosine", algorithm="brute").fit(vectors)
        wanted.append(brute.kneighbors(return_distance=False))
    found = [kernels.neighbours(vectors, K) for vectors in (x, y)]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    share = np.mean([len(set(one) & set(two)) / K for one, two in zip(*wanted, strict=True)])
    overlap = kernels.neighbour_similarities(found[0][None], found[1][None], identity()).item()
    assert overlap == pytest.approx(share, abs=1e-12)


def test_procrustes_is_that_of_scipy() -> None:
    x, y = pair()
    components = [kernels.principal_components(vectors, 12)[None] for vectors in (x, y)]
    found = kernels.procrustes_similarities(*components, identity()).item()
    first, second = padded(x, y)
    assert found == pytest.approx(np.sqrt(1 - procrustes(first, second)[2]), abs=1e-10)
    centred = [one - one.mean(axis=0) for one in (first, second)]
    unit = [one / np.linalg.norm(one) for one in centred]
    assert found == pytest.approx(orthogonal_procrustes(*unit)[1], abs=1e-10)


@pytest.mark.parametrize("shape", [(30, 8), (30, 90)])
def test_components_are_the_leading_ones_at_any_shape(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape) * np.linspace(3, 1, shape[1])
    centred = x - x.mean(axis=0)
    values = np.linalg.svd(centred, compute_uv=False)[:6]
    found = kernels.principal_components(x, 6)
    np.testing.assert_allclose(
        np.sort(np.linalg.norm(found, axis=0))[::-1], values / np.linalg.norm(values), atol=1e-10
    )
    many = kernels.principal_components(x, 100)
    assert many.shape == (30, 100)
    np.testing.assert_allclose(many @ many.T, centred @ centred.T / np.square(centred).sum(), atol=1e-10)


REDUCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[..., np.ndarray]]] = {
    "cka": (kernels.cka_pairs, kernels.pair_similarities),
    "rsa": (kernels.rsa_pairs, kernels.pair_similarities),
    "mutual_knn": (lambda x: kernels.neighbours(x, K), kernels.neighbour_similarities),
    "procrustes": (lambda x: kernels.principal_components(x, 12), kernels.procrustes_similarities),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_permuted_similarities_are_those_of_permuted_samples(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_BLOCK", 100)
    reduce, compare_all = REDUCTIONS[name]
    x, y = pair()
    layers = [x, y, x + 1, y**2]
    orders = kernels.sample_orders(N, 3, seed=1)
    first, second = (np.stack([reduce(layer) for layer in half]) for half in (layers[:2], layers[1:]))
    found = compare_all(first, second, orders)
    assert found.shape == (4, 2, 3)
    for number, order in enumerate(orders):
        for row in range(2):
            for column in range(3):
                moved = reduce(layers[1 + column][order])[None]
                wanted = compare_all(first[row : row + 1], moved, identity()).item()
                assert found[number, row, column] == pytest.approx(wanted, abs=1e-9)
    paired = compare_all(first, second[:2], orders, paired=True)
    np.testing.assert_allclose(paired, np.diagonal(found[:, :, :2], axis1=1, axis2=2), atol=1e-12)
    # a representation is compared with itself: symmetric, 1 on the diagonal
    square = compare_all(second, second, orders)
    np.testing.assert_allclose(square, square.transpose(0, 2, 1), atol=1e-12)
    np.testing.assert_allclose(np.diagonal(square[0]), 1, atol=1e-12)
    upper = np.triu_indices(3)
    different = compare_all(second, second.copy(), orders)
    np.testing.assert_allclose(square[:, *upper], different[:, *upper], atol=1e-12)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_scale_changes_nothing(name: str, factor: float) -> None:
    reduce, compare_all = REDUCTIONS[name]
    x, y = pair()
    wanted = compare_all(reduce(x)[None], reduce(y)[None], identity()).item()
    found = compare_all(reduce(x * factor)[None], reduce(y * 3)[None], identity()).item()
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("name", ["cka", "rsa", "procrustes"])
def test_equal_vectors_have_no_similarity(name: str) -> None:
    reduce, compare_all = REDUCTIONS[name]
    constant, x = np.full((N, 12), 0.1), pair()[0]
    values = compare_all(reduce(constant)[None], reduce(x)[None], kernels.sample_orders(N, 4, 0))
    calibration = kernels.Calibration.of(values)
    for table in vars(calibration).values():
        assert np.isnan(table).all()


def test_the_calibration_counts_the_data_among_the_permutations() -> None:
    draws = np.array([0.5, 0.1, 0.3, 0.5, 0.6])[:, None]
    found = kernels.Calibration.of(draws)
    assert found.p.item() == pytest.approx(3 / 5)
    assert found.null_mean.item() == pytest.approx(0.375)
    assert found.null_sd.item() == pytest.approx(np.std([0.1, 0.3, 0.5, 0.6], ddof=1))
    assert found.calibrated.item() == pytest.approx(0.125 / 0.625)
