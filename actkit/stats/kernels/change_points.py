"""Change points along layers: steps that a smooth trend of the other steps does not explain."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.special import stdtrit

REACH = 4  # steps on either side that the trend is fitted to
FEWEST_STEPS = 5  # with fewer, the unevenness of the other steps cannot be estimated
EVENNESS = 0.1  # relative unevenness that steps have at least
LEVEL = 0.04  # of each bound, for all steps at once; simulated errors are up to a quarter more frequent
_OUTLIER_LEVEL = 0.02  # of the outliers that are removed, lower because they are looked for several times
_LEAST_FREEDOM = 1.5  # degrees of freedom
_TINY = 1e-12  # distances below are rounding errors


@dataclass(frozen=True)
class Contrasts:
    """Steps in relation to a smooth trend of the other steps, dims ``(layer,)``; NaN where untested.

    Parameters
    ----------
    trend
        Step size that the steps around predict.
    ratio
        Size of the step divided by the trend.
    low, high
        Simultaneous 95% interval of the ratio.
    """

    trend: np.ndarray
    ratio: np.ndarray
    low: np.ndarray
    high: np.ndarray


def contrasts(steps: np.ndarray, left_out: np.ndarray) -> Contrasts:
    """Compare each step with a local linear trend of the logarithms of the other steps.

    Parameters
    ----------
    steps
        Distances between adjacent layers, dims ``(layer,)``. Steps that are not positive are left out.
    left_out
        The same without one cluster of samples at a time, dims ``(cluster, layer)``.

    Notes
    -----
    The contrast of a step is the logarithm of its size minus the prediction of a least-squares line through
    up to 4 steps on either side. It is tested only between two steps, because the ends of a profile cannot be
    distinguished from a trend that rises there. Its variance is the sum of two parts: the unevenness of the
    profile, estimated from the same contrasts of the other steps, computed without the step [1]_, and the
    squared jackknife error of the contrast. The unevenness has the degrees of freedom of Satterthwaite's
    approximation [2]_, and is at least 10%. Intervals are Bonferroni's over all steps, at a nominal 4% that
    keeps simulated errors within 5%. Steps that are outlying are left out of the trend of the others. They
    are found by the generalized extreme Studentized deviate procedure [3]_, which several of them cannot
    mask.

    References
    ----------
    .. [1] Cook, Weisberg, Residuals and influence in regression, Chapman & Hall 1982.
    .. [2] Satterthwaite, An approximate distribution of estimates of variance components, Biometrics
       Bulletin 1946.
    .. [3] Rosner, Percentage points for a generalized ESD many-outlier procedure, Technometrics 1983.
    """
    n = len(steps)
    present = np.isfinite(steps) & (steps > _TINY)
    usable = np.where(present, steps, 1.0)
    logs = np.log(usable)
    n_clusters = len(left_out)
    # influence of each cluster on the logarithms, by the delta method
    influence = np.where(present, (left_out - left_out.mean(axis=0)) / usable, 0) if n_clusters > 1 else None
    result = np.full((3, n), np.nan)  # contrast, its standard error, and the critical value
    if influence is None or not np.isfinite(influence).all():
        return _in_steps(result, logs)
    removed: list[int] = []
    outlying = 0
    for _ in range(max(n // 5, 1)):
        tests = _tests(logs, influence, _without(present, removed), _OUTLIER_LEVEL)
        excess = np.abs(tests[0]) / (tests[1] * tests[2])
        if np.isnan(excess).all():
            break
        removed.append(int(np.nanargmax(excess)))
        if excess[removed[-1]] > 1:
            outlying = len(removed)
    removed = removed[:outlying]
    result = _tests(logs, influence, _without(present, removed), LEVEL)
    for step in removed:
        others = [other for other in removed if other != step]
        result[:, step] = _tests(logs, influence, _without(present, others), LEVEL)[:, step]
    return _in_steps(result, logs)


def _in_steps(tests: np.ndarray, logs: np.ndarray) -> Contrasts:
    contrast, error, critical = tests
    return Contrasts(
        np.exp(logs - contrast),
        np.exp(contrast),
        np.exp(contrast - critical * error),
        np.exp(contrast + critical * error),
    )


def _without(present: np.ndarray, steps: list[int]) -> np.ndarray:
    kept = present.copy()
    kept[steps] = False
    return kept


def _row(present: np.ndarray, step: int) -> np.ndarray | None:
    """Return the coefficients of a step's contrast; None unless it and steps on both sides are present."""
    if not present[step]:
        return None
    first = max(step - REACH, 0)
    others = first + np.flatnonzero(present[first : step + REACH + 1])
    offsets = (others - step)[others != step]
    if not len(offsets) or offsets[0] > 0 or offsets[-1] < 0:
        return None
    mean = offsets.mean()
    row = np.zeros(len(present))
    row[step] = 1
    row[step + offsets] = -1 / len(offsets) + mean * (offsets - mean) / np.square(offsets - mean).sum()
    return row


@dataclass(frozen=True)
class _Test:
    """How a step is tested: coefficients of its contrast, and those that unevenness is estimated from."""

    row: np.ndarray  # dims (layer,)
    others: np.ndarray  # contrasts of unit variance, dims (contrast, layer)
    freedom: float


@lru_cache(maxsize=2048)
def _test(present: tuple[bool, ...], step: int) -> _Test | None:
    """Return the test of a step given which steps are present; None if it cannot be tested."""
    row = _row(np.array(present), step)
    if row is None:
        return None
    others = np.array(present)
    others[step] = False
    rows = [_row(others, other) for other in np.flatnonzero(others).tolist()]
    matrix = np.array([other / np.linalg.norm(other) for other in rows if other is not None])
    if not len(matrix):
        return None
    form = matrix @ matrix.T
    freedom = float(np.trace(form) ** 2 / np.square(form).sum())
    return _Test(row, matrix, freedom) if freedom >= _LEAST_FREEDOM else None


def _tests(logs: np.ndarray, influence: np.ndarray, present: np.ndarray, level: float) -> np.ndarray:
    """Return the contrast of each step, its standard error and its critical value, dims ``(3, layer)``."""
    n_clusters = len(influence)
    result = np.full((3, len(logs)), np.nan)
    for step in np.flatnonzero(present).tolist():
        test = _test(tuple(present.tolist()), step)
        if test is None:
            continue
        unevenness = max(float(np.square(test.others @ logs).mean()), EVENNESS**2)
        sampling = (n_clusters - 1) / n_clusters * np.square(influence @ test.row).sum()
        result[0, step] = test.row @ logs
        result[1, step] = np.sqrt(test.row @ test.row * unevenness + sampling)
        result[2, step] = -stdtrit(test.freedom, level / len(logs))
    return result
