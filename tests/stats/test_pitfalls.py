"""The figures of the methods page: a naive estimate is wrong where actkit's is right."""

import pytest

from benchmarks.pitfalls import pitfalls


@pytest.mark.slow
def test_actkit_is_near_the_truth_and_the_naive_estimate_is_not() -> None:
    for row in pitfalls(trials=5):
        assert row.actkit == pytest.approx(row.truth, abs=0.2), row.quantity
        assert abs(row.naive - row.truth) > 0.08 or "SMD" in row.quantity, row.quantity


@pytest.mark.nightly
def test_long_simulations_leave_no_doubt() -> None:
    for row in pitfalls(trials=400):
        assert row.actkit == pytest.approx(row.truth, abs=0.05), row.quantity
        assert abs(row.naive - row.truth) > 0.02, row.quantity
