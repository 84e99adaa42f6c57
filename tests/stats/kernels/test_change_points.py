"""Contrasts of steps with a smooth trend: values, what is tested, several change points, and the level."""

import numpy as np
import pytest
from scipy.stats import t

from actkit.stats.kernels.change_points import EVENNESS, LEVEL, REACH, contrasts


def exact(steps: np.ndarray) -> np.ndarray:
    """Return replicates without sampling error."""
    return np.tile(steps, (10, 1))


def change_points(steps: np.ndarray) -> list[int]:
    return np.flatnonzero(contrasts(steps, exact(steps)).low > 1).tolist()


def line(steps: np.ndarray, step: int, left_out: tuple[int, ...] = ()) -> tuple[float, float]:
    """Return a step's residual of a fitted line, and the factor of its standard deviation."""
    near = [
        other
        for other in range(max(step - REACH, 0), min(step + REACH + 1, len(steps)))
        if other not in (step, *left_out)
    ]
    design = np.column_stack([np.ones(len(near)), np.array(near) - step])
    coefficients = np.linalg.lstsq(design, np.log(steps[near]), rcond=None)[0]
    factor = np.sqrt(1 + np.linalg.inv(design.T @ design)[0, 0])
    return float(np.log(steps[step]) - coefficients[0]), float(factor)


def test_the_interval_is_that_of_explicit_fits() -> None:
    steps = np.exp(0.3 * np.random.default_rng(0).standard_normal(14))
    result = contrasts(steps, exact(steps))
    for step in (1, 6, 12):
        residual, factor = line(steps, step)
        others = [line(steps, other, (step,)) for other in range(14) if other != step]
        # the first and the last of the others have no steps on one side
        standardized = np.array([value / scale for value, scale in others[1:-1]])
        spread = max(np.sqrt(np.square(standardized).mean()), EVENNESS)
        assert result.ratio[step] == pytest.approx(np.exp(residual), rel=1e-9)
        assert result.trend[step] == pytest.approx(steps[step] / np.exp(residual), rel=1e-9)
        critical = (residual - np.log(result.low[step])) / (factor * spread)
        # a t quantile with fewer degrees of freedom than there are other contrasts
        most, least = (t.ppf(1 - LEVEL / 14, freedom) for freedom in (5, len(standardized)))
        assert least < critical < most


def test_the_sampling_error_widens_the_interval() -> None:
    rng = np.random.default_rng(0)
    steps = np.exp(0.05 * rng.standard_normal(14))
    steps[6] *= 3
    noisy = steps * (1 + rng.standard_normal((400, 14)) * 0.4 / np.sqrt(399))
    narrow, wide = contrasts(steps, exact(steps)), contrasts(steps, noisy)
    assert narrow.low[6] > 1 > wide.low[6]
    assert wide.ratio[6] == pytest.approx(narrow.ratio[6])


def test_several_change_points_do_not_mask_each_other() -> None:
    steps = np.exp(0.1 * np.random.default_rng(0).standard_normal(22))
    steps[[5, 13, 14]] *= 3
    assert change_points(steps) == [5, 13, 14]
    assert contrasts(steps, exact(steps)).trend[13] < 1.5


def test_what_cannot_be_tested_is_nan() -> None:
    steps = np.exp(0.1 * np.random.default_rng(0).standard_normal(14))
    untested = [0, 13]
    assert np.flatnonzero(np.isnan(contrasts(steps, exact(steps)).low)).tolist() == untested
    steps[0] *= 30  # cannot be distinguished from a trend that rises there
    assert change_points(steps) == []
    # identical layers have no logarithm of a distance; undefined distances have no test either
    steps[[4, 9]] = 0, np.nan
    result = contrasts(steps, exact(steps))
    assert np.flatnonzero(np.isnan(result.ratio)).tolist() == [0, 4, 9, 13]
    assert np.isnan(contrasts(steps[:4], exact(steps[:4])).ratio).all()
    assert np.isnan(contrasts(steps, exact(steps)[:1]).ratio).all()


def test_a_much_smaller_step_is_no_change_point_and_hides_none() -> None:
    steps = np.exp(0.1 * np.random.default_rng(0).standard_normal(22))
    steps[5] /= 30
    steps[14] *= 3
    assert change_points(steps) == [14]


X = np.linspace(-1, 1, 15)
LAYER = np.arange(15)
SMOOTH = {
    "equal": np.ones(15),
    "rising at both ends": 1 + 9 * X**4,
    "rising steeply at both ends": 1 + 9 * (np.exp(-LAYER / 1.5) + np.exp(-LAYER[::-1] / 1.5)),
    "decaying": np.exp(-LAYER / 4),
    "decaying to a constant": 1 + 9 * np.exp(-LAYER / 3),
    "higher in the middle": 1 + 3 * np.exp(-6 * X**2),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("error", [0.0, 0.03, 0.1])
def test_smooth_profiles_have_no_change_point(name: str, error: float) -> None:
    rng = np.random.default_rng(0)
    noisy = SMOOTH[name] * np.exp(error * rng.standard_normal((50, 15)))
    assert np.mean([bool(change_points(steps)) for steps in noisy]) <= 0.04
