"""Extraction of a cube: check the run, load the model, then compute all windows."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
import psutil
import xarray as xr

from ..config import Config
from ..errors import Fault, InputError
from ..object_urls import is_url
from ..options import Options
from ..store.folders import Folder
from ..store.layout import CUBE
from ..store.parts import Part, locked_part
from ..store.reader import open_cube, open_windows
from ..store.remote_run import RemoteRun
from ..store.run_folder import CONFIG, SKIPPED, locked
from ..store.settings import check_unchanged
from ..store.shared_writer import SharedWriter, remove_unfinished
from ..store.writer import CubeWriter, create_cube, storage_errors
from .loop.device_queue import device_name, hold_device
from .loop.local_engine import LocalEngine, compression_threads
from .loop.moment_accumulator import MomentAccumulator
from .loop.trial_run import run_trial
from .models.devices import share_heap
from .monitoring.label_counts import LabelCounts
from .monitoring.progress import Bar, Listener, Meter, StatusFile
from .monitoring.run_log import log_file, logger
from .monitoring.wandb_sink import tracked
from .preflight.preparation import RunPlan, prepare

if TYPE_CHECKING:
    from .cluster.cluster_engine import ClusterEngine


def plan(
    config: str | Path | Config | None = None,
    *,
    trial: bool = True,
    parts: int | None = None,
    network: float | None = None,
    **options: Unpack[Options],
) -> RunPlan:
    """Check a run and estimate its cost, without leaving any files behind.

    Parameters
    ----------
    config
        A YAML file or a config; options override it.
    trial
        Whether to load the model and run a few batches, which takes about ten seconds longer. Without a
        trial, and if less memory is available than the run needs, the estimate is calculated, without time.
    parts, network
        Number of parts in which the run is computed at once, each on a device like this one, and the
        bandwidth that they share, in gigabits per second.
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
    faults = [
        Fault(name, f"is {value}", "give a number above 0")
        for name, value in (("parts", parts), ("network", network))
        if value is not None and not value > 0
    ]
    if faults:
        raise InputError(faults)
    prepared = replace(prepare(config, options), parts=parts, network=network)
    fits = prepared.estimate.host <= psutil.virtual_memory().available
    return run_trial(prepared, compression_threads()) if trial and fits else prepared


