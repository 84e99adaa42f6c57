"""CKA against two other implementations, its definition and its invariances."""

from itertools import product

import numpy as np
import pytest
import torch
from ckatorch.core import cka_base, cka_batch
from ckatorch.hsic import hsic1
from hypothesis import given
from hypothesis import strategies as st
from rsatoolbox.data import Dataset
from rsatoolbox.rdm import compare
from rsatoolbox.rdm.calc import calc_rdm

from actkit.stats.kernels.cka import align, minibatch_cka, top_share, unit_rms, without_top, z_scored
from actkit.stats.kernels.hsic import _Clusters


def layers(seed: int = 0, n_layers: int = 3, n: int = 40, hidden: int = 12) -> np.ndarray:
    """Draw layers that each resemble the previous one."""
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal((n, hidden)) @ rng.standard_normal((hidden, hidden))]
    for _ in range(n_layers - 1):
        found.append(found[-1] @ rng.standard_normal((hidden, hidden)) / 4 + rng.standard_normal((n, hidden)))
    return np.stack(found)


def hsic_table(vectors: np.ndarray) -> np.ndarray:
    """Return the unbiased HSIC by its definition, with explicit matrices."""
    grams = [x @ x.T for x in vectors]
    n = len(grams[0])
    for gram in grams:
        np.fill_diagonal(gram, 0)
    one = np.ones(n)

    def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
        means = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ l) + means - 2 / (n - 2) * one @ k @ l @ one) / (n * (n - 3))

    return np.array([[hsic(k, l) for l in grams] for k in grams])  # noqa: E741


def defined(vectors: np.ndarray) -> np.ndarray:
    """Return debiased CKA by its definition."""
    table = hsic_table(vectors)
    return table / np.sqrt(np.outer(np.diagonal(table), np.diagonal(table)))


