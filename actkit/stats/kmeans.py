"""k-means clustering of samples or tokens, with its stability and its agreement with labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import xarray as xr

from ..canonical import Cube
from ..errors import Fault, InputError
from . import selection
from .cluster_detection import ClusterChoice
from .finiteness import finite_cube
from .kernels import kmeans as kernels
from .kernels.similarity import principal_components
from .token_cka import sampled_tokens
from .token_selection import select_tokens

Criterion = Literal["silhouette", "stability"]
CANDIDATES = tuple(range(2, 11))
_BY_CANDIDATE = ("inertia", "silhouette", "stability")
_AGREEMENTS = [f"{name}{end}" for name in kernels.AGREEMENTS for end in ("", "_null_mean", "_p")]
_SHOWN = ("sample_id", "text")


@dataclass(frozen=True)
class _Options:
    """Options that both functions share."""

    candidates: tuple[int, ...]
    criterion: Criterion
    n_components: int
    resamples: int
    permutations: int
    seed: int


def cluster_samples(
    cube: Cube,
    *,
    k: int | Sequence[int] = CANDIDATES,
    criterion: Criterion = "silhouette",
    layers: Sequence[int] | None = None,
    by: str | Sequence[str] = (),
    vectors: selection.Pooling = "pooled",
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
    n_components: int = 50,
    resamples: int = 10,
    permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Divide the samples of each language into k-means clusters, layer by layer.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    k
        Number of k-means clusters, or several candidates, of which the best is chosen.
    criterion
        Choice between candidates: the largest ``silhouette`` or the largest ``stability``.
    layers
        Layers; all by default.
    by
        Labels with which the result is compared.
    vectors
        ``pooled``, ``last`` or ``prompt_end``.
    tokens
        Tokens that these vectors represent, as for :func:`adjacent_cka`.
    cluster
        The label that *dependent* samples share, such as twins: not a k-means cluster. By default detected
        (see "Dependent samples" in the methods). None if all samples are independent.
    n_components
        Number of leading principal components to which vectors are reduced first.
    resamples
        Number of random divisions into halves for ``stability``.
    permutations
        Number of permutations of each label, which respect ``cluster``, unless it is the label itself.
    seed
        Random seed.

    Returns
    -------
    xarray.Dataset
        - Dims ``(layer, sample)``: ``assignment``, the k-means cluster of each sample within its language,
          numbered from the largest, which is 0; -1 if undefined. The coordinates of ``sample`` include
          ``text``, ``sample_id``, ``sample_language`` and the labels; a label whose name the result already
          uses, such as ``label``, is called ``label_label``.
        - Dims ``(language, layer)``: ``k``, the number of k-means clusters chosen.
        - Dims ``(language, layer, candidate)``: ``inertia``, the sum of squared distances to the centres;
          the mean ``silhouette``; and ``stability``, the mean adjusted Rand index of fits to two disjoint
          halves of the data, which consist of whole values of ``cluster``. NaN unless there are more distinct
          vectors than k-means clusters.
        - Dims ``(language, layer, label)``, with ``by``: ``adjusted_rand`` and
          ``adjusted_mutual_information`` between assignment and label, which are 0 on average by chance and 1
          if both agree; for each, ``_null_mean`` under permuted labels and ``_p``, not corrected for the
          number of layers and labels.

        Lazy if the cube is.

    Raises
    ------
    InputError, MissingError
        If the cube lacks a layer, a label or the vectors, or an option is out of range.

    Notes
    -----
    k-means: scikit-learn, the best of 5 starts. Silhouette: Rousseeuw 1987. Adjusted Rand index: Hubert,
    Arabie 1985. Adjusted mutual information: Vinh, Epps, Bailey 2010. Stability: Lange, Roth, Braun, Buhmann
    2004.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=40))
    >>> result = cluster_samples(cube, k=2, layers=[1], by="gender", permutations=19).compute()
    >>> english = result.isel(sample=(result.sample_language == "english").values)
    >>> texts = english.text[english.assignment.sel(layer=1) == 0]  # of the largest k-means cluster
    >>> len(texts) >= 10
    True
    """
    options = _options(k, criterion, n_components, resamples, permutations, seed)
    array = selection.vectors(selection.of_layers(select_tokens(finite_cube(cube), tokens), layers), vectors)
    names = _names(by)
    choice, groups = _dependent(array, array, cluster, names, np.arange(array.sizes["sample"]))
    result = _clustered(array, groups, names, options)
    shown = [name for name in (*_SHOWN, *selection.label_names(array)) if name in array.coords]
    result = result.assign_coords(
        sample=array.sample.values, sample_language=("sample", array.language.values)
    )
    result = _with_labels(result, "sample", {name: array[name] for name in shown})
    result.attrs = _settings(array, "cluster_samples", options, vectors=vectors, **choice.attrs)
    return result


