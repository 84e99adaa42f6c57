"""How well what tells two groups apart in one language does in another."""

import numpy as np
import xarray as xr

from ..errors import InputError
from . import parts
from .comparing import cut_folds, faults_of, two_labels
from .kernels import probes


def transfer(
    cube: xr.Dataset,
    *,
    by: str = "gender",
    across: str = "language",
    pairs: str | None = "image_id",
    labels: tuple[str, str] | None = None,
    values: str = "pooled",
    folds: int = 5,
    seeds: int = 1,
) -> xr.Dataset:
    """Train a probe in one language, and test it in each, on samples whose groups it has not seen.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    across
        What is told apart: ``language``, or a label column.
    by, pairs, labels, values, folds, seeds
        As for :func:`group_differential`. Without ``pairs``, samples of one ``sample_id`` stay together.

    Returns
    -------
    xarray.Dataset
        Dims ``(train, test, layer)``: ``auroc`` and ``auroc_sd`` over folds and seeds. Computed when asked
        for.

    Raises
    ------
    InputError
        As :func:`group_differential`.
    """
    own = parts.vectors(cube, values)
    chosen = parts.column(own, across, "across")
    names, kept, is_second = two_labels(own, by, labels)
    order = np.concatenate([places for _, places in parts.languages(own)])
    order = order[kept[order]]
    second = is_second[order]
    groups = parts.codes(parts.column(own, pairs or "sample_id", "pairs")[order])
    sides = list(dict.fromkeys(chosen[order].tolist()))
    side = np.array([sides.index(value) for value in chosen[order].tolist()])
    faults = [
        fault
        for number, name in enumerate(sides)
        for fault in faults_of(
            f"{across} {name}", second[side == number], groups[side == number], names, folds
        )
    ]
    if faults:
        raise InputError(faults, f"cannot compare {by}")
    cut = cut_folds(across, second, groups, folds, seeds)

    def kernel(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = probes.transfer_probe(x, second, side, cut)
        return np.nanmean(found, axis=2), np.nanstd(found, axis=2, ddof=1)

    sizes = {"train": len(sides), "test": len(sides)}
    mean, spread = parts.apply(
        kernel, own.isel(sample=order), core=[["sample", "hidden"]], out=[["train", "test"]] * 2, sizes=sizes
    )
    result = xr.Dataset({"auroc": mean, "auroc_sd": spread}).transpose("train", "test", "layer")
    index = np.array(sides, dtype=object)
    result = result.assign_coords(train=index, test=index, layer=own.layer.values)
    result.attrs = parts.settings(
        own,
        "transfer",
        by=by,
        across=across,
        labels=" to ".join(names),
        pairs=pairs,
        values=values,
        folds=folds,
        seeds=seeds,
    )
    return result
