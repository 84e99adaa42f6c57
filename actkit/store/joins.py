"""Cubes of several runs of one model as one cube."""

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import xarray as xr

from ..canonical import as_cube
from ..errors import Fault, InputError
from ..layer_spec import describe_all
from ..object_urls import is_url, url_faults
from ..schema import (
    COMPONENTS,
    FEATURE_VALUE,
    OF_RESIDUAL,
    SPARSABLE,
    VARIABLES,
    VISION,
    component_of,
    sparse_names,
)
from .cube_copy import write_copy
from .layout import find_cube, open_group
from .metadata import ARRAYS, CHECKSUM
from .new_folders import new_folder, path_faults
from .push_pull import push
from .reader import open_cube
from .remote_run import RemoteRun
from .run_folder import replace_text
from .settings import OF_MACHINES, differences
from .writer import storage_errors

JOINED = "joined_from"  # attribute of a joined cube: what is special to each of the runs
_ROWS = {
    *("languages", "limit", "text_column", "text_columns", "language_column", "id_column", "labels"),
    *("image_column", "image_root", "split", "subset", "streaming", "on_bad_row"),
    *("category_column", "categories", "max_per_category"),
    *("data", "data_sha256", "images_sha256", "truncated_samples", "skipped", "skipped_rows"),
}
_SIZES = {"window_samples", "memory_budget", "layers", JOINED, "model"}  # the revision identifies a model
_MAY_DIFFER = {"layer": {"save"}, "sample": _ROWS}
_NO_FILES: Mapping[str, str] = MappingProxyType({})
_FILL: dict[str, Any] = {"token_id": 0, "token_kind": 0, "token_text": "", "position": -1}
_FILL |= {index: 0 for index, _ in map(sparse_names, SPARSABLE)}
_OF_FILES = ("actkit_format", ARRAYS, "coordinates", CHECKSUM, "receipts")

Attrs = dict[str, Any]


def join(
    runs: Sequence[str | Path], *, dim: Literal["layer", "sample"], out: str | Path | None = None
) -> xr.Dataset:
    """Join the cubes of runs of one model: other layers of the same samples, or other samples.

    Parameters
    ----------
    runs
        Run folders of complete cubes, or their URLs in object stores.
    dim
        ``layer``: the runs kept other layers or components of the same data. ``sample``: the runs kept the
        same layers of other rows or languages; samples are numbered anew.
    out
        Run folder or URL to create for a cube with all values. By default nothing is written.

    Returns
    -------
    xarray.Dataset
        The joined cube: that in `out`, or a Dataset that reads the cubes of the runs. The attribute
        ``joined_from`` lists, as JSON, the seal of each cube and the attributes in which they differ.

    Raises
    ------
    InputError
        Names each setting, layer, sample or variable that does not fit.
    CubeError
        If a run has no complete cube.
    StorageError
        If `out` cannot be written.

    Examples
    --------
    >>> import actkit
    >>> from actkit.testing import write_cube
    >>> runs = [write_cube(languages=[name]) for name in ("english", "arabic")]
    >>> dict(actkit.join(runs, dim="sample").sizes)
    {'layer': 3, 'sample': 16, 'token': 5, 'hidden': 16}
    """
    names = [str(run) for run in runs]
    faults = new_run_faults(out) if out is not None else []
    if dim not in _MAY_DIFFER:
        faults.append(Fault("dim", f"{dim!r} is unknown", "give layer or sample"))
    if len(names) < 2 or isinstance(runs, str | Path):
        faults.append(Fault("runs", "are fewer than two", "give a list of run folders"))
    if faults:
        raise InputError(faults, "cannot join")
    cube, attrs = joined(names, dim)
    if out is not None:
        write_joined(out, cube, attrs)
        return open_cube(out)
    seals = " ".join(run[CHECKSUM] for run in json.loads(attrs[JOINED])["runs"])
    attrs[CHECKSUM] = hashlib.sha256(f"{dim} {seals}".encode()).hexdigest()  # identifies the values
    return cube.assign_attrs({name: int(v) if isinstance(v, bool) else v for name, v in attrs.items()})


