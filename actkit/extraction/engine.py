"""From prompts to a complete cube: check, load, then window after window until nothing is left."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import xarray as xr

from ..config import Config
from ..errors import ChangedError, Fault
from ..layers import describe_all
from ..store.layout import CHECKSUM, CUBE, open_group
from ..store.reading import open_cube
from ..store.runs import CONFIG, SKIPPED, locked, replace_text
from ..store.writing import CubeWriter, create_cube, storage_errors
from .feeding import batches
from .forward import call
from .heap import share_heap
from .logs import log_file, logger
from .models.loading import LoadedModel, load_model
from .models.sites import check_sum_rule
from .pipeline import compute
from .preparing import Prepared, prepare
from .progress import Bar, Listener, Meter, StatusFile
from .queueing import device_name, turn
from .tally import Tally
from .tracking import tracked
from .trial import try_out
from .whitening import Gathering

# found by running, or said by the options as well
_NOT_SETTINGS = {
    "actkit_format",
    "arrays",
    "batch_tokens",
    "coordinates",
    "sum_rule",
    "sum_rule_error",
    "storage",
    "threads",
    "tokens_kept",
    CHECKSUM,
}


def plan(config: str | Path | Config | None = None, *, trial: bool = True, **options: Any) -> Prepared:
    """Check a run and say what it will take, without leaving anything behind.

    Parameters
    ----------
    config
        A YAML file or a config; options go over it.
    trial
        Whether to load the model and run a few batches, which takes some ten seconds more. Without it, and
        where less memory is available than the run needs, arithmetic says what it can: nothing of time.
    **options
        The names of :class:`actkit.config.Config`.

    Returns
    -------
    Prepared
        ``plan`` (windows, batches, tokens), ``estimate`` (disk and memory, in bytes, and time), ``layers``,
        ``scan`` (which rows are taken).

    Raises
    ------
    InputError
        With every fault of options, data, model and output, and with what the run needs more of than
        there is.
    """
    share_heap()
    prepared = prepare(config, options)
    fits = prepared.estimate.host <= psutil.virtual_memory().available
    return try_out(prepared, _threads()) if trial and fits else prepared


def extract(
    config: str | Path | Config | None = None,
    *,
    listeners: Sequence[Listener] | None = None,
    queue: str | Path | None = None,
    **options: Any,
) -> xr.Dataset:
    """Run prompts through a model and keep what every layer computed.

    Parameters
    ----------
    config
        A YAML file or a config; options go over it.
    listeners
        Called with each :class:`~actkit.extraction.progress.Progress`; a progress bar by default.
    queue
        A folder in which runs wait for their turn: one at a time uses a device.
    **options
        The names of :class:`actkit.config.Config`: ``model``, ``data``, ``out``, ``layers`` and so on.

    Returns
    -------
    xarray.Dataset
        The complete cube, as :func:`actkit.open_cube` gives it.

    Raises
    ------
    InputError
        With every fault of options, data, model and output; nothing was written.
    ChangedError
        Where ``out`` holds a cube that was made with other settings, naming the fields; or where rows or
        images change during the run, naming them.
    LockedError
        Where another process writes this run.
    ModelError
        Where the model cannot be captured faithfully.
    NonfiniteError
        Where a value is NaN or Inf and ``on_nonfinite="raise"``.
    StorageError
        Where the disk refuses; committed windows are safe.

    Notes
    -----
    Calling it again with the same arguments continues at the first uncommitted window.
    """
    share_heap()
    prepared = prepare(config, options)
    run = prepared.run
    with storage_errors("cannot make the run folder"):
        run.mkdir(parents=True, exist_ok=True)
    tracking = tracked(prepared.config, prepared.rules.axis, prepared.plan.shape)
    with locked(run), log_file(run), tracking as trackers:
        shown: Sequence[Listener] = listeners if listeners is not None else [Bar()]
        meter = Meter(prepared.plan.shape.sample, [*shown, StatusFile(run), *trackers])
        state = "failed"
        try:
            with _turn(prepared.config, queue, meter):
                _run(prepared, meter)
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            logger.info(state)
            meter.tell(state)
    return open_cube(run)


def _turn(config: Config, queue: str | Path | None, meter: Meter) -> AbstractContextManager[None]:
    """Wait until the device is free, where runs queue for it."""
    if queue is None:
        return nullcontext()
    return turn(Path(queue), device_name(config), lambda: meter.tell("queued"))


def _run(prepared: Prepared, meter: Meter) -> None:
    path = prepared.run / CUBE
    meter.tell("loading")
    model = None
    labels = prepared.scan.label_dtypes
    if path.exists():
        _check_unchanged(path, prepared)
    else:
        model = _load(prepared)
        sum_rule = _check_sum_rule(prepared, model)
        replace_text(prepared.run / CONFIG, prepared.config.to_yaml())
        if skipped := prepared.scan.skipped:
            lines = (
                json.dumps({"where": where, "what": what}, ensure_ascii=False) for where, what in skipped
            )
            replace_text(prepared.run / SKIPPED, "\n".join(lines) + "\n")
        create_cube(
            prepared.run,
            prepared.plan,
            variables=prepared.variables,
            coords=prepared.coords(),
            labels=labels,
            rows=prepared.rows(),
            attrs={**prepared.attrs, **sum_rule},
        )
    with closing(CubeWriter(path, prepared.plan, threads=_threads())) as writer:
        _complete(prepared, model, writer, meter)


def _complete(prepared: Prepared, model: LoadedModel | None, writer: CubeWriter, meter: Meter) -> None:
    """Compute what is not committed yet."""
    labels = prepared.scan.label_dtypes
    restored = writer.restore(prepared.coords(), labels, prepared.rows())
    if restored:
        logger.warning("coordinates were damaged, and are written again: %s", ", ".join(restored))
    todo = writer.recover()
    total = prepared.plan.shape.sample
    done = np.ones(total, dtype=bool)
    for window in todo:
        done[prepared.plan.samples_of(window)] = False
    committed = int(done.sum())
    logger.info("%d of %d samples are to be computed", total - committed, total)
    gathering = Gathering(prepared) if prepared.config.whiten else None
    if todo:
        model = model or _load(prepared)
        meter.begin(committed, partial(_device_memory, model.device), Tally(writer.path, done))
        try:
            compute(prepared, model, writer, todo, meter, gathering)
        finally:
            if gathering is not None:
                gathering.keep()
    else:
        meter.begin(committed, dict, Tally(writer.path, done))
    if gathering is not None:
        gathering.complete()


def _check_sum_rule(prepared: Prepared, model: LoadedModel) -> dict[str, str | float]:
    """Check on the first batch that the parts of each block add up, and say so for the cube."""
    if not {"attention", "mlp"} & prepared.layers.keys():
        return {}
    prompts = next(batches(prepared, [0])).prompts
    with torch.inference_mode():
        errors = check_sum_rule(model.sites, lambda: call(model, prompts))
    found = [error for error in errors if not math.isnan(error)]
    if len(found) < len(errors):
        what = f"checked in {len(found)} of {len(errors)} blocks: the others gave nothing finite at first"
        logger.warning("sum rule: %s", what)
        return {"sum_rule": what}
    logger.info("largest relative error of the sum rule: %.1e", max(found))
    return {"sum_rule": model.sites.exception or "holds", "sum_rule_error": float(f"{max(found):.1e}")}


def _load(prepared: Prepared) -> LoadedModel:
    model = load_model(prepared.checkpoint, prepared.architecture, prepared.config)
    logger.info("loaded %s as %s on %s", prepared.checkpoint.name, model.dtype, model.device)
    logger.info("layers %s, %d windows", describe_all(prepared.layers), prepared.plan.n_windows)
    return model


def _check_unchanged(path: Path, prepared: Prepared) -> None:
    stored, wanted = _settings(open_group(path).attrs), _settings(prepared.attrs)
    faults = [
        Fault(name, f"was {_shown(name, stored)}, is now {_shown(name, wanted)}")
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name)
    ]
    if faults:
        heading = f"{prepared.run} holds a cube of other settings; choose another `out`, or go back to them"
        raise ChangedError(faults, heading)


def _shown(name: str, settings: Mapping[str, Any]) -> str:
    field = Config.model_fields.get(name)
    return repr(settings.get(name, field.default if field else "not set"))


def _settings(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that a run decides, each option by its own name."""
    kept = {name: value for name, value in attrs.items() if name not in _NOT_SETTINGS}
    options = json.loads(kept.pop("options", "{}"))
    return {**kept, **options}


def _threads() -> int:
    """Return how many threads compress."""
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
