"""Measures of probes by layer and baseline: intervals, max-T permutation tests, paired differences."""

from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr

from . import selection
from .baseline_inputs import BASELINES
from .kernels import auroc

Kernel = Callable[[np.ndarray], tuple[np.ndarray, ...]]
_INFLUENCE = ["role", "cluster"]
_PARTS = ("", "_low", "_high", "_influence")


def measured(
    kernel: Kernel,
    array: xr.DataArray,
    measures: Sequence[str],
    *,
    n_clusters: int,
    extra: Sequence[tuple[str, Sequence[str]]] = (),
    sizes: dict[str, int] | None = None,
) -> xr.Dataset:
    """Apply a kernel that measures a probe to each layer.

    Parameters
    ----------
    kernel
        Takes the input of all samples and returns, for each measure, its value, the ends of its interval and
        the influence of each cluster; and then the extra results.
    array
        Dims ``(sample, hidden)`` or ``(sample,)`` last, and ``layer`` for layers.
    measures
        Names of the measures.
    n_clusters
        Number of clusters.
    extra
        Names and dims of the extra results.
    sizes
        Lengths of their dims.

    Returns
    -------
    xarray.Dataset
        Variables ``<measure>``, ``_low``, ``_high``, ``_influence``, and the extra results.
    """
    names = [f"{measure}{part}" for measure in measures for part in _PARTS]
    out = [[[], [], [], _INFLUENCE][at % len(_PARTS)] for at in range(len(names))]
    core = [[dim for dim in array.dims if dim != "layer"]]
    found = selection.apply(
        kernel,
        array,
        core=core,
        out=[*out, *(dims for _, dims in extra)],
        sizes={"role": 2, "cluster": n_clusters, **(sizes or {})},
    )
    return xr.Dataset(dict(zip([*names, *(name for name, _ in extra)], found, strict=True)))


def baselines_measured(
    kernels: dict[str, Kernel],
    inputs: dict[str, xr.DataArray],
    measures: Sequence[str],
    *,
    n_clusters: int,
) -> xr.Dataset:
    """Return the measures of each baseline, NaN for one without input; dims ``(baseline,)``.

    Parameters
    ----------
    kernels
        Kernel of each baseline.
    inputs
        From :func:`~actkit.stats.baseline_inputs.baseline_inputs`.
    measures, n_clusters
        As for :func:`measured`.
    """
    undefined = xr.Dataset()
    for measure in measures:
        for part in _PARTS[:3]:
            undefined[f"{measure}{part}"] = np.nan
        undefined[f"{measure}_influence"] = xr.DataArray(np.full((2, n_clusters), np.nan), dims=_INFLUENCE)
    parts = [
        measured(kernels[name], inputs[name], measures, n_clusters=n_clusters)
        if name in inputs
        else undefined
        for name in BASELINES
    ]
    return xr.concat(parts, xr.Variable("baseline", np.array(BASELINES, dtype=object)))


def p_values(value: xr.DataArray, draws: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """Return max-T permutation p-values, and the value that 95% of the permuted maxima stay below.

    Parameters
    ----------
    value
        The measure.
    draws
        Its values under permutations, or their largest values over further dims of the measure, dims
        ``(layer, draw)``.
    """
    largest = draws.max("layer")
    n_exceeding = (largest >= value).sum("draw")
    (bound,) = selection.apply(lambda drawn: (np.quantile(drawn, 0.95),), largest, core=[["draw"]], out=[[]])
    return ((1 + n_exceeding) / (1 + draws.sizes["draw"])).where(value.notnull()), bound


def with_baselines(
    layers: xr.Dataset,
    baselines: xr.Dataset,
    measures: Sequence[str],
    fewest: int,
    *,
    limits: tuple[float, ...] = (),
) -> xr.Dataset:
    """Return the measures of layers with those of baselines and the differences between the two.

    Parameters
    ----------
    layers, baselines
        From :func:`measured` and :func:`baselines_measured`.
    measures
        Names of the measures.
    fewest
        Number of clusters that have the rarest class.
    limits
        Those of AUROCs, as for :func:`~actkit.stats.kernels.auroc.paired_difference`.

    Returns
    -------
    xarray.Dataset
        For each measure, ``<measure>_<baseline>`` with its interval, and with dims ``(layer, baseline)``
        ``<measure>_difference`` with its interval and ``<measure>_difference_p``, corrected over layers.
    """
    result = layers.drop_vars([f"{measure}_influence" for measure in measures])
    for measure in measures:
        for name in BASELINES:
            for part in _PARTS[:3]:
                result[f"{measure}_{name}{part}"] = baselines[f"{measure}{part}"].sel(
                    baseline=name, drop=True
                )

        def kernel(*values: np.ndarray) -> tuple[float, ...]:
            first, second, *influences = values
            pair = (influences[0], influences[1])
            return auroc.paired_difference((first.item(), second.item()), pair, fewest, limits=limits)

        names = (measure, f"{measure}_influence")
        pairs = (layers[names[0]], baselines[names[0]], layers[names[1]], baselines[names[1]])
        *found, p = selection.apply(kernel, *pairs, core=[[], [], _INFLUENCE, _INFLUENCE], out=[[]] * 4)
        for part, values in zip(_PARTS[:3], found, strict=True):
            result[f"{measure}_difference{part}"] = values.transpose("layer", "baseline")
        (corrected,) = selection.apply(lambda each: (auroc.holm(each),), p, core=[["layer"]], out=[["layer"]])
        result[f"{measure}_difference_p"] = corrected.transpose("layer", "baseline")
    return result