def joined(names: list[str], dim: str) -> tuple[xr.Dataset, Attrs]:
    """Return the cubes of runs as one Dataset without attributes, and the attributes of the joined cube.

    Raises
    ------
    InputError
        If something does not fit.
    """
    cubes = [open_cube(name) for name in names]
    groups = [open_group(find_cube(name)) for name in names]
    attrs = [dict(group.attrs) for group in groups]
    faults = [
        Fault(name, f"has the group `{VISION}`, which cannot be joined")
        for name, group in zip(names, groups, strict=True)
        if VISION in group
    ]
    faults += [
        Fault(
            name, "holds features of autoencoders", "join the runs that were encoded, and encode the result"
        )
        for name, cube in zip(names, cubes, strict=True)
        if FEATURE_VALUE in cube
    ]
    faults += [fault for n in range(1, len(names)) for fault in _faults(names, cubes, attrs, n, dim)]
    if faults:
        raise InputError(faults, f"cannot join along {dim}")
    cube = as_cube(_join_layers(cubes) if dim == "layer" else _join_samples(cubes)).drop_attrs(deep=False)
    return cube, _attrs(cube, attrs, dim)


def new_run_faults(out: str | Path) -> list[Fault]:
    """Return why a new run cannot be written to a folder or a URL.

    Raises
    ------
    StorageError
        If the object store cannot be read.
    """
    if not is_url(out):
        return path_faults(Path(out))
    if faults := url_faults(str(out), "out"):
        return faults
    return (
        []
        if RemoteRun(str(out)).cube() is None
        else [Fault("out", f"{out} already exists", "name a new URL")]
    )


def write_joined(
    out: str | Path, cube: xr.Dataset, attrs: Attrs, files: Mapping[str, str] = _NO_FILES
) -> None:
    """Write a joined cube into a new run folder, with other files by name; for a URL, on the way to it."""
    if is_url(out):
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(temporary, "run")
            write_joined(run, cube, attrs, files)
            push(run, str(out))
        return
    out = Path(out)
    with storage_errors(f"cannot write {out}", "nothing was kept"), new_folder(out) as building:
        write_copy(building, cube, attrs)
        for name, text in files.items():
            replace_text(building / name, text)


def _faults(
    names: list[str], cubes: list[xr.Dataset], attrs: list[Attrs], n: int, dim: str
) -> Iterator[Fault]:
    """Yield what does not fit between the first cube and another one."""
    ignored = {*OF_MACHINES, *_SIZES, *_MAY_DIFFER[dim]}
    for name, first, other in differences(attrs[0], attrs[n], ignored=ignored):
        yield Fault(name, f"is {first} in {names[0]}, but {other} in {names[n]}")
    if dim == "layer":
        yield from _sample_faults(names, cubes, n)
        if "residual" in layers_of(cubes[0]) and "residual" in layers_of(cubes[n]):
            for name in sorted({name for name in OF_RESIDUAL if (name in cubes[0]) != (name in cubes[n])}):
                yield Fault(name, f"is missing in {names[n] if name in cubes[0] else names[0]}")
        for component, layers in layers_of(cubes[n]).items():
            for m in range(n):
                if both := sorted(set(layers) & set(layers_of(cubes[m]).get(component, ()))):
                    layer_names = describe_all({component: both})
                    yield Fault("layers", f"{layer_names} is in both {names[m]} and {names[n]}")
        return
    of_first, of_other = (describe_all(layers_of(cubes[index])) for index in (0, n))
    if of_first != of_other:
        yield Fault("layers", f"are {of_first} in {names[0]}, but {of_other} in {names[n]}")
    for name in sorted({str(v) for v in cubes[0].variables} ^ {str(v) for v in cubes[n].variables}):
        lacking = names[n] if name in cubes[0].variables else names[0]
        yield Fault(name, f"is missing in {lacking}")
    known = {key for cube in cubes[:n] for key in _keys(cube)}
    if doubled := sorted(known & set(_keys(cubes[n]))):
        language, sample_id = doubled[0]
        more = f" and {len(doubled) - 1:,} more" if len(doubled) > 1 else ""
        yield Fault("sample_id", f"{sample_id} ({language}){more} is in {names[n]} and in a run before it")


def _sample_faults(names: list[str], cubes: list[xr.Dataset], n: int) -> Iterator[Fault]:
    for name in ("language", "sample_id", "n_tokens", "token_id", "token_kind"):
        first, other = (cubes[index][name].values for index in (0, n))
        if first.shape != other.shape or not np.array_equal(first, other):
            yield Fault(name, f"differs between {names[0]} and {names[n]}", "join runs of the same data")
            return