def cluster_tokens(
    cube: Cube,
    *,
    k: int | Sequence[int] = CANDIDATES,
    criterion: Criterion = "silhouette",
    layers: Sequence[int] | None = None,
    by: str | Sequence[str] = (),
    tokens: selection.TokenSelection = "content",
    cluster: str | None = selection.AUTO,
    max_sampled_tokens: int = 4096,
    n_components: int = 50,
    resamples: int = 10,
    permutations: int = 200,
    seed: int = 0,
) -> xr.Dataset:
    """Divide tokens of each language into k-means clusters, layer by layer.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`, with `residual`.
    k, criterion, layers, n_components, resamples, permutations, seed
        As for :func:`cluster_samples`.
    by
        Labels of samples, or coordinates with the dims ``(sample, token)`` such as ``token_kind``, with which
        the result is compared.
    tokens
        Tokens included, as for :func:`layer_norms`.
    cluster
        The label that *dependent* samples share, as for :func:`cluster_samples`. Tokens of a text are always
        dependent.
    max_sampled_tokens
        Maximum number of tokens drawn at random in each language.

    Returns
    -------
    xarray.Dataset
        As for :func:`cluster_samples`, with the dimension ``token`` instead of ``sample``: ``assignment`` of
        each token, with the coordinates ``sample``, ``position`` (on the token axis), ``token_text``,
        ``sample_id`` and ``sample_language``.

    Raises
    ------
    InputError, MissingError
        As for :func:`cluster_samples`.
    """
    selection.check_counts(max_sampled_tokens=max_sampled_tokens)
    options = _options(k, criterion, n_components, resamples, permutations, seed)
    available = selection.of_layers(select_tokens(finite_cube(cube), tokens), layers)
    selection.require(available, "residual")
    array, names = sampled_tokens(available, max_sampled_tokens, seed), _names(by)
    sample, token = array.drawn_from.values, array.drawn_at.values
    of_tokens = [
        name
        for name in dict.fromkeys((*names, "token_text"))
        if name in available.coords and available[name].dims == ("sample", "token")
    ]
    array = array.assign_coords(
        {name: ("sample", available[name].values[sample, token]) for name in of_tokens}
    )
    choice, groups = _dependent(available, array, cluster, names, sample)
    result = _clustered(array, groups, names, options).rename(sample="token")
    result = result.assign_coords(
        sample=("token", available.sample.values[sample]),
        position=("token", available.token.values[token]),
        sample_language=("token", array.language.values),
    )
    shown = [name for name in ("sample_id", *of_tokens) if name in array.coords]
    result = _with_labels(result, "token", {name: array[name] for name in shown})
    result.attrs = _settings(
        array, "cluster_tokens", options, max_sampled_tokens=max_sampled_tokens, **choice.attrs
    )
    return result


def _options(
    k: int | Sequence[int],
    criterion: Criterion,
    n_components: int,
    resamples: int,
    permutations: int,
    seed: int,
) -> _Options:
    selection.check_counts(n_components=n_components, resamples=resamples, permutations=permutations)
    candidates = tuple(k) if isinstance(k, Sequence | np.ndarray) else (k,)
    for candidate in candidates:
        selection.check_counts(2, k=candidate)
    faults = []
    if not candidates or len(set(candidates)) < len(candidates):
        faults.append(Fault("k", f"is {k}", "give a number, or several different ones"))
    if criterion not in get_args(Criterion):
        faults.append(Fault("criterion", f"{criterion!r} is unknown", "silhouette or stability"))
    if faults:
        raise InputError(faults)
    return _Options(tuple(candidates), criterion, n_components, resamples, permutations, seed)


