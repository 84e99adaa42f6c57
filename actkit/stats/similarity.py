"""Similarity of layers, cubes and languages by several measures, each calibrated by permutations."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .finiteness import finite_cube
from .kernels import similarity as kernels
from .matched_samples import Match, check_languages, same_samples
from .representatives import independence, representatives
from .token_selection import select_tokens

Measure = Literal["cka", "mutual_knn", "rsa", "procrustes"]
Across = Literal["layer", "language"]
MEASURES: tuple[str, ...] = get_args(Measure)
_RESULTS = ("similarity", "null_mean", "null_sd", "p", "calibrated")
_FEWEST = 4  # independent samples

_COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "cka": kernels.pair_similarities,
    "mutual_knn": kernels.neighbour_similarities,
    "rsa": kernels.pair_similarities,
    "procrustes": kernels.procrustes_similarities,
}


def similarity(
    a: Cube,
    b: Cube | None = None,
    *,
    measure: Measure = "cka",
    across: Across = "layer",
    layers: Sequence[int] | None = None,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    match: Match = "ids",
    cluster: str | None = selection.AUTO,
    max_samples: int | None = None,
    k: int = 10,
    n_components: int | None = 64,
    permutations: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Compare representations, and calibrate their similarity against permuted samples.

    Parameters
    ----------
    a
        From :func:`actkit.open_cube`.
    b
        Another cube of the same samples, whose layers are compared with those of ``a``.
    measure
        ``cka`` (debiased, linear); ``mutual_knn``, the share of nearest neighbours (by cosine) that two
        representations have in common; ``rsa``, Spearman's correlation of their cosine distances; or
        ``procrustes``, the similarity after the best rotation, between 0 and 1.
    across
        ``layer`` compares every pair of layers within each language: those of ``a``, or of ``a`` with ``b``.
        ``language`` compares every pair of languages of ``a`` at each layer, on samples matched by
        ``sample_id``.
    layers
        Layers compared, of each cube; all by default.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these vectors represent, as for :func:`adjacent_cka`.
    match
        How samples of two cubes are matched, as for :func:`cka`.
    cluster
        A label that dependent samples share, such as twins; ``auto`` detects it, and None treats samples as
        independent. One sample of each cluster, drawn at random, is compared, so that all permutations
        of samples are equally likely under the null.
    max_samples
        Maximum number of samples compared in each language, drawn at random, because the cost of ``cka`` and
        ``rsa`` grows with the square of their number; None for all.
    k
        Number of nearest neighbours for ``mutual_knn``.
    n_components
        Number of leading principal components that ``procrustes`` compares, because its cost grows with
        the third power of their number; None for all.
    permutations
        Number of permutations of the samples.
    seed
        Random seed of the samples of the clusters and of the permutations.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer, layer_2)``; or ``(language, language_2, layer)``, NaN between a language and
        itself: ``similarity``; its mean and standard deviation under permutation, ``null_mean`` and
        ``null_sd``; ``calibrated``, (similarity − null_mean) / (1 − null_mean), which is 0 on average for
        unrelated representations and 1 for equal ones; and the permutation ``p``, at least 1 / (permutations
        + 1) and not corrected for the number of pairs. ``n``, the number of samples compared, has dims
        ``(language,)`` or ``(language, language_2)``. Lazy if the cube is.

    Raises
    ------
    InputError, MissingError
        If a cube lacks a layer, the cubes or languages share no samples or their samples cannot be matched,
        or ``k`` is not below the number of samples.

    Notes
    -----
    With fewer than 4 samples, everything is NaN. For 34 layers and 2,000 samples of one language, 100
    permutations take 30 to 60 s of one core, and ``cka`` and ``rsa`` need 2 GB of memory for the values of
    all pairs of samples.

    Sources: :func:`cka`; Huh et al., ICML 2024; Kriegeskorte et al. 2008; Williams et al., NeurIPS 2021.
    Gröger et al. 2026, arXiv:2602.14486, show what goes wrong without calibration; they subtract a critical
    value of the null instead of its mean.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> result = similarity(open_cube(write_cube(n_samples=60)), measure="rsa", permutations=19).compute()
    >>> english = result.sel(language="english", layer=0)
    >>> [round(float(english[name].sel(layer_2=0)), 6) for name in ("similarity", "calibrated", "p")]
    [1.0, 1.0, 0.05]
    """
    _check(measure, across, b, k, permutations, n_components=n_components, max_samples=max_samples)
    arrays = [
        selection.vectors(selection.of_layers(select_tokens(finite_cube(cube), tokens), layers), vectors)
        for cube in (a, b)
        if cube is not None
    ]
    if b is not None:
        first, second = same_samples(arrays[0], arrays[1], match)
        arrays = [arrays[0].isel(sample=first), arrays[1].isel(sample=second)]
    choice = selection.cluster_choice(arrays[0], cluster)
    cluster_ids = None if choice.name is None else selection.clusters(arrays[0], choice.name)
    compare = partial(
        _compared, measure=measure, k=k, n_components=n_components, permutations=permutations, seed=seed
    )

    def entering(samples: np.ndarray) -> np.ndarray:
        """Return the positions, among the samples, of one sample of each cluster, at most `max_samples`."""
        positions = np.arange(len(samples))
        if cluster_ids is not None:
            positions = representatives(selection.codes(cluster_ids[samples]), seed)
        if max_samples is None or len(positions) <= max_samples:
            return positions
        return np.sort(np.random.default_rng(seed).choice(positions, max_samples, replace=False))

    if across == "language":
        result = _between_languages(arrays[0], entering, compare)
    else:

        def summarize(language: str, samples: np.ndarray) -> xr.Dataset:
            rows = samples[entering(samples)]
            return compare(*(array.isel(sample=rows) for array in arrays), where=language)

        result = selection.by_language(arrays[0], summarize)
        result = result.assign_coords(layer_2=arrays[-1].layer.values)
    result = result.assign_coords(layer=arrays[0].layer.values)
    result.attrs = selection.settings(
        arrays[0],
        "similarity",
        measure=measure,
        across=across,
        vectors=vectors,
        match=None if b is None else match,
        **choice.attrs,
        independence=independence(choice.name, seed),
        max_samples=max_samples,
        k=k if measure == "mutual_knn" else None,
        n_components=n_components if measure == "procrustes" else None,
        permutations=permutations,
        seed=seed,
        model_2=None if b is None else arrays[1].attrs.get("model", ""),
    )
    return result


