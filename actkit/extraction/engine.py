"""From prompts to a complete cube: check, load, then window after window until nothing is left."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from ..config import Config
from ..errors import ChangedError, Fault
from ..layers import describe_all
from ..schema import VISION
from ..store.layout import CHECKSUM, CUBE, open_group
from ..store.reading import open_cube
from ..store.runs import CONFIG, SKIPPED, locked, replace_text
from ..store.writing import CubeWriter, create_cube, storage_errors
from .buffers import WindowBuffer
from .capture import Capture
from .feeding import batch_prompts, windows
from .forward import call
from .generation import continue_prompts
from .logs import log_file, logger
from .models.loading import LoadedModel, load_model
from .models.sites import check_sum_rule
from .preparing import Prepared, prepare
from .progress import Bar, Listener, Meter, StatusFile
from .prompts.encoding import Prompt

# found by running, or said by the options as well
_NOT_SETTINGS = {
    "actkit_format",
    "arrays",
    "coordinates",
    "sum_rule",
    "sum_rule_error",
    "storage",
    "tokens_kept",
    CHECKSUM,
}


def plan(config: str | Path | Config | None = None, **options: Any) -> Prepared:
    """Check a run and say what it will take, without loading the model's weights or writing anything.

    Parameters
    ----------
    config
        A YAML file or a config; options go over it.
    **options
        The names of :class:`actkit.config.Config`.

    Returns
    -------
    Prepared
        ``plan`` (windows, batches, tokens), ``estimate`` (disk and memory, in bytes), ``layers``,
        ``scan`` (which rows are taken).

    Raises
    ------
    InputError
        With every fault of options, data, model and output.
    """
    return prepare(config, options)


def extract(
    config: str | Path | Config | None = None,
    *,
    listeners: Sequence[Listener] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Run prompts through a model and keep what every layer computed.

    Parameters
    ----------
    config
        A YAML file or a config; options go over it.
    listeners
        Called with each :class:`~actkit.extraction.progress.Progress`; a progress bar by default.
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
    prepared = prepare(config, options)
    run = prepared.run
    with storage_errors("cannot make the run folder"):
        run.mkdir(parents=True, exist_ok=True)
    with locked(run), log_file(run):
        told: list[Listener] = [*(listeners if listeners is not None else [Bar()]), StatusFile(run)]
        meter = Meter(prepared.plan.shape.sample, told)
        state = "failed"
        try:
            _run(prepared, meter)
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            logger.info(state)
            meter.tell(state)
    return open_cube(run)


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
    writer = CubeWriter(path, prepared.plan)
    restored = writer.restore(prepared.coords(), labels, prepared.rows())
    if restored:
        logger.warning("coordinates were damaged, and are written again: %s", ", ".join(restored))
    todo = writer.recover()
    total = prepared.plan.shape.sample
    left = sum(len(prepared.plan.samples_of(window)) for window in todo)
    logger.info("%d of %d samples are to be computed", left, total)
    if todo:
        model = model or _load(prepared)
        meter.begin(total - left, partial(_device_memory, model.device))
        _compute(prepared, model, writer, todo, meter)
    else:
        meter.begin(total, dict)


def _compute(
    prepared: Prepared, model: LoadedModel, writer: CubeWriter, todo: list[int], meter: Meter
) -> None:
    """Compute each window while the one before it is compressed and written."""
    capture = Capture(model, prepared.architecture, prepared.encoder, prepared.rules)
    buffers = [WindowBuffer(prepared.plan, prepared.variables) for _ in range(min(2, len(todo)))]
    writing: list[Future[None] | None] = [None] * len(buffers)

    def write(window: int, arrays: Mapping[str, np.ndarray]) -> None:
        started = time.monotonic()
        meter.bytes_written += writer.write(window, arrays)
        meter.committed += len(prepared.plan.samples_of(window))
        logger.info("window %d committed in %.2f s", window, time.monotonic() - started)

    with ThreadPoolExecutor(1, thread_name_prefix="actkit-write") as pool:
        for turn, (window, rows) in enumerate(windows(prepared, todo)):
            slot = turn % len(buffers)
            if (before := writing[slot]) is not None:
                before.result()  # waits for its buffer, and raises what went wrong
            samples = prepared.plan.samples_of(window)
            for batch in prepared.plan.batches_of(window):
                prompts = batch_prompts(prepared, rows, samples.start, batch)
                if prepared.config.generate is not None:
                    prompts = _continue(prepared, model, prompts, batch, samples.start, buffers[slot])
                # one pass over prompts and what was generated after them, if anything was
                capture.run(prompts, batch, batch - samples.start, buffers[slot])
                meter.samples += len(batch)
                meter.tokens += sum(len(prompt.ids) for prompt in prompts)
                meter.tell()
            arrays = buffers[slot].arrays(len(samples))
            _warn_nonfinite(arrays, prepared, model, samples.start)
            writing[slot] = pool.submit(write, window, arrays)
        for future in writing:
            if future is not None:
                future.result()


def _continue(
    prepared: Prepared,
    model: LoadedModel,
    prompts: list[Prompt],
    batch: np.ndarray,
    first: int,
    buffer: WindowBuffer,
) -> list[Prompt]:
    """Let the model continue a batch, and keep the text."""
    assert prepared.config.generate is not None
    tokenizer = prepared.encoder.tokenizer
    continued = continue_prompts(
        model,
        prompts,
        prepared.config.generate,
        samples=batch,
        batch=int(prepared.plan.batches[batch[0]]),
        pad_id=tokenizer.pad_token_id or 0,
    )
    for row, before, prompt in zip(batch - first, prompts, continued, strict=True):
        new = prompt.ids[len(before.ids) :]
        buffer["generated"][row] = tokenizer.decode(new, skip_special_tokens=True)
    return continued


def _check_sum_rule(prepared: Prepared, model: LoadedModel) -> dict[str, str | float]:
    """Check on the first batch that the parts of each block add up, and say so for the cube."""
    if not {"attention", "mlp"} & prepared.layers.keys():
        return {}
    _, rows = next(windows(prepared, [0]))
    batch = next(prepared.plan.batches_of(0))
    prompts = batch_prompts(prepared, rows, 0, batch)
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


def _warn_nonfinite(
    arrays: Mapping[str, np.ndarray], prepared: Prepared, model: LoadedModel, first: int
) -> None:
    axes = {"": prepared.rules.axis, f"{VISION}/": prepared.layers.get(VISION, ())}
    met = [
        f"{group.replace('/', ' ')}layer {axis[layer]}, sample {first + row}: {counts[layer, row]}"
        for group, axis in axes.items()
        if (counts := arrays.get(f"{group}nonfinite")) is not None
        for layer, row in np.argwhere(counts)
    ]
    if met:
        more = f" and {len(met) - 5} more" if len(met) > 5 else ""
        done = "set to 0" if prepared.config.on_nonfinite == "zero" else "kept"
        shown = "; ".join(met[:5]) + more
        logger.warning("values that are NaN or Inf, %s: %s%s", done, shown, model.overflow_cause)


def _device_memory(device: torch.device) -> dict[str, int]:
    if device.type != "cuda":
        return {}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "total": torch.cuda.get_device_properties(device).total_memory,
    }