def _names(by: str | Sequence[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(dict.fromkeys(by))


def _dependent(
    cube: xr.Dataset | xr.DataArray,
    array: xr.DataArray,
    cluster: str | None,
    names: list[str],
    independent: np.ndarray,
) -> tuple[ClusterChoice, list[np.ndarray]]:
    """Return the choice of `cluster`, and what dependent vectors share: for stability, and for each label.

    Permuting a label between clusters that it defines itself changes nothing, so it is not a candidate there.
    """

    def shared(choice: ClusterChoice) -> np.ndarray:
        return independent if choice.name is None else selection.clusters(array, choice.name)

    choice = selection.cluster_choice(cube, cluster)
    groups = [shared(choice)] * (1 + len(names))
    if choice.name in names:
        other = selection.cluster_choice(cube, cluster if choice.is_detected else None, choice.name)
        groups[1 + names.index(choice.name)] = shared(other)
    return choice, groups


def _clustered(
    array: xr.DataArray, groups: list[np.ndarray], names: list[str], options: _Options
) -> xr.Dataset:
    """Cluster the vectors of each language and layer; `groups` are from :func:`_dependent`."""
    labels = {name: selection.column(array, name, "by").codes for name in names}
    assignments, places = [], []

    def summarize(_language: str, samples: np.ndarray) -> xr.Dataset:
        dependent = [selection.codes(of_all[samples]) for of_all in groups]
        codes = [of_all[samples] for of_all in labels.values()]
        sizes = {"candidate": len(options.candidates), "label": len(codes)}
        out = [["candidate"]] * len(_BY_CANDIDATE) + [[], ["sample"]] + [["label"]] * len(_AGREEMENTS)
        outputs = selection.apply(
            lambda x: _of_layer(x, dependent, codes, options),
            array.isel(sample=samples),
            core=[["sample", "hidden"]],
            out=out,
            sizes=sizes,
        )
        *measures, chosen, assignment = outputs[: len(_BY_CANDIDATE) + 2]
        assignments.append(assignment)
        places.append(samples)
        result = xr.Dataset(dict(zip(_BY_CANDIDATE, measures, strict=True))).assign(k=chosen)
        return result.assign(dict(zip(_AGREEMENTS, outputs[len(_BY_CANDIDATE) + 2 :], strict=True)))

    result = selection.by_language(array, summarize)
    result = result if names else result.drop_vars(_AGREEMENTS)
    every = xr.concat(assignments, "sample").isel(sample=np.argsort(np.concatenate(places)))
    result = result.assign(assignment=every.astype(np.int64))
    result = result.assign_coords(layer=array.layer.values, candidate=list(options.candidates))
    return result.assign_coords(label=np.array(names, dtype=object)) if names else result


def _with_labels(result: xr.Dataset, dim: str, columns: dict[str, xr.DataArray]) -> xr.Dataset:
    """Add columns of samples or tokens, renamed where the result already uses their name."""
    taken = {*result.variables, *result.dims}
    return result.assign_coords(
        {
            selection.free_name(name, taken): (dim, column.values, column.attrs)
            for name, column in columns.items()
        }
    )


def _of_layer(
    x: np.ndarray, groups: list[np.ndarray], labels: list[np.ndarray], options: _Options
) -> tuple[np.ndarray, ...]:
    """Return the `_BY_CANDIDATE`, the number chosen, the assignment and the `_AGREEMENTS` of one layer."""
    exact = x.astype(np.float64)
    total = ((exact - exact.mean(axis=0)) ** 2).sum()
    scores = principal_components(exact, min(options.n_components, *x.shape)) if total > 0 else exact * 0
    table = np.full((len(_BY_CANDIDATE), len(options.candidates)), np.nan)
    assignments = []
    for at, candidate in enumerate(options.candidates):
        model = kernels.fit(scores, candidate, options.seed)
        assignment = np.full(len(x), -1) if model is None else kernels.by_size(model.labels_)
        assignments.append(assignment)
        if model is not None:
            # components are scaled to a total sum of squares of 1; leave inertia in the units of the vectors
            table[:, at] = (
                model.inertia_ * total,
                kernels.silhouette(scores, assignment, options.seed),
                kernels.stability(scores, candidate, groups[0], options.resamples, options.seed),
            )
    criterion = table[_BY_CANDIDATE.index(options.criterion)]
    if np.isnan(criterion).all():
        undefined = np.full((len(_AGREEMENTS), len(labels)), np.nan)
        return (*table, np.array(np.nan), np.full(len(x), -1), *undefined)
    best = int(np.nanargmax(criterion))
    agreements = [
        kernels.agreement(assignments[best], codes, shared, options.permutations, options.seed).ravel()
        for codes, shared in zip(labels, groups[1:], strict=True)
    ]
    columns = np.array(agreements).reshape(len(labels), len(_AGREEMENTS)).T
    return (*table, np.array(options.candidates[best]), assignments[best], *columns)


def _settings(array: xr.DataArray, statistic: str, options: _Options, **others: object) -> dict[str, object]:
    return selection.settings(
        array,
        statistic,
        criterion=options.criterion if len(options.candidates) > 1 else None,
        n_components=options.n_components,
        resamples=options.resamples,
        permutations=options.permutations,
        seed=options.seed,
        **others,
    )
