"""Scales are powers of two for any finite magnitude."""

import numpy as np
import pytest

from actkit.stats.kernels.magnitude import unit_scale


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_largest_magnitude_comes_close_to_1(dtype: str) -> None:
    limits = np.finfo(dtype)
    # a subnormal float64 has no exact scale, because its inverse would be infinite
    smallest = limits.tiny if dtype == "float64" else limits.smallest_subnormal
    for number in (limits.max, -limits.max, smallest, -3.0, 1.0):
        values = np.array([0, number], dtype=dtype)
        scale = unit_scale(values)
        assert scale.dtype == np.float64
        assert np.frexp(scale)[0] == 0.5
        assert 0.5 <= np.abs(values * scale).max() < 1


def test_each_row_has_its_own_scale() -> None:
    values = np.array([[3.0, -5.0], [0.1, 0.0]])
    assert unit_scale(values, axis=1).tolist() == [[2.0**-3], [2.0**3]]


def test_zeros_never_decide_on_a_scale_in_common() -> None:
    assert unit_scale(np.zeros(3)) >= unit_scale(np.array([np.finfo(np.float64).tiny]))