def _check(
    measure: str, across: str, b: Cube | None, k: int, permutations: int, **limits: int | None
) -> None:
    given = {name: limit for name, limit in limits.items() if limit is not None}
    selection.check_counts(k=k, permutations=permutations, **given)
    faults = []
    if measure not in MEASURES:
        faults.append(Fault("measure", f"{measure!r} is unknown", f"one of {', '.join(MEASURES)}"))
    if across not in get_args(Across):
        faults.append(Fault("across", f"{across!r} is unknown", "layer or language"))
    elif across == "language" and b is not None:
        faults.append(
            Fault("across", "languages are compared within one cube", "leave out `b`, or compare layers")
        )
    if faults:
        raise InputError(faults)


def _between_languages(
    array: xr.DataArray, entering: Callable[[np.ndarray], np.ndarray], compare: Callable[..., xr.Dataset]
) -> xr.Dataset:
    """Compare every pair of languages at each layer."""
    check_languages(array, "name samples by an id: `id_column`, or `data` of an import")
    ids = array.sample_id.values.astype(str)
    positions = dict(selection.languages(array))
    names = list(positions)
    tables: dict[tuple[str, str], xr.Dataset] = {}
    for at, language in enumerate(names):
        for language_2 in names[at + 1 :]:
            first, second = positions[language], positions[language_2]
            _, in_first, in_second = np.intersect1d(ids[first], ids[second], return_indices=True)
            if not len(in_first):
                continue
            first, second = first[in_first], second[in_second]
            rows = entering(first)
            pair = [array.isel(sample=samples[rows]) for samples in (first, second)]
            table = compare(*pair, where=f"{language} and {language_2}", paired=True)
            tables[language, language_2] = tables[language_2, language] = table
    if not tables:
        raise InputError([Fault("sample_id", "no sample has the same id in two languages")])
    absent = next(iter(tables.values()))
    undefined = absent.where(False).assign(n=0)
    index = np.array(names, dtype=object)
    return xr.concat(
        [
            xr.concat(
                [tables.get((row, column), undefined) for column in names], xr.Variable("language_2", index)
            )
            for row in names
        ],
        xr.Variable("language", index),
    )


