"""Where the representation changes abruptly from one layer to the next."""

from functools import partial

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import parts
from .kernels.cka import align
from .kernels.segments import robust_z, segment
from .kernels.segments import transitions as abrupt

SURE = 0.9  # of the halves in which a boundary is found


def transitions(
    cube: xr.Dataset,
    *,
    values: str = "pooled",
    pairs: str | None = None,
    halves: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Find the layers after which the representation changes abruptly.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    values
        ``pooled`` or ``last``.
    pairs
        A label that samples share which are not independent.
    halves
        How many random halves of the samples are looked at, to see whether a transition stays.
    seed
        Of the halves.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, where ``layer`` is the lower of the two: ``distance``, 1 less the
        debiased CKA, with
        its 95% interval ``low`` to ``high``; ``z``, how far it is above the median of all, in robust standard
        deviations; ``transition``, whether z reaches 3.5 and the lower bound exceeds the median of the
        others;
        ``stability``, the part of the halves in which the layer × layer matrix, cut into as many segments as
        there are transitions and one more, is cut there; ``confirmed``, a transition with 0.9 of it.

    Raises
    ------
    InputError, MissingError
        Where there are fewer than 4 layers, or the cube lacks what is asked for.
    """
    own = parts.vectors(cube, values)
    n_layers = own.sizes["layer"]
    if n_layers < 4:
        raise InputError(
            [Fault("layer", f"{n_layers} layers show no change that stands out", "keep at least 4")]
        )
    labels = None if pairs is None else parts.column(own, pairs, "pairs")
    names = ["distance", "low", "high", "z", "transition", "stability"]

    def summarize(_language: str, places: np.ndarray) -> xr.Dataset:
        groups = np.arange(len(places)) if labels is None else parts.codes(labels[places])
        kernel = partial(_find, groups=groups, halves=halves, seed=seed)
        found = parts.apply(
            kernel,
            own.isel(sample=places),
            core=[["layer", "sample", "hidden"]],
            out=[["lower"]] * len(names),
            sizes={"lower": n_layers - 1},
            each=False,
        )
        return xr.Dataset(dict(zip(names, found, strict=True)))

    result = (
        parts.by_language(own, summarize).rename(lower="layer").assign_coords(layer=own.layer.values[:-1])
    )
    result["transition"] = result["transition"] == 1
    result["confirmed"] = result["transition"] & (result["stability"] >= SURE)
    result.attrs = parts.settings(
        own,
        "transitions",
        values=values,
        pairs=pairs,
        estimator="debiased",
        interval="95%, jackknife",
        halves=halves,
        seed=seed,
    )
    return result


def _find(x: np.ndarray, *, groups: np.ndarray, halves: int, seed: int) -> tuple[np.ndarray, ...]:
    whole = align(x, groups)
    distance, error = 1 - np.diagonal(whole.cka, offset=1), np.diagonal(whole.se, offset=1)
    low, high = distance - parts.Z95 * error, distance + parts.Z95 * error
    found = abrupt(distance, low)
    stability = np.full(len(distance), np.nan)
    if found.any() and halves:
        stability[:] = 0
        rng = np.random.default_rng(seed)
        n_groups = groups.max() + 1
        for _ in range(halves):
            chosen = np.isin(groups, rng.permutation(n_groups)[: n_groups // 2])
            cka = align(x[:, chosen], jackknife=False).cka
            if np.isfinite(cka).all():
                stability[segment(cka, int(found.sum()) + 1)] += 1 / halves
    return distance, low, high, robust_z(distance), found.astype(np.float64), stability
