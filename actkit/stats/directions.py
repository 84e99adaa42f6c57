"""The direction in which two groups differ: between layers, and between languages."""

import numpy as np
import xarray as xr

from . import parts
from .comparing import contrasts_of
from .kernels.contrasts import contrast, cosines, halves


def direction_cosines(
    cube: xr.Dataset,
    *,
    by: str = "gender",
    pairs: str | None = "image_id",
    labels: tuple[str, str] | None = None,
    values: str = "pooled",
    splits: int = 20,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the direction in which two groups differ between layers, and between languages.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    by, pairs, labels, values
        As for :func:`actkit.group_differential`.
    splits
        How often samples are cut into halves, which tells how well a direction is known.
    seed
        Of the halves.

    Returns
    -------
    xarray.Dataset
        ``layers``, cosines between layers, dims ``(language, layer, layer_2)``; ``languages``, between
        languages at
        a layer, dims ``(language, language_2, layer)``, with ``ceiling``, the most it can be expected to
        be with directions known no better, and ``disattenuated``, the one over the other, which may exceed 1;
        ``reliability`` of each direction, dims ``(language, layer)``. Computed when asked for.

    Raises
    ------
    InputError
        As :func:`actkit.group_differential`.

    Notes
    -----
    ``reliability`` is the cosine of the directions of two halves, stepped up by the Spearman-Brown formula;
    the ceiling is the root of the product of two of them (Spearman 1904). Where samples of two languages
    come from the same images, their errors are not independent, and the ceiling is rough.
    """
    own = parts.vectors(cube, values)
    names, found = contrasts_of(own, by=by, pairs=pairs, labels=labels, folds=2)

    def summarize(language: str, _places: np.ndarray) -> xr.Dataset:
        each = found[language]
        weights = halves(each.labels, each.groups, splits, seed=seed)
        whole = contrast(each.labels)

        def kernel(x: np.ndarray) -> tuple[np.ndarray, float]:
            exact = x.astype(np.float64)
            exact -= exact.mean(axis=0)
            one, two = weights @ exact
            alike = np.mean(cosines(one, two))
            return whole @ exact, 2 * alike / (1 + alike) if alike > -1 else np.nan

        core, out = [["sample", "hidden"]], [["hidden"], []]
        direction, reliability = parts.apply(kernel, own.isel(sample=each.places), core=core, out=out)
        return xr.Dataset({"direction": direction, "reliability": reliability})

    table = parts.by_language(own, summarize).assign_coords(layer=own.layer.values)
    unit = table.direction / np.sqrt((table.direction**2).sum("hidden"))
    if unit.chunks is not None:  # small by now, and needed whole
        unit = unit.chunk(language=-1, layer=-1)
    reliability = table.reliability.where(table.reliability > 0)
    result = xr.Dataset(
        {
            "layers": xr.dot(unit, unit.rename(layer="layer_2"), dim="hidden"),
            "languages": xr.dot(unit, unit.rename(language="language_2"), dim="hidden"),
            "reliability": table.reliability,
        }
    )
    other = result.language != result.language_2  # with itself, errors are the same
    result["ceiling"] = np.sqrt(reliability * reliability.rename(language="language_2")).where(other)
    result["disattenuated"] = result["languages"] / result["ceiling"]
    result = result.transpose("language", "language_2", "layer", "layer_2")
    result.attrs = parts.settings(
        own,
        "direction_cosines",
        by=by,
        labels=" to ".join(names),
        pairs=pairs,
        values=values,
        splits=splits,
        seed=seed,
    )
    return result