def extract(
    config: str | Path | Config | None = None,
    *,
    listeners: Sequence[Listener] | None = None,
    queue: str | Path | None = None,
    part: str | Sequence[int] | None = None,
    cluster: str | None = None,
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
    part
        Part of the run that this process computes, such as ``"3/16"`` or ``(3, 16)``: every sixteenth window.
        Any number of processes, on any machines that share the folder, may compute parts at any time.
        :func:`actkit.seal` finishes the run.
    cluster
        Cluster whose workers compute the run: ``"local:2"`` for two processes on this machine, the address of
        a Dask scheduler, such as ``"tcp://host:8786"``, or a YAML file with arguments of
        ``dask_jobqueue.SLURMCluster``. The cube is the same.
    **options
        Options, named as in :class:`actkit.config.Config`: ``model``, ``data``, ``out``, ``layers``, etc.

    Returns
    -------
    xarray.Dataset
        The complete cube, as :func:`actkit.open_cube` returns it; of a part, its samples.

    Raises
    ------
    InputError
        Lists all faults of options, data, model and output; nothing was written.
    ChangedError
        If ``out`` contains a cube made with other settings, which are named, or if rows or images, which are
        named, change during the run. Parts must also agree in the device's name and in the threads per batch.
    LockedError
        If another process writes this run or part.
    ModelError
        If the model cannot be captured faithfully.
    NonfiniteError
        If a value is NaN or Inf and ``on_nonfinite="raise"``.
    StorageError
        If writing fails; committed windows are safe.
    ClusterError
        If the workers of the cluster are lost or cannot be reached; committed windows are safe.

    Notes
    -----
    A call with the same arguments resumes the run at the first uncommitted window.
    """
    share_heap()
    share = None if part is None else Part.parse(part)
    if cluster is not None:
        _check_cluster(cluster, part)
    prepared = prepare(config, options)
    run, plan = prepared.run, prepared.plan
    remote = RemoteRun(prepared.config.out, part=share) if is_url(prepared.config.out) else None
    if remote is not None and cluster is not None:
        hint = "give a folder and `actkit push` it, or compute parts"
        raise InputError([Fault("cluster", "cannot write to an object store yet", hint)])
    with storage_errors("cannot make the run folder"):
        run.mkdir(parents=True, exist_ok=True)
    tracking = tracked(prepared.config, prepared.rules.axis, plan.shape)
    windows = share.windows(plan.n_windows) if share else range(plan.n_windows)
    with _held(run, share) as (folder, status_folder), log_file(status_folder), tracking as trackers:
        progress_listeners: list[Listener] = list(listeners) if listeners is not None else [Bar(share)]
        status_file = StatusFile(status_folder, run_samples=plan.shape.sample if share else 0)
        total = sum(len(plan.samples_of(window)) for window in windows)
        progress_listeners = [*progress_listeners, status_file, *trackers]
        if remote is not None:
            progress_listeners.append(lambda event: remote.copy_status(status_folder, event.state))
        meter = Meter(total, progress_listeners)
        state = "failed"
        try:
            with _device_turn(prepared.config, queue, meter):
                _run(prepared, folder, meter, windows if share else None, remote, cluster)
            state = "done"
        except KeyboardInterrupt:
            state = "interrupted"
            raise
        finally:
            logger.info(state)
            meter.emit(state)
            if remote is not None:
                remote.copy_log(status_folder)
    if remote is not None:
        return open_cube(prepared.config.out, partial=share is not None)
    return open_windows(run, windows) if share else open_cube(run)


@contextmanager
def _held(run: Path, part: Part | None) -> Iterator[tuple[Folder, Folder]]:
    """Hold the run folder, and the folder of the status and the log, which each part has for itself."""
    if part is None:
        with locked(run) as folder:
            yield folder, folder
    else:
        with closing(Folder(run)) as folder, locked_part(run, part) as part_folder:
            folder.must_lock = False
            yield folder, part_folder


def _device_turn(config: Config, queue: str | Path | None, meter: Meter) -> AbstractContextManager[None]:
    """Wait until the device is free, if runs queue for it."""
    if queue is None:
        return nullcontext()
    return hold_device(Path(queue), device_name(config), lambda: meter.emit("queued"))


def _check_cluster(cluster: str, part: object) -> None:
    if part is not None:
        fault = Fault("part", "a part is computed by one process, not by a cluster", "leave out one of them")
        raise InputError([fault])
    try:
        from .cluster.connection import check_cluster
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed"
        raise InputError([Fault("cluster", missing, "run pip install 'actkit[cluster]'")]) from error
    check_cluster(cluster)


def _run(
    prepared: RunPlan,
    folder: Folder,
    meter: Meter,
    windows: range | None,
    remote: RemoteRun | None,
    cluster: str | None,
) -> None:
    """Create the cube unless it exists, and compute its windows, or those of a part."""
    if windows is not None and prepared.scan_cache is not None:  # other parts need not scan the rows
        prepared.scan_cache.save(folder, prepared.scan, prepared.spec.measure)
    if remote is not None:
        _run_remote(prepared, folder, meter, windows, remote)
        return
    meter.emit("loading")
    folder.check()
    if cluster is None:
        _compute(prepared, folder, meter, windows, LocalEngine(prepared))
        return
    from .cluster.cluster_engine import ClusterEngine

    with closing(ClusterEngine(prepared, cluster)) as engine:
        _compute(prepared, folder, meter, None, engine)


def _compute(
    prepared: RunPlan,
    folder: Folder,
    meter: Meter,
    windows: range | None,
    engine: "LocalEngine | ClusterEngine",
) -> None:
    path = prepared.run / CUBE
    is_part, is_local = windows is not None, isinstance(engine, LocalEngine)
    if path.exists():
        check_unchanged(path, prepared.attrs, same_machine=is_part or not is_local)
    else:
        sum_rule = engine.check_model()
        if not is_part:
            _write_settings(prepared, folder)
        create_cube(
            folder,
            prepared.plan,
            variables=prepared.size.variables,
            coords=prepared.coords(),
            labels=prepared.scan.label_dtypes,
            rows=prepared.rows(),
            attrs={**prepared.attrs, **sum_rule},
            shared=is_part,
        )
    if is_part:  # another part may have created the cube
        check_unchanged(path, prepared.attrs, same_machine=True)
        if folder.size(CONFIG) < 0:
            _write_settings(prepared, folder)
    every = range(prepared.plan.n_windows) if windows is None else windows
    threads = compression_threads()
    with closing(
        CubeWriter(path, prepared.plan, threads=threads)
        if is_local and not is_part
        else SharedWriter(path, prepared.plan, every, threads=threads)
    ) as writer:
        folder.check()  # otherwise the cube opened at this path may belong to another run
        _complete(prepared, folder, engine, writer, meter, windows)


def _run_remote(
    prepared: RunPlan, folder: Folder, meter: Meter, windows: range | None, remote: RemoteRun
) -> None:
    """Do the same in an object store, where any number of processes may write without a lock."""
    meter.emit("loading")
    remote.check()
    engine = LocalEngine(prepared)
    cube = remote.cube()
    if cube is None:
        sum_rule = engine.check_model()
        remote.create(
            prepared.plan,
            variables=prepared.size.variables,
            coords=prepared.coords(),
            labels=prepared.scan.label_dtypes,
            rows=prepared.rows(),
            attrs={**prepared.attrs, **sum_rule},
        )
        _write_settings(prepared, remote)
    else:
        check_unchanged(cube, prepared.attrs, same_machine=windows is not None)
    with closing(remote.writer(prepared.plan, windows, threads=compression_threads())) as writer:
        _complete(prepared, folder, engine, writer, meter, windows)
    if prepared.config.whiten and windows is None:
        remote.copy_moments()


def _write_settings(prepared: RunPlan, folder: Folder | RemoteRun) -> None:
    """Write the list of skipped rows, if there are any, and the options."""
    if skipped := prepared.scan.skipped:
        lines = (json.dumps({"where": where, "what": what}, ensure_ascii=False) for where, what in skipped)
        _write_file(folder, SKIPPED, "\n".join(lines) + "\n")
    _write_file(folder, CONFIG, prepared.config.to_yaml())


def _write_file(folder: Folder | RemoteRun, name: str, text: str) -> None:
    with storage_errors("cannot write"):
        folder.replace(name, text.encode())


def _complete(
    prepared: RunPlan,
    folder: Folder,
    engine: "LocalEngine | ClusterEngine",
    writer: CubeWriter,
    meter: Meter,
    windows: range | None,
) -> None:
    """Compute the windows, by default all, that are not committed yet."""
    plan = prepared.plan
    labels = prepared.scan.label_dtypes
    restored = writer.restore(prepared.coords(), labels, prepared.rows())
    if restored:
        logger.warning("rewrote damaged coordinates: %s", ", ".join(restored))
    todo = writer.recover()
    wanted = np.zeros(plan.shape.sample, dtype=bool)
    for window in range(plan.n_windows) if windows is None else windows:
        wanted[plan.samples_of(window)] = True
    done = wanted.copy()
    for window in todo:
        done[plan.samples_of(window)] = False
    total, committed = int(wanted.sum()), int(done.sum())
    logger.info("%d of %d samples remain to be computed", total - committed, total)
    # the moments of parts are computed from the cube when it is sealed, those of a cluster's run at its end
    has_moments = prepared.config.whiten and windows is None
    accumulator = MomentAccumulator(prepared, folder, writer.path) if has_moments else None
    added = accumulator if isinstance(engine, LocalEngine) else None
    if todo:
        engine.start()
    meter.begin(committed, engine.device_bytes, LabelCounts(writer.path, done))
    if todo:
        try:
            engine.compute(writer, todo, meter, added)
        finally:
            if added is not None:
                added.save()
    if not isinstance(engine, LocalEngine):
        remove_unfinished(prepared.run, folder)
    if accumulator is not None:
        folder.check()
        accumulator.complete()
