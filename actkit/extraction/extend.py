"""Extension of a run by layers, languages or rows that it lacks."""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import xarray as xr

from ..config_faults import check
from ..errors import Fault, InputError
from ..layer_spec import Spec, describe_all, parse, resolve
from ..object_urls import is_url
from ..options import Names
from ..schema import COMPONENTS, OF_RESIDUAL, ROW_IDS, current_options
from ..store.joins import JOINED, joined, new_run_faults, write_joined
from ..store.layout import find_cube, open_group
from ..store.reader import open_cube
from ..store.remote_run import RemoteRun
from ..store.run_folder import CONFIG
from ..yaml_files import read_yaml
from .monitoring.progress import Listener
from .run import extract


def extend(
    run: str | Path,
    *,
    out: str | Path,
    layers: Spec | None = None,
    languages: Names | None = None,
    data: str | Path | None = None,
    device: str | None = None,
    listeners: Sequence[Listener] | None = None,
) -> xr.Dataset:
    """Compute what a run lacks, and write a new run that holds both.

    Values of the run are copied, not computed again, and the run stays as it is.

    Parameters
    ----------
    run
        Run folder of a complete run, or its URL in an object store.
    out
        Run folder or URL to create. What is computed is kept in ``<out>.added`` until `out` is complete, so
        that the same call continues after an interruption.
    layers, languages
        Layers or languages to have; those that the run lacks are computed.
    data
        File of more rows.
    device
        Device to compute on; that of the run by default.
    listeners
        As for :func:`actkit.extract`.

    Returns
    -------
    xarray.Dataset
        The cube in `out`. Its attribute ``joined_from`` records which runs its values come from.

    Raises
    ------
    InputError
        If nothing is missing, if not exactly one of `layers`, `languages` and `data` is given, or if it does
        not fit the run.
    CubeError
        If the run has no complete cube.

    Notes
    -----
    Also raises what :func:`actkit.extract` raises.
    """
    run, out = str(run), str(out)
    cube = open_cube(run)
    attrs = dict(open_group(find_cube(run)).attrs)
    faults = new_run_faults(out)
    if sum(asked is not None for asked in (layers, languages, data)) != 1:
        faults.append(Fault("layers, languages, data", "give one of them"))
    with RemoteRun(run).settings() if is_url(run) else nullcontext(Path(run)) as settings:
        stored, config_faults = read_yaml(settings / CONFIG, follow=False)
    faults += config_faults
    if faults:
        raise InputError(faults, "cannot extend")
    options = {**current_options(stored), **({"device": device} if device else {})}
    if layers is not None:
        missing, dim = _missing_layers(layers, cube, attrs), "layer"
    elif languages is not None:
        missing, dim = _missing_languages(languages, cube), "sample"
    else:
        missing, dim = _more_rows(str(data), attrs), "sample"
    added = f"{out.rstrip('/')}.added"
    # the same windows, so that samples share their batches with the same ones and round as in a single run
    asked = {**options, "window_samples": attrs["window_samples"], **missing, "out": added}
    extract(**{name: value for name, value in asked.items() if value is not None}, listeners=listeners)
    both, both_attrs = joined([run, added], dim)
    config, _ = check({**options, "layers": both_attrs["layers"], "out": out})
    write_joined(out, both, both_attrs, {CONFIG: config.to_yaml()} if config else {})
    with suppress(OSError):
        RemoteRun(added).remove() if is_url(added) else shutil.rmtree(added)
    return open_cube(out)


def _more_rows(data: str, attrs: dict[str, Any]) -> dict[str, Any]:
    if attrs.get("ids") == ROW_IDS:
        what = "the samples are numbered by row, so more rows would have the same ids"
        raise InputError([Fault("data", what, "name a column of ids by `id_column` in both runs")])
    return {"data": data, "limit": None}


def _missing_languages(asked: Names, cube: xr.Dataset) -> dict[str, Any]:
    names = asked.replace(",", " ").split() if isinstance(asked, str) else list(asked)
    missing = [language for language in names if language not in set(cube.language.values.tolist())]
    if not missing:
        raise InputError([Fault("languages", "nothing is missing: the run has all of them")])
    return {"languages": missing}


def _missing_layers(spec: Any, cube: xr.Dataset, attrs: dict[str, Any]) -> dict[str, Any]:
    if json.loads(attrs.get(JOINED, "{}")).get("dim") == "sample":
        what = "the samples of this run come from several runs"
        raise InputError([Fault("layers", what, "extend each of them, and join the results")])
    parts, faults = parse(spec)
    wanted, more = resolve(parts, dict.fromkeys(COMPONENTS, int(attrs["model_layers"])))
    if faults + more:
        raise InputError(faults + more, "cannot extend")
    present = {
        name: set(cube.layer.values[cube[f"has_{name}"].values].tolist())
        if f"has_{name}" in cube.coords
        else set()
        for name in COMPONENTS
    }
    missing = {
        name: [layer for layer in layers if layer not in present[name]] for name, layers in wanted.items()
    }
    missing = {name: layers for name, layers in missing.items() if layers}
    if not missing:
        raise InputError([Fault("layers", "nothing is missing: the run has all of them")])
    # the embedding is in the run already
    save = [name for name in OF_RESIDUAL if name in cube]
    return {"layers": describe_all(missing), "save": save if "residual" in missing and save else None}
