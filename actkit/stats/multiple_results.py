"""Holm's correction of p-values over languages and over several results."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import xarray as xr

from ..errors import Fault, InputError
from . import selection
from .kernels.multiple_tests import family_holm

_DIMS = {
    "p": ["layer"],
    "auroc_difference_p": ["layer"],
    "layer_difference_p": ["layer", "layer_2"],
}


def holm(results: xr.Dataset | Iterable[xr.Dataset]) -> list[xr.Dataset]:
    """Correct p-values over several results, such as those of several labels, and over their languages.

    Parameters
    ----------
    results
        From :func:`actkit.group_differential`, one or several.

    Returns
    -------
    list of xarray.Dataset
        The results. In each, ``p_holm``, ``auroc_difference_p_holm`` and ``layer_difference_p_holm`` are
        corrected over all languages of all results; the attribute ``n_results`` is their number. ``p``,
        ``auroc_difference_p`` and ``layer_difference_p``, corrected within a language, do not change, so
        results may be corrected again in another selection.

    Raises
    ------
    InputError
        If there are no results, or one of them lacks these p-values.

    Notes
    -----
    The p-values of one language in one result form a family and are already corrected over its layers. With m
    families left, p-values of at most 0.05 / m are significant, and a family leaves once all of its p-values
    are. With one layer, this is Holm's procedure (Scandinavian Journal of Statistics 1979). The smallest
    p-value of a permutation test, 1 / (permutations + 1), is multiplied by the number of families too: choose
    enough permutations.

    Examples
    --------
    >>> gender = actkit.group_differential(cube, by="gender")  # doctest: +SKIP
    >>> number = actkit.group_differential(cube, by="number")  # doctest: +SKIP
    >>> gender, number = actkit.holm([gender, number])  # doctest: +SKIP
    """
    results = [results] if isinstance(results, xr.Dataset) else list(results)
    hint = "correct only such results, with their dims (language, layer, layer_2)"
    faults = [
        Fault(f"results[{number}]", "is not a result of group_differential", hint)
        for number, result in enumerate(results)
        if not _is_result(result)
    ]
    if not results:
        faults.append(Fault("results", "are empty", "give at least one result"))
    if faults:
        raise InputError(faults)
    return [result.assign_attrs(n_results=len(results)) for result in over_languages(results)]


def _is_result(result: object) -> bool:
    """Return whether a Dataset has p-values with all of their dims."""
    return isinstance(result, xr.Dataset) and all(
        name in result and set(result[name].dims) >= {"language", *dims} for name, dims in _DIMS.items()
    )


def over_languages(
    results: Sequence[xr.Dataset], names: Mapping[str, Sequence[str]] = _DIMS
) -> list[xr.Dataset]:
    """Return results with p-values that are corrected over all of their languages.

    Parameters
    ----------
    results
        Datasets with p-values.
    names
        Names of the p-values, with their dims besides ``language``; by default those of :func:`holm`.
    """
    ends = np.cumsum([result.sizes["language"] for result in results])
    corrected = list(results)
    for name, within in names.items():
        joined = xr.concat([result[name] for result in results], "language", join="outer")
        dims = ["language", *within]
        (found,) = selection.apply(_corrected, joined, core=[dims], out=[dims])
        found = found.assign_coords({dim: joined[dim] for dim in within})
        for at, end in enumerate(ends):
            result = results[at]
            values = found.isel(language=slice(end - result.sizes["language"], end))
            values = values.sel({dim: result[dim] for dim in within}).assign_coords(language=result.language)
            corrected[at] = corrected[at].assign({f"{name}_holm": values.transpose(*result[name].dims)})
    return corrected


def with_holm(result: xr.Dataset) -> xr.Dataset:
    """Return a result in which every p-value, whose name ends in ``_p``, is corrected over languages too."""
    names = [str(name) for name in result.data_vars if str(name).endswith("_p")]
    dims = {name: [str(dim) for dim in result[name].dims if dim != "language"] for name in names}
    return over_languages([result], dims)[0]


def _corrected(p: np.ndarray) -> tuple[np.ndarray]:
    """Correct p-values over families, which are the rows."""
    return (family_holm(p.reshape(len(p), -1)).reshape(p.shape),)
