"""Select the tokens, vectors and samples that a statistic is computed from."""

import numbers
import warnings
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal, get_args

import dask.base
import numpy as np
import xarray as xr

from ..canonical import require as require
from ..errors import Fault, InputError, MissingError
from ..schema import TokenKind, content_mask
from .cluster_detection import ClusterChoice, detect
from .finiteness import checked
from .groups import Groups

Pooling = Literal["pooled", "last"]
Vectors = Literal["pooled", "last", "tokens"]
Tokens = Literal["content", "all", "first", "special", "template", "text", "image", "generated"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
TOKENS: tuple[str, ...] = get_args(Tokens)
AUTO = "auto"  # detect the cluster label
Z95 = 1.959963984540054  # half-width of a normal 95% interval in standard errors
_KINDS = {
    "special": TokenKind.SPECIAL,
    "template": TokenKind.TEMPLATE,
    "text": TokenKind.TEXT,
    "image": TokenKind.IMAGE,
    "generated": TokenKind.GENERATED,
}


def check_counts(minimum: int = 1, **options: Any) -> None:
    """Raise InputError if a count is not an integer or is below the minimum."""
    faults = [
        Fault(name, f"is {value!r}", f"give an integer of at least {minimum}")
        for name, value in options.items()
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum
    ]
    if faults:
        raise InputError(faults)


def token_mask(cube: xr.Dataset, tokens: Tokens = "content") -> xr.DataArray:
    """Return the mask of included tokens, dims ``(sample, token)``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    tokens
        ``content``; ``all``; ``first`` (position 0, where attention sinks form); or a kind of token.

    Raises
    ------
    InputError, MissingError
        If the kind does not exist, or the cube lacks the coordinates or attributes that identify tokens.
    """
    if tokens not in TOKENS:
        raise InputError(
            [Fault("tokens", f"{tokens!r} is not a kind of token", f"one of {', '.join(TOKENS)}")]
        )
    require(cube, "n_tokens", *(["token_kind"] if "token_kind" in cube.coords else []))
    if "token" not in cube.coords:
        raise MissingError("the cube has no coordinate `token`; keep it when selecting and renaming")
    real: xr.DataArray = (cube.token < cube.n_tokens).transpose("sample", "token")
    if tokens == "all" or counted(cube, tokens) != tokens:
        return real
    if tokens == "first":
        first: xr.DataArray = cube.coords.get("position", cube.token) == 0
        return real & first
    if tokens == "content":
        if "first_is_content" not in cube.attrs:
            raise MissingError(
                "the cube lacks the attribute `first_is_content`, which says whether position 0 is content; "
                "restore it with cube.assign_attrs(original.attrs)"
            )
        return content_mask(cube.token_kind, first_is_content=bool(cube.attrs["first_is_content"]))
    is_kind: xr.DataArray = cube.token_kind == _KINDS[tokens]
    return is_kind


def counted(cube: xr.Dataset, tokens: str) -> str:
    """Return which tokens are actually included: cubes of means, last tokens or patches include all."""
    if tokens != "content":
        return tokens
    if "token_kind" not in cube.coords:
        return "patches"
    kept = str(cube.attrs.get("tokens_kept", "all"))
    return kept if kept in ("last", "mean") else tokens


def captured(cube: xr.Dataset, component: str = "residual") -> xr.Dataset:
    """Return the cube without layers at which a component was not captured."""
    has = cube.coords.get(f"has_{component}")
    return cube if has is None or bool(has.all()) else cube.isel(layer=np.flatnonzero(has.values))


def vectors(cube: xr.Dataset, pooling: Pooling) -> xr.DataArray:
    """Return one vector per sample, dims ``(layer, sample, hidden)``, for samples that have one.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    pooling
        ``pooled`` or ``last``.

    Raises
    ------
    InputError, MissingError
        If the pooling does not exist, the cube lacks it, or no sample has a content token.
    NonfiniteError
        If a value is NaN or Inf, raised when the array is computed.
    """
    if pooling not in POOLINGS:
        raise InputError([Fault("vectors", f"{pooling!r} is not one of {', '.join(POOLINGS)}")])
    require(cube, pooling)
    available = captured(cube).isel(sample=np.flatnonzero(with_vectors(cube, pooling)))
    return checked(available[pooling].transpose("layer", "sample", "hidden")).assign_attrs(cube.attrs)


def with_vectors(cube: xr.Dataset, pooling: Pooling) -> np.ndarray:
    """Return which samples have a vector ``pooled`` or ``last``, even if the cube holds only some tokens.

    Errors and warnings are those of :func:`has_content`.
    """
    if "token" not in cube.coords or "token" not in getattr(cube.coords.get("token_kind"), "dims", ()):
        return np.ones(cube.sizes["sample"], dtype=bool)
    has_vector = token_mask(cube).any("token").values
    unclear = np.flatnonzero(~has_vector & ~holds_all_tokens(cube))
    if len(unclear):
        has_vector[unclear] = (
            captured(cube)[pooling].isel(sample=unclear).notnull().any(["layer", "hidden"]).values
        )
    return has_content(cube, has_vector[:, None])


def has_content(cube: xr.Dataset, mask: np.ndarray) -> np.ndarray:
    """Return which samples have a content token, dims ``(sample,)``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    mask
        Content tokens, dims ``(sample, token)``.

    Raises
    ------
    InputError
        If no sample has one.

    Warns
    -----
    UserWarning
        If some samples have none; the warning gives their number and the languages without any.
    """
    has = np.asarray(mask.any(axis=1))
    if has.all() or not len(has):
        return has
    if not has.any():
        remedy = "position 0, special, template and generated tokens are not content: use longer texts"
        raise InputError([Fault("cube", "no sample has a content token", remedy)])
    language = cube.language.values.astype(str)
    lost = sorted(set(language) - set(language[has]))
    named = f"; none remain in {', '.join(lost)}" if lost else ""
    problem = f"{(~has).sum():,} of {len(has):,} samples have no content token and are excluded{named}"
    warnings.warn(problem, stacklevel=4)
    return has


def holds_all_tokens(cube: xr.Dataset) -> np.ndarray:
    """Return which samples still have all of their tokens, dims ``(sample,)``."""
    return np.asarray((token_mask(cube, "all").sum("token") == cube.n_tokens).values)


def languages(cube: xr.Dataset | xr.DataArray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each language with the positions of its samples, sorted by their ids.

    Results therefore do not depend on the order of samples.
    """
    values = cube.language.values.astype(object)
    ids = cube.sample_id.values.astype(str) if "sample_id" in cube.coords else cube.sample.values
    order = np.argsort(ids, kind="stable")
    for language in dict.fromkeys(values.tolist()):
        yield str(language), order[values[order] == language]


def by_language(
    cube: xr.Dataset | xr.DataArray, summarize: Callable[[str, np.ndarray], xr.Dataset]
) -> xr.Dataset:
    """Compute a summary for each language and concatenate the results along ``language``."""
    samples_of = list(languages(cube))
    if not samples_of:
        raise InputError([Fault("cube", "has no samples", "wait for the first window, or extract again")])
    parts = [summarize(language, samples) for language, samples in samples_of]
    names = np.array([language for language, _ in samples_of], dtype=object)
    return xr.concat(
        parts,
        xr.Variable("language", names),
        data_vars="all",
        coords="minimal",
        compat="override",
        join="outer",
        combine_attrs="override",
    )


def label_names(cube: xr.Dataset | xr.DataArray) -> list[str]:
    """Return the label columns of a cube."""
    return [str(name) for name, coord in cube.coords.items() if coord.attrs.get("label")]


def cluster_choice(
    cube: xr.Dataset | xr.DataArray, cluster: str | None = AUTO, by: str | None = None
) -> ClusterChoice:
    """Return the label that dependent samples share, from the argument ``cluster`` of a statistic.

    Parameters
    ----------
    cube
        The cube, or vectors from it.
    cluster
        ``auto`` detects the label (:func:`~actkit.stats.cluster_detection.detect`), unless a label has that
        name; None if all samples are independent.
    by
        The label that defines the groups, which is not a candidate.

    Raises
    ------
    InputError
        If the cube lacks the label.

    Warns
    -----
    UserWarning
        If several labels qualify, or the only one lacks entries.
    """
    labels = label_names(cube)
    if cluster != AUTO or (AUTO in labels and by != AUTO):
        if cluster is not None:
            column(cube, cluster, "cluster")
        return ClusterChoice(cluster, is_detected=False)
    groups = {}
    for name in labels:
        if name != by and cube[name].dims == ("sample",):
            with suppress(InputError):  # values of several types identify nothing
                groups[name] = column(cube, name, "cluster")
    choice, problem = detect(groups, cube.language.values.astype(object))
    if problem:
        warnings.warn(problem, stacklevel=3)
    return choice


def column(cube: xr.Dataset | xr.DataArray, name: str, where: str) -> Groups:
    """Return the samples grouped by a label.

    Parameters
    ----------
    cube
        The cube.
    name
        The label.
    where
        The argument that specified the label.

    Raises
    ------
    InputError
        If the label does not exist, or its values have several types.
    """
    label = cube.coords.get(name)
    if label is None or label.dims != ("sample",):
        known = ", ".join(label_names(cube)) or "none"
        hint = "choose one of them, or None" if where == "cluster" else "choose one of them"
        raise InputError([Fault(where, f"the cube has no label `{name}`; it has {known}", hint)])
    try:
        return Groups.of(label.values, str(label.attrs.get("label_type", "")))
    except TypeError as error:
        raise InputError([Fault(where, f"the label `{name}` {error}", "convert it to one type")]) from None


def clusters(cube: xr.Dataset | xr.DataArray, cluster: str) -> np.ndarray:
    """Return the cluster of each sample as an integer, dims ``(sample,)``.

    Samples of a cluster are not independent. A sample without an entry forms its own cluster, together with
    its tokens and the translations that share its ``sample_id``.

    Parameters
    ----------
    cube
        The cube, or vectors from it.
    cluster
        The label that dependent samples share.

    Raises
    ------
    InputError
        If the label does not exist.

    Warns
    -----
    UserWarning
        If samples lack an entry; the warning gives their number.
    """
    groups = column(cube, cluster, "cluster")
    numbers, is_missing = groups.codes.copy(), groups.codes < 0
    if is_missing.any():
        id_name = "sample_id" if "sample_id" in cube.coords else "sample"
        ids = cube.coords[id_name].values.astype(object)
        numbers[is_missing] = len(groups.values) + np.unique(ids[is_missing], return_inverse=True)[1]
        keys = list(zip(cube.coords["language"].values.astype(object), ids, strict=True))
        n_lacking = len({key for key, missing in zip(keys, is_missing, strict=True) if missing})
        warnings.warn(
            f"`{cluster}` is missing for {n_lacking:,} of {len(set(keys)):,} samples; each is treated as "
            "independent of all others",
            stacklevel=4,
        )
    return numbers


def free_name(name: str, taken: Collection[Hashable]) -> str:
    """Return the name of a label, or ``<name>_label`` if the result already uses that name.

    Examples
    --------
    >>> free_name("gender", ["mean"]), free_name("mean", ["mean"])
    ('gender', 'mean_label')
    """
    return free_name(f"{name}_label", taken) if name in taken else name


def codes(values: np.ndarray) -> np.ndarray:
    """Return integer codes for values, in sorted order."""
    return np.unique(values, return_inverse=True)[1]


def apply(
    function: Callable[..., Any],
    *arrays: xr.DataArray,
    core: Sequence[Sequence[Hashable]],
    out: Sequence[Sequence[Hashable]],
    sizes: Mapping[Any, int] | None = None,
    each: bool = True,
) -> tuple[xr.DataArray, ...]:
    """Apply a kernel to labelled arrays, lazily if they are lazy.

    Parameters
    ----------
    function
        Kernel that takes plain arrays and returns a tuple of float64 arrays.
    *arrays
        Arguments of the kernel.
    core, out
        Core dimensions of its arguments, and of its results.
    sizes
        Lengths of new dimensions.
    each
        Whether to call the kernel at each position along the other dimensions; otherwise, they come first in
        its arguments.
    """
    if any(map(dask.base.is_dask_collection, arrays)):
        arrays = tuple(array.chunk(dict.fromkeys(dims, -1)) for array, dims in zip(arrays, core, strict=True))
    outputs = xr.apply_ufunc(
        function if len(out) > 1 else (lambda *values: function(*values)[0]),
        *arrays,
        input_core_dims=core,
        output_core_dims=out,
        vectorize=each,
        dask="parallelized",
        output_dtypes=[np.float64] * len(out),
        dask_gufunc_kwargs={"output_sizes": dict(sizes or {})},
        join="override",
        keep_attrs=False,
    )
    outputs = outputs if len(out) > 1 else (outputs,)
    return tuple(array.reset_coords(drop=True) for array in outputs)


def settings(cube: xr.Dataset | xr.DataArray, statistic: str, **options: Any) -> dict[str, Any]:
    """Return the attributes of a result: the statistic, its options, and its source."""
    kept = {name: value for name, value in options.items() if value is not None}
    return {
        "statistic": statistic,
        **kept,
        "n_samples": cube.sizes["sample"],
        "model": cube.attrs.get("model", ""),
    }
