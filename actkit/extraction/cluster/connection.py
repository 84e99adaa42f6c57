"""Clusters of Dask: started on this machine or by Slurm, or running already."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster

from ...errors import ClusterError, Fault, InputError

# of the tasks that a worker dies of or with; leases that others can compute should not fail with it
ALLOWED_FAILURES = 20
_LOCAL = re.compile(r"local:([1-9]\d{0,3})")
_ADDRESS = re.compile(r"(tcp|tls|ucx|ws|wss)://\S+")
_HINT = "give local:N for N processes on this machine, or the address of a scheduler, such as tcp://host:8786"


def check_cluster(cluster: str) -> None:
    """Check what names a cluster.

    Raises
    ------
    InputError
        If it names none.
    """
    if not _LOCAL.fullmatch(cluster) and not _ADDRESS.fullmatch(cluster):
        raise InputError([Fault("cluster", f"{cluster!r} is not a cluster", _HINT)])


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
        If there is no scheduler at the address.
    """
    settings = {"distributed.scheduler.allowed-failures": ALLOWED_FAILURES}
    match = _LOCAL.fullmatch(cluster)
    with dask.config.set(settings), _quiet():
        if match is None:
            with _client(cluster) as client:
                yield client
            return
        with _local_cluster(int(match[1]), device) as started, _client(started) as client:
            yield client


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
        "options": {"host": "127.0.0.1", "port": 0, "dashboard": False},
    }
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=False)


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
