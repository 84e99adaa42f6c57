"""Extraction of a cube: check the run, load the model, then compute all windows."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import psutil
import torch
import xarray as xr

from ..config import Config
from ..errors import ChangedError, Fault
from ..layer_spec import describe_all
from ..options import Options
from ..schema import current_options
from ..store.folders import Folder
from ..store.layout import CUBE, open_group
from ..store.metadata import CHECKSUM
from ..store.reader import open_cube
from ..store.receipts import RECEIPTS
from ..store.run_folder import CONFIG, SKIPPED, locked
from ..store.writer import CubeWriter, create_cube, storage_errors
from .capture.hooks import call
from .loop.data_loader import batches
from .loop.device_queue import device_name, hold_device
from .loop.moment_accumulator import MomentAccumulator
from .loop.pipeline import compute
from .loop.trial_run import run_trial
from .models.devices import share_heap
from .models.hook_points import check_sum_rule
from .models.loader import LoadedModel, load_model
from .monitoring.label_counts import LabelCounts
from .monitoring.progress import Bar, Listener, Meter, StatusFile
from .monitoring.run_log import log_file, logger
from .monitoring.wandb_sink import tracked
from .preflight.preparation import RunPlan, prepare

# attributes that result from running, or that `options` contains too
_NOT_SETTINGS = {
    "actkit_format",
    "arrays",
    "batch_tokens",
    "coordinates",
    "ids",
    "sum_rule",
    "sum_rule_error",
    "storage",
    "threads",
    "tokens_kept",
    CHECKSUM,
    RECEIPTS,
}


def plan(
    config: str | Path | Config | None = None, *, trial: bool = True, **options: Unpack[Options]
) -> RunPlan:
    """Check a run and estimate its cost, without leaving any files behind.

    Parameters
    ----------
    config
        A YAML file or a config; options override it.
    trial
        Whether to load the model and run a few batches, which takes about ten seconds longer. Without a
        trial, and if less memory is available than the run needs, the estimate is calculated, without time.
    **options
        Options, named as in :class:`actkit.config.Config`.

    Returns
    -------
    RunPlan
        The plan, which prints as a table.

    Raises
    ------
    InputError
        Lists all faults of options, data, model and output, and the resources of which the run needs more
        than there is.
    """
    share_heap()
    prepared = prepare(config, options)
    fits = prepared.estimate.host <= psutil.virtual_memory().available
    return run_trial(prepared, _threads()) if trial and fits else prepared


def extract(
    config: str | Path | Config | None = None,
    *,
    listeners: Sequence[Listener] | None = None,
    queue: str | Path | None = None,
    **options: Unpack[Options],
) -> xr.Dataset:
    """Run prompts through a model and store the activations of its layers.

    Parameters
    ----------
    config
        A YAML file or a config; options override it.
    listeners
        Called with each :class:`~actkit.extraction.monitoring.progress.Progress`; a progress bar by default.
    queue
        Folder in which runs queue for a device, which one run uses at a time.
    **options
        Options, named as in :class:`actkit.config.Config`: ``model``, ``data``, ``out``, ``layers``, etc.

    Returns
    -------
    xarray.Dataset
        The complete cube, as :func:`actkit.open_cube` returns it.

    Raises
    ------
    InputError
        Lists all faults of options, data, model and output; nothing was written.
    ChangedError
        If ``out`` contains a cube made with other settings, which are named, or if rows or images, which are
        named, change during the run.
    LockedError
        If another process writes this run.
    ModelError
        If the model cannot be captured faithfully.
    NonfiniteError
        If a value is NaN or Inf and ``on_nonfinite="raise"``.
    StorageError
        If writing fails; committed windows are safe.

    Notes
    -----
    A call with the same arguments resumes the run at the first uncommitted window.
    """
    share_heap()
    prepared = prepare(config, options)
    run = prepared.run
    with storage_errors("cannot make the run folder"):
        run.mkdir(parents=True, exist_ok=True)
    tracking = tracked(prepared.config, prepared.rules.axis, prepared.plan.shape)
    with locked(run) as folder, log_file(folder), tracking as trackers:
        progress_listeners: Sequence[Listener] = listeners if listeners is not None else [Bar()]
        meter = Meter(prepared.plan.shape.sample, [*progress_listeners, StatusFile(folder), *trackers])
        state = "failed"
        try:
            with _device_turn(prepared.config, queue, meter):
                _run(prepared, folder, meter)
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            logger.info(state)
            meter.emit(state)
    return open_cube(run)


def _device_turn(config: Config, queue: str | Path | None, meter: Meter) -> AbstractContextManager[None]:
    """Wait until the device is free, if runs queue for it."""
    if queue is None:
        return nullcontext()
    return hold_device(Path(queue), device_name(config), lambda: meter.emit("queued"))


def _run(prepared: RunPlan, folder: Folder, meter: Meter) -> None:
    path = prepared.run / CUBE
    meter.emit("loading")
    folder.check()
    model = None
    labels = prepared.scan.label_dtypes
    if path.exists():
        _check_unchanged(path, prepared)
    else:
        model = _load(prepared)
        sum_rule = _check_sum_rule(prepared, model)
        _write_file(folder, CONFIG, prepared.config.to_yaml())
        if skipped := prepared.scan.skipped:
            lines = (
                json.dumps({"where": where, "what": what}, ensure_ascii=False) for where, what in skipped
            )
            _write_file(folder, SKIPPED, "\n".join(lines) + "\n")
        create_cube(
            folder,
            prepared.plan,
            variables=prepared.size.variables,
            coords=prepared.coords(),
            labels=labels,
            rows=prepared.rows(),
            attrs={**prepared.attrs, **sum_rule},
        )
    with closing(CubeWriter(path, prepared.plan, threads=_threads())) as writer:
        folder.check()  # otherwise the cube opened at this path may belong to another run
        _complete(prepared, folder, model, writer, meter)


def _write_file(folder: Folder, name: str, text: str) -> None:
    with storage_errors("cannot write"):
        folder.replace(name, text.encode())


def _complete(
    prepared: RunPlan, folder: Folder, model: LoadedModel | None, writer: CubeWriter, meter: Meter
) -> None:
    """Compute all windows that are not committed yet."""
    labels = prepared.scan.label_dtypes
    restored = writer.restore(prepared.coords(), labels, prepared.rows())
    if restored:
        logger.warning("rewrote damaged coordinates: %s", ", ".join(restored))
    todo = writer.recover()
    total = prepared.plan.shape.sample
    done = np.ones(total, dtype=bool)
    for window in todo:
        done[prepared.plan.samples_of(window)] = False
    committed = int(done.sum())
    logger.info("%d of %d samples remain to be computed", total - committed, total)
    accumulator = MomentAccumulator(prepared, folder) if prepared.config.whiten else None
    if todo:
        model = model or _load(prepared)
        meter.begin(committed, partial(_device_memory, model.device), LabelCounts(writer.path, done))
        try:
            compute(prepared, model, writer, todo, meter, accumulator)
        finally:
            if accumulator is not None:
                accumulator.save()
    else:
        meter.begin(committed, dict, LabelCounts(writer.path, done))
    if accumulator is not None:
        folder.check()
        accumulator.complete()


def _check_sum_rule(prepared: RunPlan, model: LoadedModel) -> dict[str, str | float]:
    """Check the sum rule on the first batch, and return the result as attributes of the cube."""
    if not {"attention", "mlp"} & prepared.layers.keys():
        return {}
    prompts = next(batches(prepared, [0])).prompts
    with torch.inference_mode():
        errors = check_sum_rule(model.hook_points, lambda: call(model, prompts))
    finite = [error for error in errors if not math.isnan(error)]
    if len(finite) < len(errors):
        checked = f"checked in {len(finite)} of {len(errors)} blocks"
        result = f"{checked}; the first outputs of the others are not finite"
        logger.warning("sum rule: %s", result)
        return {"sum_rule": result}
    logger.info("largest relative error of the sum rule: %.1e", max(finite))
    return {"sum_rule": model.hook_points.exception or "holds", "sum_rule_error": float(f"{max(finite):.1e}")}


def _load(prepared: RunPlan) -> LoadedModel:
    model = load_model(prepared.spec.checkpoint, prepared.spec.architecture, prepared.config)
    prepared.spec.checkpoint.check_unchanged()  # a run may have queued for its device for hours
    logger.info("loaded %s as %s on %s", prepared.spec.checkpoint.name, model.dtype, model.device)
    logger.info("layers %s, %d windows", describe_all(prepared.layers), prepared.plan.n_windows)
    return model


def _check_unchanged(path: Path, prepared: RunPlan) -> None:
    stored, current = _settings(open_group(path).attrs), _settings(prepared.attrs)
    faults = [
        Fault(name, f"was {_shown(name, stored)}, is now {_shown(name, current)}")
        for name in sorted(stored.keys() | current.keys())
        if stored.get(name) != current.get(name)
    ]
    if faults:
        heading = (
            f"{prepared.run} contains a cube made with other settings; choose another `out`, or restore them"
        )
        raise ChangedError(faults, heading)


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    field = Config.model_fields.get(name)
    return repr(settings.get(name, field.default if field else "not set"))


def _settings(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that the settings of a run determine, with a separate entry for each option."""
    kept = {name: value for name, value in attrs.items() if name not in _NOT_SETTINGS}
    options = json.loads(kept.pop("options", "{}"))
    return {**kept, **current_options(options)}


def _threads() -> int:
    """Return the number of threads that compress."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def _device_memory(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
