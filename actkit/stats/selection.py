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
from ..schema import PROMPT_END
from .cluster_detection import ClusterChoice, detect
from .finiteness import checked
from .groups import Groups
from .prompt_end import with_prompt_end
from .token_filter import TokenCondition
from .token_masks import SELECTED, SELECTED_TOKENS
from .token_masks import TOKENS as TOKENS
from .token_masks import Tokens as Tokens
from .token_masks import counted as counted
from .token_masks import holds_all_tokens as holds_all_tokens
from .token_masks import token_mask as token_mask

Pooling = Literal["pooled", "last", "prompt_end"]
Vectors = Literal["pooled", "last", "prompt_end", "tokens"]
TokenSelection = Tokens | TokenCondition
POOLINGS: tuple[str, ...] = get_args(Pooling)
AUTO = "auto"  # detect the cluster label
Z95 = 1.959963984540054  # half-width of a normal 95% interval in standard errors


def check_counts(minimum: int = 1, **options: Any) -> None:
    """Raise InputError if a count is not an integer or is below the minimum."""
    faults = [
        Fault(name, f"is {value!r}", f"give an integer of at least {minimum}")
        for name, value in options.items()
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < minimum
    ]
    if faults:
        raise InputError(faults)


def captured(cube: xr.Dataset, component: str = "residual") -> xr.Dataset:
    """Return the cube without layers at which a component was not captured."""
    has = cube.coords.get(f"has_{component}")
    return cube if has is None or bool(has.all()) else cube.isel(layer=np.flatnonzero(has.values))


def of_layers(cube: xr.Dataset, layers: Sequence[int] | None) -> xr.Dataset:
    """Return the cube with some of its layers, in ascending order; with all if `layers` is None.

    Raises
    ------
    InputError, MissingError
        If the cube lacks a layer, or `layers` is empty.
    """
    if layers is None:
        return cube
    if "layer" not in cube.coords:
        raise MissingError("the cube has no `layer`; keep it when selecting, as cube.sel(layer=[3]) does")
    known = cube.layer.values.tolist()
    if missing := sorted(set(layers) - set(known)) or not len(layers):
        problem = "is empty" if missing is True else f"the cube lacks {missing}"
        raise InputError([Fault("layers", problem, f"it has {known}")])
    return cube.sel(layer=sorted(set(layers)))


def vectors(cube: xr.Dataset, pooling: Pooling) -> xr.DataArray:
    """Return one vector per sample, dims ``(layer, sample, hidden)``, for samples that have one.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    pooling
        ``pooled``, ``last`` or ``prompt_end``.

    Raises
    ------
    InputError, MissingError
        If the pooling does not exist, the cube lacks it, or no sample has a content token.
    NonfiniteError
        If a value is NaN or Inf, raised when the array is computed.
    """
    if pooling not in POOLINGS:
        raise InputError([Fault("vectors", f"{pooling!r} is not one of {', '.join(POOLINGS)}")])
    cube = with_pooling(cube, pooling)
    available = captured(cube).isel(sample=np.flatnonzero(with_vectors(cube, pooling)))
    return checked(available[pooling].transpose("layer", "sample", "hidden")).assign_attrs(cube.attrs)


def with_pooling(cube: xr.Dataset, pooling: str) -> xr.Dataset:
    """Return a cube with one of ``POOLINGS``, of the selected tokens if only some are selected.

    The cube is returned unchanged, except that ``prompt_end`` is taken from ``residual`` if it is not stored.

    Raises
    ------
    InputError
        If they cannot be computed of the selected tokens.
    MissingError
        If the cube lacks them.
    """
    if pooling == PROMPT_END:
        return with_prompt_end(cube)
    if pooling not in cube and SELECTED in cube.coords:
        problem = f"`{pooling}` of {counted(cube, 'content')} needs `residual` at all content tokens"
        hint = "use vectors='tokens' where possible, or extract again with keep_tokens=all and save=residual"
        raise InputError([Fault("tokens", problem, hint)])
    require(cube, pooling)
    return cube


def with_vectors(cube: xr.Dataset, pooling: Pooling) -> np.ndarray:
    """Return which samples have a vector of a pooling, even if the cube holds only some tokens.

    Errors and warnings are those of :func:`has_content`.
    """
    tells_kinds = "token" in cube.coords and "token" in getattr(cube.coords.get("token_kind"), "dims", ())
    if not tells_kinds and SELECTED not in cube.coords:
        return np.ones(cube.sizes["sample"], dtype=bool)
    has_vector = token_mask(cube).any("token").values
    unclear = np.flatnonzero(~has_vector & ~holds_all_tokens(cube))
    if len(unclear):
        has_vector[unclear] = (
            captured(with_pooling(cube, pooling))[pooling]
            .isel(sample=unclear)
            .notnull()
            .any(["layer", "hidden"])
            .values
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
    what = "selected" if SELECTED in cube.coords else "content"
    if not has.any() and what == "selected":
        raise InputError([Fault("tokens", f"no sample has a token of {counted(cube, 'content')}")])
    if not has.any():
        remedy = "position 0, special, template and generated tokens are not content: use longer texts"
        raise InputError([Fault("cube", "no sample has a content token", remedy)])
    language = cube.language.values.astype(str)
    lost = sorted(set(language) - set(language[has]))
    named = f"; none remain in {', '.join(lost)}" if lost else ""
    problem = f"{(~has).sum():,} of {len(has):,} samples have no {what} token and are excluded{named}"
    warnings.warn(problem, stacklevel=4)
    return has


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

    def kernel(*values: Any) -> Any:
        # values that are not finite are refused by a check that may run after the kernel
        with np.errstate(invalid="ignore"):
            results = function(*values)
        return results if len(out) > 1 else results[0]

    outputs = xr.apply_ufunc(
        kernel,
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
    selected = {"tokens": cube.attrs[SELECTED_TOKENS]} if SELECTED_TOKENS in cube.attrs else {}
    return {
        "statistic": statistic,
        **selected,
        **kept,
        "n_samples": cube.sizes["sample"],
        "model": cube.attrs.get("model", ""),
    }
