"""What a statistic is computed from: which tokens, which vectors, which samples of each language."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import dask.base
import numpy as np
import pandas as pd
import xarray as xr

from ..errors import Fault, InputError, MissingError
from ..schema import TokenKind, content_mask

POOLINGS = ("pooled", "last")
_FEW = 4  # samples of a language that a scene, a translation or a template has at most
Z95 = 1.959963984540054  # standard errors on either side of a 95% interval
_KINDS = {
    "special": TokenKind.SPECIAL,
    "template": TokenKind.TEMPLATE,
    "text": TokenKind.TEXT,
    "image": TokenKind.IMAGE,
    "generated": TokenKind.GENERATED,
}
TOKENS = ("content", "all", "first", *_KINDS)


def token_mask(cube: xr.Dataset, tokens: str = "content") -> xr.DataArray:
    """Tell which tokens count, dims ``(sample, token)``.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    tokens
        ``content``; ``all``; ``first``: position 0, where attention sinks sit; or a kind of token.

    Raises
    ------
    InputError
        Where there is no such kind.
    """
    if tokens not in TOKENS:
        raise InputError([Fault("tokens", f"{tokens!r} is no kind of token", f"one of {', '.join(TOKENS)}")])
    real: xr.DataArray = (cube.token < cube.n_tokens).transpose("sample", "token")
    if tokens == "all" or counted(cube, tokens) != tokens:
        return real
    if tokens == "first":
        first: xr.DataArray = cube.coords.get("position", cube.token) == 0
        return real & first
    if tokens == "content":
        return content_mask(cube.token_kind, first_is_content=bool(cube.attrs["first_is_content"]))
    own: xr.DataArray = cube.token_kind == _KINDS[tokens]
    return own


def counted(cube: xr.Dataset, tokens: str) -> str:
    """Say which tokens count where these are asked for: of means and patches, all do."""
    if tokens != "content":
        return tokens
    if "token_kind" not in cube.coords:
        return "patches"
    kept = str(cube.attrs.get("tokens_kept", "all"))
    return kept if kept in ("last", "mean") else tokens


def require(cube: xr.Dataset, *names: str) -> None:
    """Raise a MissingError where a cube lacks a variable that a statistic needs."""
    for name in names:
        if name not in cube:
            where = "components" if name in ("attention", "mlp") else "save"
            raise MissingError(f"the cube has no `{name}`; extract it again with `{name}` among `{where}`")


def captured(cube: xr.Dataset, component: str = "residual") -> xr.Dataset:
    """Leave out layers at which a component was not captured."""
    has = cube.coords.get(f"has_{component}")
    return cube if has is None or bool(has.all()) else cube.isel(layer=np.flatnonzero(has.values))


def vectors(cube: xr.Dataset, values: str) -> xr.DataArray:
    """Return one vector a sample, dims ``(layer, sample, hidden)``, of the samples that have one.

    Parameters
    ----------
    cube
        From :func:`actkit.open_cube`.
    values
        ``pooled`` or ``last``.

    Raises
    ------
    InputError, MissingError
        Where that is no pooling, or the cube has it not.
    """
    if values not in POOLINGS:
        raise InputError([Fault("values", f"{values!r} is not one of {', '.join(POOLINGS)}")])
    require(cube, values)
    own = captured(cube)
    if "token_kind" in own.coords:
        own = own.isel(sample=np.flatnonzero(token_mask(own).any("token").values))
    return own[values].transpose("layer", "sample", "hidden").assign_attrs(cube.attrs)


def languages(cube: xr.Dataset | xr.DataArray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each language with the places of its samples, in the order of their names.

    A result then does not depend on the order in which samples were given.
    """
    own = cube.language.values.astype(object)
    names = cube.sample_id.values.astype(str) if "sample_id" in cube.coords else cube.sample.values
    order = np.argsort(names, kind="stable")
    for language in dict.fromkeys(own.tolist()):
        yield str(language), order[own[order] == language]


