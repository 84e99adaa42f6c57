"""The arrays that hold a window while it is computed."""

from collections.abc import Sequence

import numpy as np

from ..planning import Plan
from ..schema import VARIABLES


class WindowBuffer:
    """The arrays of one window, allocated once and used for every other window.

    Parameters
    ----------
    plan
        Its shape and window give the sizes.
    variables
        Names of the variables to hold.
    """

    def __init__(self, plan: Plan, variables: Sequence[str]) -> None:
        self._arrays: dict[str, np.ndarray] = {}
        for variable in (VARIABLES[name] for name in variables):
            lengths = {**vars(plan.shape_of(variable)), "sample": plan.window}
            dtype = object if variable.dtype == "str" else variable.dtype
            # layers at which a component was not captured stay as they are here
            self._arrays[variable.name] = np.full(
                [lengths[dim] for dim in variable.dims], variable.fill_value, dtype=dtype
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def arrays(self, n_samples: int) -> dict[str, np.ndarray]:
        """Return the first samples of each variable, as views."""
        return {
            name: array[(slice(None),) * VARIABLES[name].sample_axis + (slice(n_samples),)]
            for name, array in self._arrays.items()
        }
