"""Debiased CKA between layers, languages and models."""

from collections.abc import Callable
from functools import partial
from itertools import combinations_with_replacement

import numpy as np
import xarray as xr
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..canonical import Cube
from ..errors import Fault, InputError, MissingError
from . import selection
from .finiteness import finite_cube
from .kernels import feature_cka
from .kernels.cka import align, minibatch_cka, top_share, unit_rms, without_top, z_scored
from .layer_alignment import layer_alignment, superdiagonal
from .matched_samples import Match, check_languages, same_samples
from .token_cka import sampled_tokens, token_cka
from .token_selection import select_tokens

_VARIANTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cka_without_top": without_top,
    "cka_z_scored": z_scored,
    "cka_unit_rms": unit_rms,
}
_CORE = [["layer", "sample", "hidden"]]


def cka(
    a: Cube,
    b: Cube | None = None,
    *,
    vectors: selection.Vectors = "pooled",
    tokens: selection.TokenSelection = "content",
    match: Match = "ids",
    cluster: str | None = selection.AUTO,
    batch: int | None = None,
    max_sampled_tokens: int = 4096,
    seed: int = 0,
) -> xr.Dataset:
    """Return the debiased linear CKA (centred kernel alignment) of every pair of layers.

    Parameters
    ----------
    a
        From :func:`actkit.open_cube`.
    b
        Another cube of the same samples, whose layers are compared with those of ``a``; by default, ``a``
        itself.
    vectors
        ``pooled``, ``last`` or ``prompt_end`` for one vector per sample; or ``tokens`` for content tokens.
    tokens
        As for :func:`adjacent_cka`.
    match
        How samples of two cubes are matched within each language. ``ids``: by ``sample_id``; if the data had
        no ids, so that these are row numbers, the texts of each pair must be equal. ``text``: by text, which
        must be unique within a cube.
    cluster
        The label that dependent samples share, such as twins; by default detected (see "Dependent samples" in
        the methods). Samples of a cluster are never compared with each other, each cluster has the same
        weight, and the jackknife deletes whole clusters. None if all samples are independent; tokens of a
        text are a cluster even then.
    batch
        Number of vectors per batch for minibatch CKA, which has no ``se``; by default, there is one batch. A
        batch holds one random vector of each of its clusters.
    max_sampled_tokens
        Maximum number of tokens drawn at random in each language if ``vectors`` is ``tokens``.
    seed
        Random seed of the tokens and batches.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer, layer_2)``: ``cka`` with its jackknife standard error ``se``, and
        ``cka_biased``, which has a floor far above 0. ``n``, the number of vectors, has dims ``(language,)``.
        Lazy if the cube is.

    Raises
    ------
    InputError, MissingError
        If the cubes share no samples, their samples cannot be matched, or they lack requested data.

    Notes
    -----
    The unbiased HSIC of Song et al. (JMLR 2012), averaged over all draws of one sample per cluster, and
    normalised as by Kornblith et al. (ICML 2019) and Nguyen et al. (ICLR 2021). It is about 0 for unrelated
    representations if clusters are independent of each other. It may be negative, is never clipped, and is
    NaN where it is undefined, as for fewer than 4 clusters.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> result = cka(open_cube(write_cube(n_samples=40)))
    >>> float(result.cka.sel(language="english", layer=0, layer_2=0).round(6))
    1.0
    """
    if b is not None and vectors == "tokens":
        raise InputError(
            [Fault("vectors", "tokens of two cubes cannot be matched", "compare pooled or last vectors")]
        )
    selection.check_counts(
        max_sampled_tokens=max_sampled_tokens, **({} if batch is None else {"batch": batch})
    )
    cubes = [select_tokens(finite_cube(cube), tokens) for cube in (a, b) if cube is not None]
    estimator = "debiased" if batch is None else f"minibatch of {batch}"
    arrays = [_vectors(cube, vectors, max_sampled_tokens, seed) for cube in cubes]
    if b is not None:
        arrays = list(_matched(arrays[0], arrays[1], match))
    choice = selection.cluster_choice(arrays[0], cluster)
    cluster_ids = _clusters(arrays[0], vectors, choice.name)

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        parts = [array.isel(sample=samples) for array in arrays]
        groups = None if cluster_ids is None else selection.codes(cluster_ids[samples])
        if b is None and batch is None:
            aligned = layer_alignment(parts[0], groups)
            return aligned[["cka", "se", "cka_biased"]].assign(n=len(samples))
        kernel = partial(_compare, groups=groups, batch=batch, seed=seed)
        if b is None:
            names, core, sizes = ["layer", "layer_2"], _CORE, {"layer_2": parts[0].sizes["layer"]}
        else:
            parts[1] = parts[1].rename(layer="layer_2", hidden="hidden_2")
            names, sizes = ["layer", "layer_2"], {}
            core = [*_CORE, ["layer_2", "sample", "hidden_2"]]
        out = [names] * (3 if batch is None else 1)
        outputs = selection.apply(kernel, *parts, core=core, out=out, sizes=sizes, each=False)
        result = xr.Dataset(dict(zip(("cka", "se", "cka_biased"), outputs, strict=False)))
        return result.assign(n=len(samples))

    result = selection.by_language(arrays[0], summarize)
    result = result.assign_coords(layer=arrays[0].layer.values, layer_2=arrays[-1].layer.values)
    result.attrs = selection.settings(
        arrays[0],
        "cka",
        vectors=vectors,
        match=None if b is None else match,
        estimator=estimator,
        **choice.attrs,
        model=cubes[0].attrs.get("model", ""),
        model_2=None if b is None else cubes[1].attrs.get("model", ""),
    )
    return result


