"""Clusters of Dask: started on this machine or by Slurm, or running already."""

import importlib.util
import logging
import os
import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster
from tornado.ioloop import PeriodicCallback

from ...errors import ClusterError, Fault, InputError
from ...yaml_files import read_yaml

if TYPE_CHECKING:
    from dask_jobqueue.core import JobQueueCluster

# of the tasks that a worker dies of or with; leases that others can compute should not fail with it
ALLOWED_FAILURES = 20
_LOCAL = re.compile(r"local:([1-9]\d{0,3})")
# Dask would pause or kill workers by the memory that models take
_UNLIMITED = [
    f"export DASK_DISTRIBUTED__WORKER__MEMORY__{name}=False"
    for name in ("TARGET", "SPILL", "PAUSE", "TERMINATE")
]
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://\S+")
_HINT = (
    "give local:N for N processes on this machine, the address of a scheduler, such as tcp://host:8786, or a "
    "YAML file with arguments of dask_jobqueue.SLURMCluster"
)
_NEEDED = ("n_workers", "cores", "memory")  # arguments without which a Slurm cluster computes nothing
CHECK_SECONDS = 10.0  # between checks whether jobs have ended


def check_cluster(cluster: str) -> None:
    """Check what names a cluster.

    Raises
    ------
    InputError
        If it names none.
    """
    if cluster.endswith((".yaml", ".yml")):
        slurm_arguments(Path(cluster))
    elif not _LOCAL.fullmatch(cluster) and not _ADDRESS.fullmatch(cluster):
        raise InputError([Fault("cluster", f"{cluster!r} is not a cluster", _HINT)])


def slurm_arguments(path: Path) -> dict[str, Any]:
    """Return the arguments of ``dask_jobqueue.SLURMCluster`` that a file holds, with what workers need.

    A worker computes one lease at a time, with its share of the cores of the job as threads, and holds as
    much memory as the run needs.

    Raises
    ------
    InputError
        If the file cannot be read or lacks an argument that is needed.
    """
    options, faults = read_yaml(path, follow=True)
    if not faults:
        faults = [
            Fault(str(path), f"lacks `{name}`", "see `Slurm` in docs/howto/many-machines.md")
            for name in _NEEDED
            if not options.get(name)
        ]
    if importlib.util.find_spec("dask_jobqueue") is None:
        hint = "run pip install 'actkit[cluster]'"
        faults.append(Fault("cluster", "dask-jobqueue is not installed", hint))
    if faults:
        raise InputError(faults)
    processes = int(options.get("processes") or 1)
    threads = max(int(options["cores"]) // processes, 1)
    prologue = [f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}", *_UNLIMITED]
    return {
        "job_cpu": options["cores"],
        **options,
        "cores": processes,
        "processes": processes,
        "job_script_prologue": [*options.get("job_script_prologue", []), *prologue],
    }


@contextmanager
def connected(cluster: str, device: str) -> Iterator[Client]:
    """Connect to a cluster, and end it afterwards if it was started here.

    Parameters
    ----------
    cluster
        Checked by :func:`check_cluster`.
    device
        Device of the run.

    Raises
    ------
    ClusterError
        If there is no scheduler at the address, or the workers cannot be started.
    """
    settings = {
        "distributed.scheduler.allowed-failures": ALLOWED_FAILURES,
        "distributed.worker.profile.enabled": False,  # it samples all threads a hundred times per second
    }
    match = _LOCAL.fullmatch(cluster)
    with dask.config.set(settings), _quiet():
        if _ADDRESS.fullmatch(cluster):
            with _client(cluster) as client:
                yield client
            return
        started = _local_cluster(int(match[1]), device) if match else _slurm_cluster(Path(cluster))
        with started as workers, _client(workers) as client:
            yield client


@contextmanager
def resubmitted(cluster: "JobQueueCluster") -> Iterator[None]:
    """Submit another job for each that ends, because of its time limit for instance.

    A job that ends before its workers have reached the scheduler is not replaced: so would the next.
    """
    wanted = len(cluster.worker_spec)
    seen: set[Hashable] = set()

    async def check() -> None:
        workers = [str(worker["name"]) for worker in cluster.scheduler_info["workers"].values()]
        # the workers of a job of several processes are called <job>-0, <job>-1
        running = {
            job
            for job in cluster.workers
            if any(name == str(job) or name.startswith(f"{job}-") for name in workers)
        }
        for job in seen - running:
            seen.discard(job)
            if job in cluster.workers:
                with suppress(OSError, RuntimeError):  # there may be nothing left to cancel
                    await cluster.workers.pop(job).close()
        seen.update(running)
        cluster.scale(jobs=wanted)

    callback = PeriodicCallback(check, CHECK_SECONDS * 1000)
    loop = cluster.loop
    assert loop is not None  # of a cluster that runs
    loop.add_callback(callback.start)
    try:
        yield
    finally:
        loop.add_callback(callback.stop)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of Dask about workers that come and go."""
    log = logging.getLogger("distributed")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


@contextmanager
def _client(cluster: Any) -> Iterator[Client]:
    try:
        client = Client(cluster, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(f"cannot connect to {cluster}: {error}; start a scheduler there") from error
    try:
        yield client
    finally:
        client.close(timeout=5)


def _local_cluster(n_workers: int, device: str) -> SpecCluster:
    """Start workers on this machine, each with a GPU or with its share of the cores."""
    cores = max(torch.get_num_threads() // n_workers, 1)
    shared = {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    gpus = _gpus() if device == "cuda" else []
    workers = {}
    for number in range(n_workers):
        own = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "env": {**shared, **own}}
        workers[number] = {"cls": Nanny, "options": options}
    scheduler = {
        "cls": Scheduler,
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": ":0"},
    }
    try:
        return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=False)
    except RuntimeError as error:
        raise ClusterError(f"cannot start workers: {error}") from error


@contextmanager
def _slurm_cluster(path: Path) -> Iterator["JobQueueCluster"]:
    """Submit the jobs of the workers; they start when Slurm starts them."""
    from dask_jobqueue.slurm import SLURMCluster

    with SLURMCluster(**slurm_arguments(path)) as cluster, resubmitted(cluster):
        yield cluster


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
