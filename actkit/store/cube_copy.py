"""Writing of a Dataset as a new cube."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..batch_plan import Plan, Shape, footprint, make_plan
from ..config import Config
from ..schema import VARIABLES, K, component_of
from .layout import COORD_CHUNK, CUBE
from .ragged import Ragged
from .writer import ROW_COORDS, CubeWriter, create_cube

_TYPES = {"b": "bool", "i": "int64", "f": "float64"}


def write_copy(run: Path, cube: xr.Dataset, attrs: dict[str, Any]) -> None:
    """Write a cube with all values of a Dataset, window by window.

    Parameters
    ----------
    run
        The existing run folder.
    cube
        Dataset in canonical form with all samples of its cubes.
    attrs
        Attributes of the cube, without those that describe its files.
    """
    variables = tuple(name for name, variable in VARIABLES.items() if variable.by_window and name in cube)
    plan = _plan(cube, variables)
    create_cube(
        run,
        plan,
        variables=variables,
        coords=known_coords(cube),
        labels=label_dtypes(cube),
        rows=rows_of(cube),
        attrs=attrs,
        dtypes={name: str(cube[name].dtype) for name in variables if VARIABLES[name].other_dtype},
    )
    with closing(CubeWriter(run / CUBE, plan, threads=min(8, os.cpu_count() or 1))) as writer:
        for window in range(plan.n_windows):
            samples = plan.samples_of(window)
            part = cube.isel(sample=slice(samples.start, samples.stop))
            writer.write(window, {name: _values(part, name) for name in variables})


def _plan(cube: xr.Dataset, variables: tuple[str, ...]) -> Plan:
    stored = cube.n_tokens.values.astype(np.int64)
    sizes = cube.sizes
    shape = Shape(sizes["layer"], 1, 1, sizes.get("hidden", 1), sizes.get(K, 0))
    token_bytes, sample_bytes = footprint(variables, {}, shape, None, 4)
    plan = make_plan(
        Config(model="-", data="-", out="-"),
        np.maximum(stored, 1),
        layers=shape.layer,
        hidden=shape.hidden,
        k=shape.k,
        token_bytes=token_bytes,
        sample_bytes=sample_bytes,
        stored=stored,
        batch_tokens=1,  # so that batches do not enlarge windows
    )
    return replace(plan, batches=cube.batch.values.astype(np.int32))


def known_coords(cube: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the coordinates that :func:`~actkit.store.writer.create_cube` takes, except those of `rows`."""
    others = (*ROW_COORDS, "batch", "committed")
    return {
        name: np.asarray(cube[name].values)
        for name, variable in VARIABLES.items()
        if not variable.by_window and name in cube.coords and name not in others
    }


def label_dtypes(cube: xr.Dataset) -> dict[str, str]:
    """Return the dtype of each label of a cube, as in :attr:`actkit.labels.LabelType.dtype`."""
    labels = [str(name) for name in cube.coords if cube[name].attrs.get("label")]
    return {name: _label_type(cube[name]) for name in labels}


def _label_type(values: xr.DataArray) -> str:
    if "label_type" in values.attrs:
        return f"{values.attrs['label_type']}?"
    return _TYPES.get(values.dtype.kind, "str")


def rows_of(cube: xr.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """Yield the identifying coordinates and the labels of a cube, block by block."""
    names = [*ROW_COORDS, *label_dtypes(cube)]
    for start in range(0, cube.sizes["sample"], COORD_CHUNK):
        yield {name: np.asarray(cube[name].values[start : start + COORD_CHUNK]) for name in names}


def _values(part: xr.Dataset, name: str) -> np.ndarray | Ragged:
    """Return a window of a variable in the form that the writer expects."""
    array, variable = part[name].transpose(*VARIABLES[name].dims), VARIABLES[name]
    if not variable.is_full:
        return np.asarray(array.values)
    lengths = part.n_tokens.values
    array = array.isel(token=slice(0, max(1, int(lengths.max()))))
    has = part.get(f"has_{component_of(name)}")
    return Ragged.of(array.values, lengths, None if has is None else np.flatnonzero(has.values).tolist())