def adjacent_cka(
    cube: Cube,
    *,
    vectors: selection.Vectors = "pooled",
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
    variants: bool = True,
) -> xr.Dataset:
    """Return the debiased CKA of adjacent layers.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    vectors
        ``pooled``, ``last`` or ``prompt_end``; or ``tokens`` for all content tokens, read block by block.
    tokens
        Tokens that the vectors represent: a :class:`TokenFilter`, or a kind of token as for
        :func:`layer_norms`. `pooled` and `last` of other tokens than ``content`` are computed from
        `residual`, which the cube must hold at all content tokens.
    cluster
        As for :func:`cka`.
    variants
        Whether to compute the variants that reveal dominant dimensions and vectors, which triples the work.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, layer)``, where ``layer`` is the lower of the two: ``cka`` with ``se`` and the 95%
        interval ``low`` to ``high``; ``cka_biased``; ``participation_ratio`` and ``top_share`` (share of the
        variance in the 3 largest dimensions) of the lower layer; ``cka_without_top`` (without those
        dimensions), ``cka_z_scored`` (dimensions scaled to equal variance), ``cka_unit_rms`` (vectors scaled
        to equal length); ``n`` with dims ``(language,)``. For ``tokens``, only ``cka``, ``se``, ``low``,
        ``high`` and ``n``.

    Raises
    ------
    InputError, MissingError
        If the cube lacks requested data.

    Notes
    -----
    See :func:`cka`. The participation ratio is the squared sum of the covariance eigenvalues over the sum of
    their squares.
    """
    cube = select_tokens(finite_cube(cube), tokens)
    selection.require(cube)
    choice = selection.cluster_choice(cube, cluster)
    if vectors == "tokens":
        result = token_cka(cube, choice.name)
    else:
        result = _adjacent(cube, vectors, choice.name, variants)
    result["low"], result["high"] = (
        result["cka"] - selection.Z95 * result["se"],
        result["cka"] + selection.Z95 * result["se"],
    )
    result.attrs = selection.settings(
        cube,
        "adjacent_cka",
        vectors=vectors,
        estimator="debiased",
        **choice.attrs,
        interval=f"95%, jackknife over {choice.name or 'samples'}",
    )
    return result


def language_cka(
    cube: Cube,
    *,
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
) -> xr.Dataset:
    """Return the debiased CKA between languages at each layer, on samples matched by ``sample_id``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with several languages.
    vectors, tokens, cluster
        As for :func:`cka`, except ``tokens``. The vectors are the samples' translations; two samples are of
        one cluster if they share a value in either language.

    Returns
    -------
    xarray.Dataset
        Dims ``(language, language_2, layer)``: ``cka``, ``se``, ``low``, ``high``, ``cka_biased``;
        ``n`` with dims ``(language, language_2)``.

    Raises
    ------
    InputError
        If no two languages share samples, or ``sample_id`` does not identify translations.
    """
    array = selection.vectors(select_tokens(finite_cube(cube), tokens), vectors)
    check_languages(array, "name samples by an id: `id_column`, or `data` of an import")
    choice = selection.cluster_choice(array, cluster)
    cluster_ids = _clusters(array, vectors, choice.name)
    ids = array.sample_id.values.astype(str)
    positions = dict(selection.languages(array))
    common = {
        (language, language_2): _common(ids, first, second)
        for language, first in positions.items()
        for language_2, second in positions.items()
    }
    if not any(len(shared[0]) for pair, shared in common.items() if pair[0] != pair[1]):
        raise InputError([Fault("sample_id", "no sample has the same id in two languages")])

    def compare(language: str, language_2: str) -> xr.Dataset:
        first, second = common[language, language_2]
        groups = None if cluster_ids is None else _joined(cluster_ids[first], cluster_ids[second])
        pair = [array.isel(sample=samples).drop_vars("sample") for samples in (first, second)]
        pair = pair[:1] if language == language_2 else pair
        core = [["sample", "hidden"]] * len(pair)
        outputs = selection.apply(partial(_pair_cka, groups=groups), *pair, core=core, out=[[], [], []])
        return xr.Dataset(dict(zip(("cka", "se", "cka_biased"), outputs, strict=True))).assign(n=len(first))

    index = [np.array(list(positions), dtype=object)] * 2
    compared = {pair: compare(*pair) for pair in combinations_with_replacement(positions, 2)}
    compared |= {pair[::-1]: result for pair, result in compared.items()}
    rows = [
        xr.concat(
            [compared[language, language_2] for language_2 in positions], xr.Variable("language_2", index[1])
        )
        for language in positions
    ]
    result = xr.concat(rows, xr.Variable("language", index[0])).assign_coords(layer=array.layer.values)
    result["low"], result["high"] = (
        result["cka"] - selection.Z95 * result["se"],
        result["cka"] + selection.Z95 * result["se"],
    )
    result.attrs = selection.settings(
        array,
        "language_cka",
        vectors=vectors,
        estimator="debiased",
        **choice.attrs,
        interval=f"95%, jackknife over {choice.name or 'samples'}",
    )
    return result


