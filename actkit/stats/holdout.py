"""Samples that the training of autoencoders leaves out, chosen by cluster."""

import hashlib
from math import ceil

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection

SHARE = 0.1


def held_out(
    cube: xr.Dataset | xr.DataArray, *, cluster: str | None, share: float = SHARE, seed: int = 0
) -> np.ndarray:
    """Return which samples are held out: all samples of some clusters.

    Parameters
    ----------
    cube
        Cube from :func:`actkit.canonical.as_cube`.
    cluster
        The label that dependent samples share; None if only samples of one id (translations) depend on each
        other.
    share
        Share of the clusters to hold out, above 0 and below 1; at least one cluster is held out and one is
        not.
    seed
        Seed of the choice.

    Returns
    -------
    numpy.ndarray
        Boolean, dims ``(sample,)``. It depends on the names of the clusters alone, not on the order of
        samples.

    Raises
    ------
    InputError
        If there is only one cluster, or the share is out of range.
    """
    if not 0 < share < 1:
        raise InputError([Fault("share", f"is {share}", "give a number above 0 and below 1")])
    names = cluster_names(cube, cluster)
    order = sorted(set(names), key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    if len(order) < 2:
        what = f"all samples belong to one cluster of `{cluster or 'sample_id'}`"
        raise InputError([Fault("cluster", what, "name a label with more values, or None")])
    chosen = set(order[: min(ceil(share * len(order)), len(order) - 1)])
    return np.array([name in chosen for name in names], dtype=bool)


def cluster_names(cube: xr.Dataset | xr.DataArray, cluster: str | None) -> list[str]:
    """Return the name of the cluster of each sample; without an entry, that of its translations.

    Parameters
    ----------
    cube
        The cube, or vectors from it.
    cluster
        The label that dependent samples share; None for translations only.
    """
    ids = cube["sample_id" if "sample_id" in cube.coords else "sample"].values.tolist()
    names = [f"id {name}" for name in ids]
    if cluster is not None:
        groups = selection.column(cube, cluster, "cluster")
        texts = groups.cell_texts().tolist()
        names = [
            f"cluster {text}" if code >= 0 else name
            for name, text, code in zip(names, texts, groups.codes.tolist(), strict=True)
        ]
    return names