def _keys(cube: xr.Dataset) -> list[tuple[str, str]]:
    return list(zip(map(str, cube.language.values), map(str, cube.sample_id.values), strict=True))


def layers_of(cube: xr.Dataset) -> dict[str, list[int]]:
    """Return the layers of each component of a cube."""
    return {
        component: cube.layer.values[cube[f"has_{component}"].values].tolist()
        for component in COMPONENTS
        if f"has_{component}" in cube.coords
    }


def _join_layers(cubes: list[xr.Dataset]) -> xr.Dataset:
    axis = sorted({layer for cube in cubes for layer in cube.layer.values.tolist()})
    data: dict[str, xr.DataArray] = {}
    names = dict.fromkeys(str(name) for cube in cubes for name in cube.data_vars)
    for name in names:
        holders = [cube for cube in cubes if name in cube]
        arrays = [cube[name].reset_coords(drop=True) for cube in holders]
        component = component_of(name)
        if name == "nonfinite":
            data[name] = reduce(add, (array.reindex(layer=axis, fill_value=0) for array in arrays))
        elif component in COMPONENTS:
            parts = [
                array.sel(layer=layers_of(cube).get(component, []))
                for array, cube in zip(arrays, holders, strict=True)
            ]
            fill = VARIABLES[name].fill_value if name in VARIABLES else np.nan
            data[name] = xr.concat(parts, "layer").reindex(layer=axis, fill_value=fill)
        else:  # without layers: the same in all
            data[name] = arrays[0]
    kept = [layers_of(cube) for cube in cubes]
    has = {
        f"has_{component}": np.isin(axis, [layer for layers in kept for layer in layers.get(component, [])])
        for component in COMPONENTS
        if any(component in layers for layers in kept)
    }
    first = cubes[0]
    coords = {name: coord for name, coord in first.coords.items() if "layer" not in coord.dims}
    joined = {name: array.variable for name, array in data.items()}
    same_batch = all(np.array_equal(cube.batch.values, first.batch.values) for cube in cubes)
    cube = xr.Dataset(joined, {**coords, "layer": axis, **{name: ("layer", has[name]) for name in has}})
    cube["layer"].attrs = first.layer.attrs
    return (
        cube if same_batch else cube.assign_coords(batch=first.batch.copy(data=np.full_like(first.batch, -1)))
    )


def _join_samples(cubes: list[xr.Dataset]) -> xr.Dataset:
    counts = np.cumsum([0, *(int(cube.batch.max()) + 1 for cube in cubes)])
    starts = np.cumsum([0, *(cube.sizes["sample"] for cube in cubes)])
    numbered = [
        cube.assign_coords(
            batch=(cube.batch + count).astype(np.int32) if (cube.batch >= 0).all() else cube.batch,
            sample=cube.sample.copy(data=np.arange(cube.sizes["sample"]) + start),
        )
        for cube, count, start in zip(cubes, counts, starts, strict=False)
    ]
    fill = {name: value for name, value in _FILL.items() if name in cubes[0].variables}
    fill_value: Any = {**dict.fromkeys(map(str, cubes[0].variables), np.nan), **fill}
    return xr.concat(
        numbered,
        "sample",
        data_vars="minimal",
        coords="minimal",
        compat="override",
        join="outer",
        fill_value=fill_value,
    )


def _attrs(cube: xr.Dataset, sources: list[Attrs], dim: str) -> Attrs:
    """Return the attributes that all cubes share, those that describe the joined one, and its origin."""
    names = list(dict.fromkeys(name for attrs in sources for name in attrs if name not in _OF_FILES))
    shared = {
        name: sources[0][name]
        for name in names
        if all(name in attrs and attrs[name] == sources[0][name] for attrs in sources)
    }
    special = [
        {
            CHECKSUM: attrs[CHECKSUM],
            **{name: attrs[name] for name in names if name in attrs and name not in shared},
        }
        for attrs in sources
    ]
    merged = {"model": sources[0]["model"], **shared, JOINED: json.dumps({"dim": dim, "runs": special})}
    if "layers" in names:
        merged["layers"] = describe_all(layers_of(cube))
    if "truncated_samples" in names:
        merged["truncated_samples"] = int(cube.truncated.sum())
    return merged
