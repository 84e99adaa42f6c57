"""Permutations of any labels, covariates, rank correlation and length matching, each alone."""

from itertools import permutations

import numpy as np
import pytest
from scipy.interpolate import CubicSpline
from scipy.stats import spearmanr
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from actkit.stats.kernels.covariates import Covariates, natural_spline
from actkit.stats.kernels.label_permutations import conditional_sources, permuted_sources
from actkit.stats.kernels.length_strata import length_matched, length_strata
from actkit.stats.kernels.rank_correlation import column_spearman, spearman_gradient, spearman_influence


def test_labels_are_exchanged_within_and_between_clusters() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 6.0])
    drawn = values[permuted_sources(values, groups, 300, seed=0)]
    # pairs of several values exchange both of them, in any order
    pairs = {tuple(row) for row in drawn[:, :4].tolist()}
    assert len(pairs) == 8
    assert all({row[:2], row[2:]} <= {(1, 2), (2, 1), (3, 4), (4, 3)} for row in pairs)
    # clusters of one value exchange it, whatever their size
    assert {tuple(row) for row in drawn[:, 4:].tolist()} == {(5, 5, 5, 6), (6, 6, 6, 5)}


def test_conditional_permutations_have_the_probabilities_of_the_model() -> None:
    values, parameters = np.array([0, 0, 1, 2]), np.array([[0.0, 1, -1], [0.5, 0, 0], [0, -1, 1], [1, 0, 0]])
    statistics = (values[:, None] == np.arange(3)).astype(float)
    drawn = values[conditional_sources(values, statistics, parameters, np.arange(4), 20_000, seed=0)]
    weights: dict[tuple[int, ...], float] = {}
    for order in set(permutations(values.tolist())):
        weights[order] = float(np.exp(parameters[np.arange(4), list(order)].sum()))
    total = sum(weights.values())
    for order, weight in weights.items():
        share = float((drawn == np.array(order)).all(axis=1).mean())
        assert share == pytest.approx(weight / total, abs=0.015)


def test_conditional_permutations_respect_clusters() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 6.0])
    none = np.zeros((8, 1))
    drawn = values[conditional_sources(values, values[:, None], none, groups, 300, seed=0)]
    assert len({tuple(row) for row in drawn[:, :4].tolist()}) == 8
    assert {tuple(row) for row in drawn[:, 4:].tolist()} == {(5, 5, 5, 6), (6, 6, 6, 5)}


def test_the_basis_spans_natural_splines_and_is_linear_outside() -> None:
    rng = np.random.default_rng(0)
    train = np.concatenate([[0.0, 1.0, 2.0, 3.0, 4.0], rng.uniform(0, 4, 100)])
    test = np.linspace(-3, 7, 30)
    basis, tested = natural_spline(train, test)
    knots = np.quantile(np.unique(train), np.linspace(0, 1, 5))
    spline = CubicSpline(knots, rng.standard_normal(5), bc_type="natural")
    design = np.column_stack([np.ones(len(train)), basis])
    coefficients, residuals, *_ = np.linalg.lstsq(design, spline(train))
    assert residuals.item() == pytest.approx(0, abs=1e-18)
    outside = (np.column_stack([np.ones(30), tested]) @ coefficients)[test < knots[0]]
    np.testing.assert_allclose(np.diff(outside, 2), 0, atol=1e-9)
    for distinct in (1, 2, 3):
        few = natural_spline(np.arange(12) % distinct, np.arange(5.0))
        assert [part.shape[1] for part in few] == [distinct - 1] * 2


def test_components_are_those_of_a_truncated_svd() -> None:
    rng = np.random.default_rng(0)
    words = ["dog", "cat", "sat", "mat", "on", "the", "a", "Very", "very", "old", "émigré", "who", "hat"]
    texts = ["\t".join(rng.choice(words, 6)) for _ in range(60)]
    train, test = np.arange(40), np.arange(40, 60)
    basis = Covariates(("tfidf",), np.ones(60), texts).basis(train, test)
    weighting = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 5), sublinear_tf=True)
    x, tested = weighting.fit_transform(texts[:40]), weighting.transform(texts[40:])
    svd = TruncatedSVD(10, algorithm="arpack", random_state=0).fit(x)
    for own, wanted in ((basis.train[:, 1:], svd.transform(x)), (basis.test[:, 1:], svd.transform(tested))):
        order = np.argsort(-np.square(basis.train[:, 1:]).sum(axis=0))
        np.testing.assert_allclose(np.abs(own[:, order]), np.abs(wanted), atol=1e-6)


@pytest.mark.parametrize("decimals", [8, 0])
def test_spearman_is_scipys_and_its_influence_that_of_leaving_out(decimals: int) -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.standard_normal(300) * 1.5, decimals)
    labels = np.round(scores + rng.standard_normal(300), decimals)
    value = column_spearman(scores[:, None], labels[:, None]).item()
    assert value == pytest.approx(spearmanr(scores, labels).statistic, abs=1e-12)
    left_out = [spearmanr(np.delete(scores, at), np.delete(labels, at)).statistic for at in range(300)]
    influence = spearman_influence(scores, labels)
    np.testing.assert_allclose(influence, value - np.array(left_out), atol=3e-4)
    assert np.corrcoef(influence, value - np.array(left_out))[0, 1] > 0.999


def test_the_gradient_of_spearman_is_that_of_small_changes() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal(2000)
    labels = scores + rng.standard_normal(2000)
    gradient, step = spearman_gradient(scores, labels), 0.02
    for direction in (labels, scores**3, np.sin(3 * labels)):
        ends = [spearmanr(scores + sign * step * direction, labels).statistic for sign in (1, -1)]
        assert gradient @ direction == pytest.approx((ends[0] - ends[1]) / 2 / step, rel=0.1, abs=0.01)
    assert gradient @ scores == pytest.approx(0, abs=1e-12)  # their scale changes nothing
    assert column_spearman(np.ones((5, 1)), np.arange(5.0)[:, None]).item() == 0
    assert np.isnan(column_spearman(np.arange(5.0)[:, None], np.ones((5, 1)))).all()


def test_matched_classes_have_equal_lengths_and_twins_stay_together() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 2)
    codes, lengths = np.arange(200) % 2, np.repeat(rng.integers(3, 9, 100), 2)
    alone = rng.random(200) < 0.8
    kept = length_matched(codes[alone], lengths[alone], groups[alone], seed=0)
    counts = [np.bincount(lengths[alone][kept & (codes[alone] == code)], minlength=9) for code in (0, 1)]
    np.testing.assert_array_equal(*counts)
    assert length_matched(codes, lengths, groups, seed=0).all()
    assert not length_matched(np.array([0, 0, 1, 1]), np.array([1, 2, 3, 4]), np.arange(4), seed=0).any()
    strata = length_strata(codes, lengths, 5)
    assert len(set(zip(strata.tolist(), codes.tolist(), strict=True))) == strata.max() + 1
