"""Directions from one group to another, to be probed or used in an intervention."""

from typing import Any, Literal

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .group_comparison import two_labels
from .holdout import cluster_names, held_out
from .token_selection import select_tokens


def group_directions(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = selection.AUTO,
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    fit: Literal["half", "all"] = "half",
    seed: int = 0,
) -> xr.Dataset:
    """Return the difference between the mean vectors of two groups at each layer.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by, cluster, between, vectors, tokens
        As for :func:`actkit.group_differential`.
    fit
        Clusters whose samples are used: ``half``, chosen at random, so that :func:`actkit.steer` reports its
        effects on the others; or ``all``.
    seed
        Random seed of the choice.

    Returns
    -------
    xarray.Dataset
        ``direction``, the mean of the second group minus that of the first, dims
        ``(language, layer, hidden)``; ``mean``, dims ``(group, language, layer, hidden)``; ``norm``, the
        length of the direction, dims ``(language, layer)``; and ``n``, the number of samples, dims
        ``(language, group)``. The coordinate ``fit_cluster`` names the clusters used. Lazy if the cube is.

    Raises
    ------
    InputError
        As for :func:`actkit.group_differential`.

    Notes
    -----
    Difference of means as in Arditi et al., Refusal in language models is mediated by a single direction,
    NeurIPS 2024.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> directions = group_directions(open_cube(write_cube(n_samples=80)), by="gender")
    >>> directions.direction.dims
    ('language', 'layer', 'hidden')
    """
    if fit not in ("half", "all"):
        raise InputError([Fault("fit", f"{fit!r} is not an option", "use 'half' or 'all'")])
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    choice = selection.cluster_choice(array, cluster, by)
    names, has_label, is_second = two_labels(array, by, between)
    used = np.ones(array.sizes["sample"], dtype=bool)
    if fit == "half":
        used = ~held_out(array, cluster=choice.name, share=0.5, seed=seed)
    clusters = cluster_names(array, choice.name)
    fitted = sorted({name for name, is_used in zip(clusters, used, strict=True) if is_used})
    masks = [used & ~is_second & has_label, used & is_second]
    present = [language for language, _ in selection.languages(array)]
    members = [
        np.flatnonzero(mask & (array.language.values == language)) for language in present for mask in masks
    ]
    faults = [
        Fault(
            f"{by} {names[at % 2]}",
            f"has no sample in {present[at // 2]}",
            "choose other labels, or fit='all'",
        )
        for at, places in enumerate(members)
        if not len(places)
    ]
    if faults:
        raise InputError(faults, "cannot compute directions")
    groups = [array.isel(sample=places).mean("sample", dtype=np.float64) for places in members]
    languages = xr.Variable("language", np.array(present, dtype=object))
    labels = xr.Variable("group", np.array(names, dtype=object))
    means = [
        xr.concat(groups[start::2], dim=languages, coords="minimal", compat="override") for start in (0, 1)
    ]
    mean = xr.concat(means, dim=labels, coords="minimal", compat="override").drop_attrs()
    direction = mean.isel(group=1, drop=True) - mean.isel(group=0, drop=True)
    result = xr.Dataset(
        {
            "direction": direction,
            "mean": mean,
            "norm": np.sqrt((direction**2).sum("hidden")),
            "n": (("language", "group"), np.reshape([len(places) for places in members], (-1, 2))),
        }
    )
    result = result.assign_coords(fit_cluster=np.array(fitted, dtype=object))
    result.attrs = selection.settings(
        array,
        "group_directions",
        by=by,
        between=" to ".join(names),
        first=names[0],
        second=names[1],
        vectors=vectors,
        fit=fit,
        seed=seed,
        hidden_size=array.sizes["hidden"],
        **choice.attrs,
    )
    for variable in result.data_vars.values():
        variable.attrs = dict(result.attrs)
    return result