def _compared(
    a: xr.DataArray,
    b: xr.DataArray | None = None,
    *,
    where: str,
    measure: str,
    k: int,
    n_components: int | None,
    permutations: int,
    seed: int,
    paired: bool = False,
) -> xr.Dataset:
    """Compare the layers of one or two arrays of the same samples, in the same order."""
    arrays = [array for array in (a, b) if array is not None]
    n, layers = a.sizes["sample"], [arrays[0].sizes["layer"], arrays[-1].sizes["layer"]]
    dims = ["layer"] if paired else ["layer", "layer_2"]
    if n < _FEWEST:
        undefined = xr.DataArray(np.full(layers[: len(dims)], np.nan), dims=dims)
        return xr.Dataset(dict.fromkeys(_RESULTS, undefined)).assign(n=n)
    if measure == "mutual_knn" and k >= n:
        problem = f"is {k}, but {where} has {n} independent samples"
        raise InputError([Fault("k", problem, "give a smaller number, or select other languages")])
    count = min(n, max(array.sizes["hidden"] for array in arrays), n_components or n)
    reduced = [_reduced(array, measure, k, count) for array in arrays]
    core = [["layer", *reduced[0].dims[1:]]]
    if b is not None:
        index = "layer" if paired else "layer_2"
        reduced[1] = reduced[1].rename(layer=index) if index != "layer" else reduced[1]
        core.append([index, *reduced[1].dims[1:]])
    orders = kernels.sample_orders(n, permutations, seed)

    def calibrate(*parts: np.ndarray) -> tuple[np.ndarray, ...]:
        if measure == "mutual_knn":
            parts = tuple(part.astype(np.int64) for part in parts)
        values = _COMPARISONS[measure](parts[0], parts[-1], orders, paired=paired)
        found = kernels.Calibration.of(values)
        return tuple(getattr(found, name) for name in _RESULTS)

    sizes = {"layer_2": layers[1]} if b is None else {}
    outputs = selection.apply(
        calibrate, *reduced, core=core, out=[dims] * len(_RESULTS), sizes=sizes, each=False
    )
    return xr.Dataset(dict(zip(_RESULTS, outputs, strict=True))).assign(n=n)


def _reduced(array: xr.DataArray, measure: str, k: int, count: int) -> xr.DataArray:
    """Reduce each layer to what the measure compares, one layer at a time."""
    n = array.sizes["sample"]
    if measure == "mutual_knn":
        kernel: Callable[..., np.ndarray] = partial(kernels.neighbours, k=k)
        sizes = {"row": n, "neighbour": k}
    elif measure == "procrustes":
        kernel, sizes = (
            partial(kernels.principal_components, n_components=count),
            {"row": n, "component": count},
        )
    else:
        kernel = kernels.cka_pairs if measure == "cka" else kernels.rsa_pairs
        sizes = {"pair": n * (n - 1) // 2}
    (reduced,) = selection.apply(
        lambda x: (kernel(x),), array, core=[["sample", "hidden"]], out=[list(sizes)], sizes=sizes
    )
    return reduced.transpose("layer", *sizes)
