"""Detect change points of the representation along layers."""

from functools import partial

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import MissingError
from . import selection
from .finiteness import finite_cube
from .kernels.change_points import FEWEST_STEPS, contrasts
from .kernels.cka import standard_error
from .layer_alignment import layer_alignment, superdiagonal
from .token_selection import select_tokens


def transitions(
    cube: Cube,
    *,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
) -> xr.Dataset:
    """Find change points: steps between layers that a smooth trend of the other steps does not explain.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens, cluster
        As for :func:`adjacent_cka`.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, where ``layer`` is the lower of the two: ``distance``, 1 minus the
        debiased CKA, with its 95% interval ``low`` to ``high``; ``trend``, the distance that the steps around
        predict; ``ratio``, the distance divided by the trend, with the interval ``ratio_low`` to
        ``ratio_high``, which holds for all layers of a language at once with 95% confidence;
        ``change_point``, whether ``ratio_low`` exceeds 1. ``trend``, ``ratio`` and its interval are NaN for
        steps that cannot be tested, whose distances are only descriptive; the attribute ``untested`` names
        these steps and the reason.

    Raises
    ------
    InputError, MissingError
        If there are fewer than 2 layers, or the cube lacks the vectors.

    Notes
    -----
    If steps vary independently around a smooth trend, at least one of a language's steps is called a change
    point in at most 5% of cases. docs/methods/similarity.md gives the power, and the profiles on which both
    were measured.
    """
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    n_layers = array.sizes["layer"]
    if n_layers < 2:
        raise MissingError("the cube has one layer, and layers are compared; select or extract several")
    choice = selection.cluster_choice(array, cluster)
    cluster_ids = None if choice.name is None else selection.clusters(array, choice.name)
    names = ["distance", "low", "high", "trend", "ratio", "ratio_low", "ratio_high"]
    untested, testable = _untested(array.layer.values)

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        groups = None if cluster_ids is None else selection.codes(cluster_ids[samples])
        steps = superdiagonal(layer_alignment(array.isel(sample=samples), groups)[["cka", "left_out"]])
        outputs = selection.apply(
            partial(_steps, testable=testable),
            1 - steps.cka,
            1 - steps.left_out,
            core=[["layer"], ["cluster", "layer"]],
            out=[["layer"]] * len(names),
            each=False,
        )
        return xr.Dataset(dict(zip(names, outputs, strict=True)))

    result = selection.by_language(array, summarize).assign_coords(layer=array.layer.values[:-1])
    result["change_point"] = result["ratio_low"] > 1
    result.attrs = selection.settings(
        array,
        "transitions",
        vectors=vectors,
        **choice.attrs,
        estimator="debiased",
        interval=f"95%, jackknife over {choice.name or 'samples'}",
        ratio_interval="95% for all layers of a language at once",
        untested=untested,
    )
    return result


def _untested(layers: np.ndarray) -> tuple[str, bool]:
    """Return which steps cannot be tested, with the reason, and whether any can."""
    if len(layers) <= FEWEST_STEPS:
        problem = f"all steps: {len(layers)} layers are too few to estimate how uneven steps are"
        return f"{problem}, which takes {FEWEST_STEPS + 1}", False
    if len(np.unique(np.diff(layers))) > 1:
        return "all steps: the layers are not equally spaced, so the steps are not comparable", False
    return "the first and the last step: a trend needs steps on both sides", True


def _steps(distance: np.ndarray, left_out: np.ndarray, *, testable: bool) -> tuple[np.ndarray, ...]:
    margin = selection.Z95 * standard_error(left_out)
    bounds = distance, distance - margin, distance + margin
    if not testable:
        return *bounds, *np.full((4, len(distance)), np.nan)
    result = contrasts(distance, left_out)
    return *bounds, result.trend, result.ratio, result.low, result.high