def by_language(
    cube: xr.Dataset | xr.DataArray, summarize: Callable[[str, np.ndarray], xr.Dataset]
) -> xr.Dataset:
    """Put what is computed from the samples of each language side by side, along ``language``."""
    found = list(languages(cube))
    if not found:
        raise InputError([Fault("cube", "has no samples", "wait for the first window, or extract again")])
    parts = [summarize(language, places) for language, places in found]
    names = np.array([language for language, _ in found], dtype=object)
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


def pairing_label(cube: xr.Dataset, by: str) -> str:
    """Return the label of samples that are probably not independent, where nobody said which.

    That is the label which a few samples of different groups share, such as twins; else `image_id`; else
    none, "".

    Parameters
    ----------
    cube
        It.
    by
        The label of the groups; "" for none.

    Examples
    --------
    >>> from actkit import open_cube
    >>> from actkit.testing import write_cube
    >>> cube = open_cube(write_cube(n_samples=8))
    >>> pairing_label(cube.assign_coords(scene=("sample", list("aaaabbbb"), {"label": True})), "gender")
    'scene'
    >>> pairing_label(cube, "gender")  # an image shows one of them
    'image_id'
    """
    labels = label_names(cube)
    best, most = "image_id" if "image_id" in labels else "", 0
    for name in [name for name in labels if name != by] if by in labels else []:
        table = pd.DataFrame({key: cube[key].values for key in ("language", by, name)})
        groups = table.groupby(["language", name])[by]
        shared = (groups.nunique() > 1).mean()
        if shared > 0.5 and groups.size().mean() <= _FEW and groups.ngroups > most:
            best, most = name, groups.ngroups
    return best


def column(cube: xr.Dataset | xr.DataArray, name: str, where: str) -> np.ndarray:
    """Return a label of each sample, as text.

    Parameters
    ----------
    cube
        It.
    name
        Of the column.
    where
        The argument that named it.

    Raises
    ------
    InputError
        Where there is no such column.
    """
    found = cube.coords.get(name)
    if found is None or found.dims != ("sample",):
        known = ", ".join(label_names(cube)) or "none"
        mend = "give one of them, or None" if where == "pairs" else "give one of them"
        raise InputError([Fault(where, f"the cube has no label `{name}`; it has {known}", mend)])
    values: np.ndarray = found.values.astype(str)
    return values


def codes(values: np.ndarray) -> np.ndarray:
    """Return numbers for values, in their sorted order."""
    return np.unique(values, return_inverse=True)[1]


def apply(
    function: Callable[..., Any],
    *arrays: xr.DataArray,
    core: Sequence[Sequence[Hashable]],
    out: Sequence[Sequence[Hashable]],
    sizes: Mapping[Any, int] | None = None,
    each: bool = True,
) -> tuple[xr.DataArray, ...]:
    """Apply a kernel, as soon as its result is asked for where the arrays are lazy.

    Parameters
    ----------
    function
        Takes arrays of the core dimensions, and returns a tuple of float64 arrays.
    *arrays
        What it takes.
    core, out
        Dimensions of what it takes, and of what it returns.
    sizes
        Lengths of dimensions that are new.
    each
        Whether it is called for each position along the other dimensions; or else with them in front.
    """
    if any(map(dask.base.is_dask_collection, arrays)):
        arrays = tuple(array.chunk(dict.fromkeys(dims, -1)) for array, dims in zip(arrays, core, strict=True))
    found = xr.apply_ufunc(
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
    found = found if len(out) > 1 else (found,)
    return tuple(array.reset_coords(drop=True) for array in found)


def settings(cube: xr.Dataset | xr.DataArray, statistic: str, **options: Any) -> dict[str, Any]:
    """Return the attributes of a result: what was computed, how, and from what."""
    kept = {name: value for name, value in options.items() if value is not None}
    return {
        "statistic": statistic,
        **kept,
        "n_samples": cube.sizes["sample"],
        "model": cube.attrs.get("model", ""),
    }