def drawn(vectors: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return debiased CKA from the HSIC averaged over every draw of one sample per cluster."""
    clusters = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    table = np.mean([hsic_table(vectors[:, list(draw)]) for draw in product(*clusters)], axis=0)
    return table / np.sqrt(np.outer(np.diagonal(table), np.diagonal(table)))


def test_biased_cka_equals_ckatorch() -> None:
    vectors = layers()
    found = align(vectors).biased
    for one in range(3):
        for two in range(3):
            pair = (torch.from_numpy(vectors[at]) for at in (one, two))
            assert found[one, two] == pytest.approx(float(cka_base(*pair, method="fro_norm")), abs=1e-9)


def test_biased_cka_equals_the_whitened_cosine_of_rsatoolbox() -> None:
    """Diedrichsen et al. (2020) show this for linear CKA and squared Euclidean distances."""
    vectors = layers(n=12)
    rdms = [calc_rdm(Dataset(x), method="euclidean") for x in vectors]
    found = align(vectors).biased
    for one in range(3):
        for two in range(3):
            wanted = compare(rdms[one], rdms[two], method="cosine_cov").item()
            assert found[one, two] == pytest.approx(wanted, abs=1e-9)


def test_debiased_cka_equals_ckatorch_and_the_definition() -> None:
    vectors = layers()
    found = align(vectors).cka
    np.testing.assert_allclose(found, defined(vectors), atol=1e-12)
    for one in range(3):
        for two in range(3):
            x, y = (torch.from_numpy(vectors[at])[None] for at in (one, two))
            assert found[one, two] == pytest.approx(float(cka_batch(x, y)), abs=1e-9)
    grams = torch.from_numpy(vectors @ vectors.transpose(0, 2, 1))
    table = np.array([[float(hsic1(k[None], other[None])) for other in grams] for k in grams])
    np.testing.assert_allclose(found, table / np.sqrt(np.outer(*[np.diagonal(table)] * 2)), atol=1e-9)


@pytest.mark.parametrize("grouped", [False, True])
def test_standard_error_equals_an_explicit_jackknife(grouped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = layers(n=14)
    groups = np.random.default_rng(1).permutation([0, 1, 1, 2, 3, 3, 3, 4, 5, 5, 6, 7, 8, 8])
    groups = groups if grouped else np.arange(14)
    left = np.array([drawn(vectors[:, groups != name], groups[groups != name]) for name in np.unique(groups)])
    spread = np.square(left - left.mean(axis=0)).sum(axis=0)
    wanted = np.sqrt((len(left) - 1) / len(left) * spread)
    np.testing.assert_allclose(align(vectors, groups if grouped else None).se, wanted, atol=1e-12)
    # the same result in blocks of a few clusters
    monkeypatch.setattr("actkit.stats.kernels.hsic._BLOCK_BYTES", 1)
    found = align(vectors, groups if grouped else None)
    np.testing.assert_allclose(found.se, wanted, atol=1e-12)
    np.testing.assert_allclose(found.left_out, left, atol=1e-12)
    np.testing.assert_allclose(found.cka, drawn(vectors, groups), atol=1e-12)


@given(st.integers(0, 2**31), st.floats(1e-3, 1e3))
def test_rotation_scale_shift_and_order_change_nothing(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = layers(seed % 1000)
    found = align(vectors)
    turned, _ = np.linalg.qr(rng.standard_normal((12, 12)))
    order = rng.permutation(vectors.shape[1])
    other = align((vectors @ turned * scale + rng.standard_normal(12) * scale)[:, order])
    np.testing.assert_allclose(other.cka, found.cka, atol=1e-9)
    np.testing.assert_allclose(other.se, found.se, atol=1e-9)
    np.testing.assert_allclose(other.biased, found.biased, atol=1e-9)
    np.testing.assert_allclose(other.participation, found.participation, rtol=1e-9)


def test_float32_with_offsets_of_10000_survives() -> None:
    shifted = (layers() + 1e4).astype(np.float32)
    wanted = defined(shifted.astype(np.float64) - 1e4)
    np.testing.assert_allclose(align(shifted).cka, wanted, atol=1e-9)
    # the rounding error of the offset itself is small
    np.testing.assert_allclose(align(shifted).cka, align(layers()).cka, atol=1e-2)


def test_unrelated_vectors_have_no_floor_but_the_biased_one_has() -> None:
    rng = np.random.default_rng(0)
    found = [align(rng.standard_normal((2, 60, 80))) for _ in range(40)]
    debiased = np.array([one.cka[0, 1] for one in found])
    assert abs(debiased.mean()) < 3 * debiased.std() / np.sqrt(40)
    assert (debiased < 0).any()
    assert np.mean([one.biased[0, 1] for one in found]) == pytest.approx(80 / (80 + 60), abs=0.05)


@pytest.mark.slow
def test_interval_has_nominal_coverage() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((8, 8))
    covered = []
    population = rng.standard_normal((20000, 8)) * np.linspace(2, 0.5, 8)
    noise = rng.standard_normal((20000, 8))
    truth = align(np.stack([population, population @ mixing / 3 + noise])[:, :4000], jackknife=False).cka[
        0, 1
    ]
    for _ in range(200):
        rows = rng.choice(20000, 80, replace=False)
        pair = np.stack([population[rows], population[rows] @ mixing / 3 + noise[rows]])
        found = align(pair)
        covered.append(abs(found.cka[0, 1] - truth) < 1.96 * found.se[0, 1])
    assert 0.88 <= np.mean(covered) <= 0.99


@given(st.integers(0, 2**31))
def test_cka_by_cluster_is_the_average_over_all_draws(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_clusters = int(rng.integers(4, 7))
    groups = rng.permutation(np.concatenate([np.arange(n_clusters), rng.integers(0, n_clusters, 5)]))
    vectors = layers(seed % 1000, n=len(groups), hidden=3)
    np.testing.assert_allclose(align(vectors, groups).cka, drawn(vectors, groups), atol=1e-10)
    np.testing.assert_allclose(align(vectors, groups, jackknife=False).cka, align(vectors, groups).cka)


def test_clusters_of_one_sample_are_no_clusters() -> None:
    vectors = layers(n=30)
    apart, grouped = align(vectors), align(vectors, np.random.default_rng(0).permutation(30))
    for name in ("cka", "se", "biased", "participation"):
        np.testing.assert_allclose(getattr(grouped, name), getattr(apart, name), atol=1e-12)
    # a cluster more often makes the paths differ, and a copy of a sample changes nothing
    repeated = np.concatenate([vectors, vectors[:, :1]], axis=1)
    copied = align(repeated, np.append(np.arange(30), 0))
    for name in ("cka", "se", "biased", "participation", "left_out"):
        np.testing.assert_allclose(getattr(copied, name), getattr(apart, name), atol=1e-12)


def test_repeated_samples_in_clusters_change_nothing() -> None:
    once = layers(n=30)
    twice = np.concatenate([once, once], axis=1)
    groups = np.tile(np.arange(30), 2)
    assert align(twice).se[0, 1] < 0.8 * align(once).se[0, 1]
    np.testing.assert_allclose(align(twice, groups).se, align(once).se, atol=1e-12)
    np.testing.assert_allclose(align(twice, groups).cka, align(once).cka, atol=1e-12)


def test_fewer_than_four_clusters_are_undefined() -> None:
    result = align(layers(n=30), np.arange(30) % 3)
    assert np.isnan(result.cka).all()
    assert np.isnan(result.se).all()
    four = align(layers(n=30), np.arange(30) % 4)
    assert np.isfinite(four.cka).all()
    assert np.isnan(four.se).all()  # three clusters remain


def test_minibatches_by_cluster_agree_with_all_clusters_on_average() -> None:
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(40), rng.integers(1, 6, 40)))
    vectors = 3 * rng.standard_normal((3, 40, 60))[:, groups] + rng.standard_normal((3, len(groups), 60))
    whole = align(vectors, groups, jackknife=False).cka
    batches = np.array([minibatch_cka(vectors, groups, batch=20, seed=seed) for seed in range(40)])
    np.testing.assert_allclose(batches.mean(axis=0), whole, atol=0.03)
    # layers are unrelated, but samples of a cluster are not
    assert abs(align(vectors, jackknife=False).cka - whole)[0, 1] > 0.2


def test_minibatches_of_all_are_the_whole_and_small_ones_agree_on_average() -> None:
    vectors = layers(n=400)
    whole = align(vectors, jackknife=False).cka
    np.testing.assert_allclose(minibatch_cka(vectors, batch=400), whole, atol=1e-12)
    found = np.mean([minibatch_cka(vectors, batch=50, seed=seed) for seed in range(20)], axis=0)
    np.testing.assert_allclose(found, whole, atol=0.01)


def test_minibatches_of_sorted_groups_show_what_all_show() -> None:
    """Differences between groups dominate CKA; batches in the order of the groups would miss them."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.standard_normal((4, 16)) * 5, 100, axis=0)
    vectors = np.stack([centres + rng.standard_normal((400, 16)) for _ in range(2)])
    whole = align(vectors, jackknife=False).cka[0, 1]
    in_order = [
        align(vectors[:, start : start + 100], jackknife=False).cka[0, 1] for start in range(0, 400, 100)
    ]
    assert whole > 0.9
    assert np.mean(in_order) < 0.5
    assert minibatch_cka(vectors, batch=100)[0, 1] == pytest.approx(whole, abs=0.03)


def test_too_few_samples_are_undefined_and_constant_ones_too() -> None:
    assert np.isnan(align(layers(n=3)).cka).all()
    vectors = layers()
    vectors[1] = 5.0
    found = align(vectors)
    assert np.isnan(found.cka[1]).all()
    assert np.isfinite(found.cka[0, 2])
    # only a last batch of fewer than four rows is dropped
    assert np.isfinite(minibatch_cka(layers(n=42), batch=40)).all()


def test_dominant_dimensions_are_reported_and_removed() -> None:
    vectors = layers()
    large = vectors.copy()
    large[:, :, 5] = 1000 * np.linspace(-1, 1, 40)
    assert align(large).cka[0, 1] > 0.999
    assert align(large).participation[0] == pytest.approx(1, abs=1e-2)
    assert top_share(large)[0] > 0.999
    kept = np.delete(vectors, 5, axis=2)
    dropped = without_top(large)
    assert (dropped[:, :, 5] == 0).all()
    assert ((dropped == 0).all(axis=1).sum(axis=1) == 3).all()
    assert align(dropped).cka[0, 1] == pytest.approx(align(kept).cka[0, 1], abs=0.2)
    np.testing.assert_allclose(z_scored(vectors).std(axis=1), 1)
    np.testing.assert_allclose(np.square(unit_rms(vectors)).mean(axis=2), 1)
    assert (z_scored(np.full((1, 5, 2), 3.0)) == 0).all()
    assert (unit_rms(np.zeros((1, 5, 2))) == 0).all()


@pytest.mark.parametrize("sizes", [[1] * 6, [2] * 5, [3, 3], [1, 2, 3], [2, 2, 1], [20, 20]])
def test_sums_by_cluster_equal_numpy(sizes: list[int]) -> None:
    members = np.repeat(np.arange(len(sizes)), sizes)
    values = np.random.default_rng(0).standard_normal((3, 2, len(members)))
    wanted = np.stack([values[..., members == at].sum(axis=-1) for at in range(len(sizes))], axis=-1)
    np.testing.assert_allclose(_Clusters.of(members).sums(values), wanted, rtol=1e-13, atol=1e-15)
