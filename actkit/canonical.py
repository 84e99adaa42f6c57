"""Canonical form of a cube: all dimensions, in the order of the schema, and variables of declared types."""

import os
import sys
from collections.abc import Hashable, Iterable
from typing import Any

import dask.base
import numpy as np
import xarray as xr

from .errors import Fault, InputError, MissingError
from .schema import DIMS, FEATURE_VALUE, OF_CAPTURE, OF_FEATURES, SPARSABLE, VARIABLES, K, sparse_names

Cube = xr.Dataset | str | os.PathLike[str]

_TEXT_KINDS = "TUS"  # NumPy strings of variable or fixed length, and bytes
_WITHOUT_COORDS = ("hidden", K)
_PADS = {"position": -1}  # other variables hold 0 or an empty string where there is no token


def as_cube(cube: Cube) -> xr.Dataset:
    """Return the canonical form of a cube or of the run at a path; every function on cubes calls this first.

    Parameters
    ----------
    cube
        Dataset from :func:`actkit.open_cube`, or a selection, copy or concatenation of such; or a run folder
        or its ``cube.zarr``.

    Returns
    -------
    xarray.Dataset
        Cube in which a dimension selected by a single label has length 1, dimensions are in the order of the
        schema, strings are objects, and numbers and flags have no gaps. It is the same object if nothing has
        to change.

    Raises
    ------
    InputError
        If the cube is neither a Dataset nor a path.

    Notes
    -----
    :func:`xarray.concat` pads with NaN, even variables that hold integers in the schema; these get the
    padding value of the schema instead. See docs/decisions/0037.
    """
    if isinstance(cube, str | os.PathLike):
        # through the public name, because this module must not import the store, a higher layer
        cube = sys.modules["actkit"].open_cube(os.fspath(cube))
    if not isinstance(cube, xr.Dataset):
        what = f"is of type {type(cube).__name__}"
        raise InputError([Fault("cube", what, "give what actkit.open_cube returns, or the run folder")])
    cube = _ordered(_with_dimensions(cube))
    changed = {
        name: variable
        for name, original in cube.variables.items()
        if (variable := _canonical(name, original)) is not original
    }
    _load({**cube.variables, **changed}, changed)
    return cube if not changed else _replaced(cube, changed)


def require(cube: xr.Dataset, *names: str) -> None:
    """Check that a cube has variables with all of their dimensions, and the coordinate ``language``.

    Raises
    ------
    MissingError
        If something is missing, with a hint at how to keep it.
    """
    for name in (*names, "language"):
        declared = VARIABLES.get(name)
        if name not in cube:
            raise MissingError(f"the cube has no `{name}`; {_remedy(cube, name)}")
        for dim in declared.dims if declared else ():
            if cube.sizes.get(dim) == 0:
                raise MissingError(
                    f"the cube has no {dim} left; select at least one, or wait for the first window"
                )
            if dim not in cube[name].dims or (dim not in _WITHOUT_COORDS and dim not in cube.coords):
                what = "dimension" if dim not in cube[name].dims else "coordinate"
                raise MissingError(
                    f"`{name}` has no {what} `{dim}`, but {', '.join(map(str, cube[name].dims)) or 'none'}; "
                    f"keep it when selecting, as cube.isel({dim}=[0]) does"
                )


def _remedy(cube: xr.Dataset, name: str) -> str:
    """Return a hint at how to obtain a missing variable."""
    declared = VARIABLES.get(name)
    if FEATURE_VALUE in cube and name in OF_CAPTURE:
        return "it holds features of autoencoders: pass the cube that was encoded"
    if name in SPARSABLE and sparse_names(name)[1] in cube:
        kept = f"it holds only the {cube.sizes[K]} largest entries of each of its vectors"
        return f"{kept}; extract it again without `sparse`, or compute with actkit.dense_vectors(cube)"
    if name == "language":
        assigned = "cube.assign_coords(language=('sample', ['unspecified'] * cube.sizes['sample']))"
        return f"keep it when selecting, or add one with {assigned}"
    if declared is not None and declared.coord:
        return "keep it when selecting, and pass the cube itself, not its group `vision`"
    if name in OF_FEATURES:
        return "pass a cube of actkit.encode, with this variable"
    where = "components" if name in ("attention", "mlp") else "save"
    return f"extract it again with `{name}` among `{where}`"


def sample_of(cube: xr.Dataset, sample: int, *names: str) -> xr.Dataset:
    """Return one sample of a cube, without the dimension.

    Parameters
    ----------
    cube
        Cube from :func:`as_cube`.
    sample
        Value of the coordinate ``sample``.
    *names
        Variables that the cube must have.

    Raises
    ------
    MissingError
        If the cube lacks the sample or a variable.
    InputError
        If several samples have this number, as in a concatenation of cubes.
    """
    require(cube, *names)
    matches = np.flatnonzero(cube.sample.values == sample)
    if not len(matches):
        raise MissingError(f"the cube has no sample {sample}")
    if len(matches) > 1:
        what = f"{len(matches)} samples of the cube have the number {sample}"
        hint = "number them: cube.assign_coords(sample=range(cube.sizes['sample']))"
        raise InputError([Fault("sample", what, hint)])
    return cube.isel(sample=int(matches[0]))


