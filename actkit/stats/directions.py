"""Cosines between group directions, across layers and across languages."""

from typing import Any

import numpy as np
import xarray as xr

from ..canonical import Cube
from . import selection
from .finiteness import finite_cube
from .group_comparison import contrasts_of
from .kernels.contrasts import contrast, cosines, halves


def direction_cosines(
    cube: Cube,
    *,
    by: str,
    cluster: str | None = "image_id",
    between: tuple[Any, Any] | None = None,
    vectors: selection.Pooling = "pooled",
    splits: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Return cosines between the directions that separate two groups, across layers and across languages.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by, cluster, between, vectors
        As for :func:`actkit.group_differential`.
    splits
        Number of random split-halves from which the reliability of directions is estimated.
    seed
        Random seed of the splits.

    Returns
    -------
    xarray.Dataset
        ``layers``, cosines between layers, dims ``(language, layer, layer_2)``; ``languages``, cosines
        between languages at each layer, dims ``(language, language_2, layer)``, with ``ceiling``, the largest
        expected cosine given the reliabilities, and ``disattenuated``, the cosine over the ceiling, which may
        exceed 1; ``reliability`` of each direction, dims ``(language, layer)``. Lazy if the cube is.

    Raises
    ------
    InputError
        As for :func:`actkit.group_differential`.

    Notes
    -----
    ``reliability`` is the mean cosine between directions of two halves, corrected by the Spearman-Brown
    formula (Spearman 1910; Brown 1910); ``ceiling`` is the geometric mean of two reliabilities (Spearman, The
    proof and measurement of association between two things, American Journal of Psychology 1904). If samples
    of two languages show the same images, their errors are not independent, and the ceiling is approximate.
    """
    selection.check_counts(splits=splits)
    array = selection.vectors(finite_cube(cube), vectors)
    names, group_contrasts = contrasts_of(array, by=by, cluster=cluster, between=between, folds=2)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        group_contrast = group_contrasts[language]
        weights = halves(group_contrast.labels, group_contrast.groups, splits, seed=seed)
        full = contrast(group_contrast.labels)

        def kernel(x: np.ndarray) -> tuple[np.ndarray, float]:
            exact = x.astype(np.float64)
            exact -= exact.mean(axis=0)
            first, second = weights @ exact
            half_cosine = np.mean(cosines(first, second))
            return full @ exact, 2 * half_cosine / (1 + half_cosine) if half_cosine > -1 else np.nan

        core, out = [["sample", "hidden"]], [["hidden"], []]
        direction, reliability = selection.apply(
            kernel, array.isel(sample=group_contrast.places), core=core, out=out
        )
        return xr.Dataset({"direction": direction, "reliability": reliability})

    directions = selection.by_language(array, summarize).assign_coords(layer=array.layer.values)
    norm = np.sqrt((directions.direction**2).sum("hidden"))
    unit = directions.direction / norm.where(norm > 0)
    if unit.chunks is not None:  # small by now, and needed in full
        unit = unit.chunk(language=-1, layer=-1)
    reliability = directions.reliability.where(directions.reliability > 0)
    result = xr.Dataset(
        {
            "layers": xr.dot(unit, unit.rename(layer="layer_2"), dim="hidden"),
            "languages": xr.dot(unit, unit.rename(language="language_2"), dim="hidden"),
            "reliability": directions.reliability,
        }
    )
    is_other = result.language != result.language_2  # a language shares its errors with itself
    result["ceiling"] = np.sqrt(reliability * reliability.rename(language="language_2")).where(is_other)
    result["disattenuated"] = result["languages"] / result["ceiling"]
    result = result.transpose("language", "language_2", "layer", "layer_2")
    result.attrs = selection.settings(
        array,
        "direction_cosines",
        by=by,
        between=" to ".join(names),
        cluster=cluster,
        vectors=vectors,
        splits=splits,
        seed=seed,
    )
    return result
