"""Checks and choices before a training run: layers, tokens, held-out samples, memory, and the folder."""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import xarray as xr

from ..canonical import Cube, as_cube, require
from ..config import Tracking
from ..config_faults import check
from ..errors import Fault, InputError, MissingError
from ..exporters.cube_blocks import model_layers, where_labels
from ..extraction.models.devices import check_device, pick_device
from ..extraction.monitoring.wandb_sink import check_tracking
from ..layer_spec import Spec, describe, parse, resolve
from ..schema import COMPONENTS
from ..stats import selection
from ..stats.finiteness import finite_cube
from ..stats.holdout import SHARE, held_out
from ..stats.token_masks import SELECTED
from ..stats.token_selection import select_tokens
from ..store.reader import read_cube
from .published_saes import published_saes
from .training_settings import (
    SETTINGS_FILE,
    TOKENS_PER_FEATURE,
    TrainingSettings,
    check_options,
    check_sizes,
    dead_after,
    default_rate,
    default_steps,
    with_plain_integers,
)
from .training_tokens import TrainingTokens, count_tokens, token_bytes

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_LEAST_MEMORY = 2**24
_OWN_FILES = {".lock", "status.json", "log.txt"}  # of a run that ended before it wrote its settings


def training_input(run: Cube, options: Mapping[str, Any]) -> TrainingTokens:
    """Check a request and return its tokens, with the resolved settings.

    Parameters
    ----------
    run
        Run folder or cube.
    options
        Options of :func:`actkit.train_saes`.

    Raises
    ------
    InputError, MissingError
        If options are malformed, or the cube lacks what is requested.

    Warns
    -----
    UserWarning
        If there are few tokens for the number of features.
    """
    faults = [*check_options(options), *check_device(str(options["device"]))]
    memory, its_faults = _memory(options["memory"])
    if faults := faults + its_faults + _folder_faults(Path(options["out"])):
        raise InputError(faults, "cannot train autoencoders")
    options = with_plain_integers(options)
    cube = _open(run)
    component = options["component"]
    selection.require(cube, component)
    require(cube, "n_tokens", "token")
    layers = _layers(cube, options["layers"], component)
    tokens = options["tokens"]
    if not (isinstance(tokens, str) and tokens == "content"):
        # without values, because the pooled ones are of no use here
        selected = select_tokens(cube.drop_vars(cube.data_vars), tokens)
        cube = cube.assign_coords({SELECTED: selected[SELECTED]}).assign_attrs(selected.attrs)
    choice = selection.cluster_choice(cube, options["holdout"])
    chosen = where_labels(cube, options["where"])
    is_held_out = held_out(cube, cluster=choice.name, seed=options["seed"])
    training, held = chosen[~is_held_out[chosen]], chosen[is_held_out[chosen]]
    n_tokens = count_tokens(cube, training)
    hidden = cube.sizes["hidden"]
    width = options["width"] or 8 * hidden
    if not n_tokens or not count_tokens(cube, held):
        part = "training" if not n_tokens else "held-out"
        what = f"the {part} samples have no token of {selection.counted(cube, 'content')}"
        raise InputError([Fault("tokens", what, "choose other tokens, or more samples")])
    if faults := check_sizes(width, options["k"], n_tokens):
        raise InputError(faults, "cannot train autoencoders")
    batch = min(options["batch"], n_tokens)
    steps = (
        options["steps"] or (options["epochs"] or 0) * (n_tokens // batch) or default_steps(n_tokens, batch)
    )
    per_token = token_bytes(cube, len(layers))
    settings = TrainingSettings(
        layers=layers,
        component=component,
        hidden=hidden,
        width=width,
        k=options["k"],
        architecture=options["architecture"],
        tokens=selection.counted(cube, "content"),
        where=json.dumps({name: str(value) for name, value in (options["where"] or {}).items()}),
        holdout_cluster=choice.name or "",
        holdout_share=SHARE,
        steps=steps,
        batch=batch,
        lr=float(options["lr"] or default_rate(width)),
        seed=options["seed"],
        dead_after=dead_after(steps, batch),
        n_tokens=n_tokens,
        buffer_bytes=memory,
        is_held=n_tokens * per_token <= memory,
        device=pick_device(str(options["device"])).type,
        model=str(cube.attrs.get("model", "")),
        cube_sha256=str(cube.attrs.get("metadata_sha256", "")),
    )
    _warn_of_few_tokens(settings)
    return TrainingTokens(cube, settings, training, held)


def check_wandb(wandb: str | Mapping[str, Any] | None) -> Tracking | None:
    """Return the options of Weights & Biases.

    Raises
    ------
    InputError
        If they are malformed, or the package or a login is missing.
    """
    if wandb is None:
        return None
    config, faults = check({"model": "-", "data": "-", "out": "-", "wandb": wandb})
    tracking = None if config is None else config.wandb
    if faults := faults or check_tracking(tracking):
        raise InputError(faults, "cannot train autoencoders")
    return tracking


def with_memory_of(settings: TrainingSettings, before: TrainingSettings) -> TrainingSettings:
    """Return settings with the memory of an earlier session, because that determines the order of tokens."""
    return replace(settings, buffer_bytes=before.buffer_bytes, is_held=before.is_held)


def _open(run: Cube) -> xr.Dataset:
    # without dask, whose graph is larger than a batch is worth
    is_path = not isinstance(run, xr.Dataset)
    return finite_cube(as_cube(read_cube(os.fspath(run), chunked=False) if is_path else run))


def _layers(cube: xr.Dataset, layers: Spec, component: str) -> tuple[int, ...]:
    """Return the layers asked for, in ascending order."""
    parts, faults = parse(layers)
    parts = [
        replace(part, component=component) if part.text == "all" or part.text[0] in "-0123456789" else part
        for part in parts
    ]
    captured = selection.captured(cube, component).layer.values.tolist()
    resolved: dict[str, tuple[int, ...]] = {}
    if not faults:
        resolved, faults = resolve(parts, dict.fromkeys(COMPONENTS, model_layers(cube)))
    if not faults and set(resolved) != {component}:
        what = f"names {' and '.join(resolved)}, but component is {component}"
        faults = [Fault("layers", what, "train on one component at a time")]
    if faults:
        raise InputError(faults, "cannot train autoencoders")
    wanted = resolved[component]
    if str(layers).strip() in ("all", f"{component}_all"):
        wanted = tuple(captured)
    if missing := sorted(set(wanted) - set(captured)):
        raise MissingError(
            f"the cube has no {component} of layers {describe(missing)}; it has {describe(captured)}"
        )
    return tuple(int(layer) for layer in wanted)


def _memory(memory: int | str) -> tuple[int, list[Fault]]:
    """Return the memory for tokens in bytes."""
    if memory == "auto":
        return max(psutil.virtual_memory().available // 4, _LEAST_MEMORY), []
    match = _SIZE.fullmatch(str(memory).strip())
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if size < _LEAST_MEMORY:
        return 0, [Fault("memory", f"is {memory!r}", "give at least 17 MB, such as 4GB, or auto")]
    return size, []


def _folder_faults(out: Path) -> list[Fault]:
    """Return reasons why autoencoders cannot be written to a folder."""
    where = f"out {out}"
    if "\0" in str(out):
        return [Fault("out", "holds a NUL character", "correct the path")]
    try:
        if out.is_dir():
            names = {entry.name for entry in out.iterdir()} - _OWN_FILES
            if names and SETTINGS_FILE not in names:
                shown = ", ".join(sorted(names)[:3]) + (" …" if len(names) > 3 else "")
                return [Fault(where, f"holds other files: {shown}", "choose an empty or new folder")]
        elif os.path.lexists(out):
            return [Fault(where, "is a file", "choose a folder")]
        nearest = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    except OSError as error:
        return [Fault(where, f"cannot be used: {error.strerror}", "choose another folder")]
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        return [Fault(where, f"{nearest} cannot be written", "choose another folder")]
    return []


def _warn_of_few_tokens(settings: TrainingSettings) -> None:
    if settings.n_tokens >= TOKENS_PER_FEATURE * settings.width:
        return
    published = published_saes(settings.model, settings.component)
    instead = f", or use those published for this model: {published}" if published else ""
    share = settings.n_tokens / settings.width
    warnings.warn(
        f"{settings.n_tokens:,} tokens for {settings.width:,} features are {share:.0f} for each, and below "
        f"{TOKENS_PER_FEATURE} another seed finds other features; look at held-out measures "
        f"(actkit.training_log), give a smaller width, extract more texts{instead}",
        stacklevel=4,
    )