def _with_dimensions(cube: xr.Dataset) -> xr.Dataset:
    """Restore dimensions lost by a selection of a single label or by another index."""
    for dim, index in cube.indexes.items():
        stacked = [str(level) for level in index.names if level in DIMS] if index.nlevels > 1 else []
        if stacked and dim != "sample":
            what = f"its dimension `{dim}` is a stack of {' and '.join(stacked)}"
            raise InputError([Fault("cube", what, f"unstack it: cube.unstack({dim!r})")])
    for dim in (*DIMS, K):
        if dim in cube.dims or (dim == K and K in cube.coords):  # the latter is a label
            continue
        if dim in cube.coords and cube[dim].ndim == 1:  # another coordinate is its index
            cube = cube.drop_indexes(dim, errors="ignore").swap_dims({cube[dim].dims[0]: dim})
        elif dim in cube.coords or dim in _WITHOUT_COORDS:
            expanded = {
                name: variable.set_dims({dim: 1, **variable.sizes})  # type: ignore[no-untyped-call]
                for name, variable in cube.variables.items()
                if dim in _declared_dims(name, variable)
            }
            cube = _replaced(cube, expanded) if expanded else cube
    if "sample" in cube.dims and isinstance(cube.indexes.get("sample"), _multi_index()):
        cube = cube.reset_index("sample")
    if "sample" in cube.dims and "sample" not in cube.coords:
        cube = cube.assign_coords(sample=np.arange(cube.sizes["sample"]))
    return cube


def _ordered(cube: xr.Dataset) -> xr.Dataset:
    """Sort layers and tokens, because statistics compare adjacent layers and texts run from left to right."""
    for dim in ("layer", "token"):
        if dim not in cube.indexes:
            continue
        index = cube.indexes[dim]
        if twice := index[index.duplicated()].unique().tolist():
            hint = f"select each once: cube.drop_duplicates({dim!r})"
            raise InputError([Fault(dim, f"{', '.join(map(str, twice[:3]))} occurs more than once", hint)])
        if not index.is_monotonic_increasing:
            cube = cube.sortby(dim)
    return cube


def _multi_index() -> type:
    import pandas as pd

    return pd.MultiIndex


def _declared_dims(name: Hashable, variable: xr.Variable) -> tuple[str, ...]:
    if name in VARIABLES:
        return VARIABLES[str(name)].dims
    return ("sample",) if variable.attrs.get("label") else ()


def _canonical(name: Hashable, variable: xr.Variable) -> xr.Variable:
    """Return a variable with the dimension order and type of the schema; the same object if it has both."""
    if not isinstance(variable.dtype, np.dtype):  # a pandas extension array, such as Int64 or a category
        variable = xr.Variable(variable.dims, np.asarray(variable.values, dtype=object), variable.attrs)
    dims = [dim for dim in _declared_dims(name, variable) if dim in variable.dims]
    if dims and set(dims) == set(variable.dims) and tuple(dims) != variable.dims:
        variable = variable.transpose(*dims)
    if variable.dtype.kind in _TEXT_KINDS:
        text = variable.astype(str) if variable.dtype.kind == "S" else variable
        return text.astype(object)
    declared = VARIABLES.get(str(name))
    if declared is None or declared.dtype == "str":
        return variable
    wanted = np.dtype(declared.dtype)
    if wanted.kind in "iub" and variable.dtype.kind != wanted.kind and name not in DIMS:
        pad = _PADS.get(str(name), declared.fill_value)
        has_gaps = variable.dtype.kind in "fO"
        filled = variable.fillna(pad) if has_gaps else variable  # type: ignore[no-untyped-call]
        variable = filled.astype(wanted)
    if set(declared.dims) == {"layer"} and set(variable.dims) > {"layer"}:  # a concatenation of several cubes
        variable = variable.all([dim for dim in variable.dims if dim != "layer"])
    return variable


def _load(variables: dict[Hashable, xr.Variable], changed: dict[Hashable, xr.Variable]) -> None:
    """Load the one-dimensional variables in one pass; other readers of cubes leave them in dask."""
    lazy = [name for name, variable in variables.items() if variable.ndim == 1 and variable.chunks]
    computed: Iterable[Any] = dask.base.compute(*(variables[name].data for name in lazy))  # type: ignore[no-untyped-call]
    for name, values in zip(lazy, computed, strict=True):
        changed[name] = variables[name].copy(deep=False, data=values)


def _replaced(cube: xr.Dataset, variables: dict[Hashable, xr.Variable]) -> xr.Dataset:
    every = {name: variables.get(name, variable) for name, variable in cube.variables.items()}
    data = {name: variable for name, variable in every.items() if name in cube.data_vars}
    replaced = xr.Dataset(data, {name: every[name] for name in every if name not in data}, cube.attrs)
    replaced.encoding = dict(cube.encoding)
    return replaced
