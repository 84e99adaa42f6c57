"""Results on a real Dask cluster of processes are the same, even if a worker is killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from distributed import Client, LocalCluster

import actkit

pytestmark = pytest.mark.slow

CALLS: dict[str, Callable[[xr.Dataset], Any]] = {
    "layer_norms": actkit.layer_norms,
    "layer_updates": actkit.layer_updates,
    "massive_activations": actkit.massive_activations,
    "cka": actkit.cka,
    "adjacent_cka": actkit.adjacent_cka,
    "tokens": lambda cube: actkit.adjacent_cka(cube, vectors="tokens"),
    "language_cka": actkit.language_cka,
    "transitions": actkit.transitions,
    "group_differential": lambda cube: actkit.group_differential(cube, by="gender", permutations=4, seeds=1),
    "classification_probe": lambda cube: actkit.classification_probe(
        cube, by="gender", residualized_on=("length", "tfidf"), permutations=4, seeds=1
    ),
    "transfer": lambda cube: actkit.transfer(cube, by="gender"),
    "direction_cosines": lambda cube: actkit.direction_cosines(cube, by="gender"),
}


@pytest.fixture(scope="module")
def run(planted_run: Path) -> Path:
    return planted_run


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        Client(cluster) as client,
    ):
        yield client


def here(name: str, run: Path) -> xr.Dataset:
    with dask.config.set(scheduler="synchronous"):
        return CALLS[name](actkit.open_cube(run)).compute()


# one of a kind: sums over tokens, alignments of samples and of tokens, clusters of layers, and fits
SOME = ("layer_norms", "language_cka", "tokens", "transitions", "group_differential")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SOME else pytest.mark.nightly) for name in CALLS]
)
def test_statistics_on_a_cluster_are_the_same(client: Client, run: Path, name: str) -> None:
    # compute() uses the active client
    found = CALLS[name](actkit.open_cube(run)).compute()
    xr.testing.assert_allclose(found, here(name, run), rtol=1e-9, atol=1e-9)


def test_whitener_on_a_cluster_is_the_same(client: Client, run: Path) -> None:
    cube = actkit.open_cube(run)
    found = actkit.Whitener.fit(cube, layer=2)
    wanted = actkit.Whitener.fit(cube.load(), layer=2)
    np.testing.assert_allclose(found.transform_matrix, wanted.transform_matrix, atol=1e-9)


def test_a_worker_that_is_killed_changes_nothing(client: Client, run: Path) -> None:
    lazy = actkit.adjacent_cka(actkit.open_cube(run).chunk(sample=8), vectors="tokens")
    before = client.run(os.getpid)
    future = client.compute(lazy)
    while not any(client.processing().values()):
        time.sleep(0.005)
    os.kill(next(iter(before.values())), signal.SIGKILL)
    xr.testing.assert_allclose(future.result(), here("tokens", run), rtol=1e-9, atol=1e-9)
    client.wait_for_workers(2)
    assert set(client.run(os.getpid).values()) != set(before.values())
