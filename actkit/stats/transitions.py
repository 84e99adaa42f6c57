"""Detect change points of the representation along layers."""

from functools import partial

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .kernels.change_points import robust_z, segment
from .kernels.change_points import transitions as detect
from .kernels.cka import align

STABLE = 0.9  # share of half-samples required to confirm a change point


def transitions(
    cube: Cube,
    *,
    vectors: selection.Pooling = "pooled",
    cluster: str | None = None,
    halves: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Find change points: layers after which the representation changes far more than elsewhere.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    vectors
        ``pooled`` or ``last``.
    cluster
        A label; samples that share its value are not independent.
    halves
        Number of random half-samples on which the stability of a change point is tested.
    seed
        Random seed of the half-samples.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, where ``layer`` is the lower of the two: ``distance``, 1 minus the
        debiased CKA, with its 95% interval ``low`` to ``high``; ``z``, its modified z-score over layers;
        ``change_point``, whether ``z`` reaches 3.5 and ``low`` exceeds the median of the other distances;
        ``stability``, the share of half-samples in which kernel change-point detection on the layer × layer
        matrix places a change point there, with as many as were found; ``confirmed``, a change point with a
        stability of at least 0.9.

    Raises
    ------
    InputError, MissingError
        If there are fewer than 4 layers, or the cube lacks requested data.

    Notes
    -----
    Modified z-score: Iglewicz, Hoaglin, How to detect and handle outliers, ASQC Quality Press 1993. Kernel
    change-point detection: Harchaoui, Cappé, Retrospective multiple change-point estimation with kernels,
    IEEE SSP 2007. The rule of 3.5 is descriptive; it has no calibrated error rate.
    """
    selection.check_counts(0, halves=halves)
    array = selection.vectors(finite_cube(cube), vectors)
    n_layers = array.sizes["layer"]
    if n_layers < 4:
        raise InputError(
            [Fault("layer", f"{n_layers} layers are too few to detect change points", "keep at least 4")]
        )
    cluster_ids = None if cluster is None else selection.clusters(array, cluster)
    names = ["distance", "low", "high", "z", "change_point", "stability"]

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        groups = np.arange(len(samples)) if cluster_ids is None else selection.codes(cluster_ids[samples])
        kernel = partial(_change_points, groups=groups, halves=halves, seed=seed)
        outputs = selection.apply(
            kernel,
            array.isel(sample=samples),
            core=[["layer", "sample", "hidden"]],
            out=[["lower"]] * len(names),
            sizes={"lower": n_layers - 1},
            each=False,
        )
        return xr.Dataset(dict(zip(names, outputs, strict=True)))

    result = (
        selection.by_language(array, summarize)
        .rename(lower="layer")
        .assign_coords(layer=array.layer.values[:-1])
    )
    result["change_point"] = result["change_point"] == 1
    result["confirmed"] = result["change_point"] & (result["stability"] >= STABLE)
    result.attrs = selection.settings(
        array,
        "transitions",
        vectors=vectors,
        cluster=cluster,
        estimator="debiased",
        interval="95%, jackknife",
        halves=halves,
        seed=seed,
    )
    return result


def _change_points(x: np.ndarray, *, groups: np.ndarray, halves: int, seed: int) -> tuple[np.ndarray, ...]:
    original = align(x, groups)
    distance, se = 1 - np.diagonal(original.cka, offset=1), np.diagonal(original.se, offset=1)
    low, high = distance - selection.Z95 * se, distance + selection.Z95 * se
    is_change_point = detect(distance, low)
    stability = np.full(len(distance), np.nan)
    if is_change_point.any() and halves:
        stability[:] = 0
        rng = np.random.default_rng(seed)
        n_groups = groups.max() + 1
        for _ in range(halves):
            in_half = np.isin(groups, rng.permutation(n_groups)[: n_groups // 2])
            cka = align(x[:, in_half], jackknife=False).cka
            if np.isfinite(cka).all():
                stability[segment(cka, int(is_change_point.sum()) + 1)] += 1 / halves
    return distance, low, high, robust_z(distance), is_change_point.astype(np.float64), stability