def _vectors(
    cube: xr.Dataset, vectors: selection.Vectors, max_sampled_tokens: int, seed: int
) -> xr.DataArray:
    if vectors == "tokens":
        return sampled_tokens(cube, max_sampled_tokens, seed)
    return selection.vectors(cube, vectors)


def _clusters(array: xr.DataArray, vectors: selection.Vectors, cluster: str | None) -> np.ndarray | None:
    if cluster is not None:
        return selection.clusters(array, cluster)
    return array.drawn_from.values if vectors == "tokens" else None


def _common(ids: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of samples with the same id, in the same order."""
    _, in_first, in_second = np.intersect1d(ids[first], ids[second], return_indices=True)
    return first[in_first], second[in_second]


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the cluster of each pair of samples; pairs that share a cluster of either sample are joined."""
    nodes = selection.codes(np.concatenate([first, second]))
    n, n_nodes = len(first), int(nodes.max(initial=-1)) + 1
    graph = coo_array((np.ones(n), (nodes[:n], nodes[n:])), shape=(n_nodes, n_nodes))
    return np.asarray(connected_components(graph, directed=False)[1][nodes[:n]])


def _matched(a: xr.DataArray, b: xr.DataArray, match: Match) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the samples that two cubes share, in the same order."""
    first, second = same_samples(a, b, match)
    b_matched = b.isel(sample=second).assign_coords(sample=a.sample.values[first])
    return a.isel(sample=first), b_matched


def _compare(
    x: np.ndarray, y: np.ndarray | None = None, *, groups: np.ndarray | None, batch: int | None, seed: int
) -> tuple[np.ndarray, ...]:
    """Return debiased CKA, its standard error and biased CKA for each pair of layers."""
    both = x if y is None else _stacked(x, y)
    if batch is not None:
        tables: tuple[np.ndarray, ...] = (minibatch_cka(both, groups, batch=batch, seed=seed),)
    else:
        aligned = align(both, groups)
        tables = (aligned.cka, aligned.se, aligned.biased)
    return tables if y is None else tuple(table[: len(x), len(x) :] for table in tables)


def _stacked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Stack layers of two widths, padded with zeros, which do not affect Gram matrices."""
    both = np.zeros((len(x) + len(y), x.shape[1], max(x.shape[2], y.shape[2])), dtype=np.result_type(x, y))
    both[: len(x), :, : x.shape[2]] = x
    both[len(x) :, :, : y.shape[2]] = y
    return both


def _pair_cka(*vectors: np.ndarray, groups: np.ndarray | None) -> tuple[float, float, float]:
    """Return debiased CKA, its standard error and biased CKA of one representation with itself, or of two."""
    return feature_cka.pair_cka(vectors[0], vectors[-1], groups)


def _adjacent(
    cube: xr.Dataset, vectors: selection.Pooling, cluster: str | None, variants: bool
) -> xr.Dataset:
    array = selection.vectors(cube, vectors)
    if array.sizes["layer"] < 2:
        raise MissingError("the cube has one layer, and layers are compared; select or extract several")
    cluster_ids = _clusters(array, vectors, cluster)
    names = ["top_share", *(_VARIANTS if variants else ())]

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        groups = None if cluster_ids is None else selection.codes(cluster_ids[samples])
        part = array.isel(sample=samples)
        aligned = layer_alignment(part, groups)
        result = superdiagonal(aligned[["cka", "se", "cka_biased"]])
        result["participation_ratio"] = aligned.participation_ratio.isel(layer=slice(None, -1))
        kernel = partial(_variant_tables, groups=groups, variants=variants)
        lower, out = {"lower": part.sizes["layer"] - 1}, [["lower"]] * len(names)
        outputs = selection.apply(kernel, part, core=_CORE, out=out, sizes=lower, each=False)
        tables = xr.Dataset(dict(zip(names, outputs, strict=True))).rename(lower="layer")
        return result.merge(tables).assign(n=len(samples))

    return selection.by_language(array, summarize).assign_coords(layer=array.layer.values[:-1])


def _variant_tables(x: np.ndarray, *, groups: np.ndarray | None, variants: bool) -> tuple[np.ndarray, ...]:
    changes = _VARIANTS.values() if variants else ()
    return (top_share(x)[:-1], *(feature_cka.adjacent_cka(change(x), groups) for change in changes))
