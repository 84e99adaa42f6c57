"""Powers of two that keep sums of products within the range of float64."""

import numpy as np


def unit_scale(values: np.ndarray, axis: int | tuple[int, ...] | None = None) -> np.ndarray:
    """Return the power of two that scales the largest magnitude to between 0.5 and 1.

    Multiplying by it is exact, so a scale-invariant statistic keeps its value. The result is float64 and has
    the dimensions of the values.

    Parameters
    ----------
    values
        Any dims, finite.
    axis
        Axes over which the largest magnitude is taken; all by default.

    Examples
    --------
    >>> unit_scale(np.array([3.0, -5e200])).tolist() == [2.0**-667]
    True
    """
    largest = np.maximum(
        values.max(axis=axis, keepdims=True, initial=0), -values.min(axis=axis, keepdims=True, initial=0)
    )
    # zeros get the scale of the smallest normal number, so they never determine a shared scale
    exponent = np.frexp(np.maximum(largest.astype(np.float64), np.finfo(np.float64).tiny))[1]
    return np.asarray(np.ldexp(1.0, -exponent))
