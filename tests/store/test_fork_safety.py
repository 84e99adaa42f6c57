"""A forked child reads what its parent read before, and ends."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from actkit import open_cube
from actkit.store.byte_ranges import LocalRanges
from actkit.testing import write_cube

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform cannot fork")
SECONDS = 240  # less than what pytest allows, so that a child that hangs is killed


def in_child(function: Callable[[], Any]) -> Any:
    """Return what a forked child computes; a child that hangs is killed, and that is a failure."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(function()))
    child.start()
    try:
        assert receiver.poll(SECONDS), "the child hangs"
        result = receiver.recv()
        child.join(SECONDS)
        assert child.exitcode == 0
        return result
    finally:
        child.kill()
        child.join()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_samples=40, window=8)


@pytest.fixture
def cube(run: Path) -> xr.Dataset:
    """A cube of which this process has read, with the threads of dask and of zarr."""
    cube = open_cube(run)
    cube.residual.load()
    return open_cube(run)


@pytest.mark.slow
def test_a_child_reads_from_the_cube_of_its_parent(cube: xr.Dataset) -> None:
    values = in_child(lambda: cube.residual.sel(layer=1).values)
    np.testing.assert_array_equal(values, cube.residual.sel(layer=1).values)


@pytest.mark.slow
def test_a_child_has_threads_of_its_own_for_decoding(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalRanges, "inline_bytes", 0)
    monkeypatch.setattr(LocalRanges, "threads", 2)
    expected = open_cube(run).residual.values
    assert any(thread.name.startswith("actkit-read") for thread in threading.enumerate())
    np.testing.assert_array_equal(in_child(lambda: open_cube(run).residual.values), expected)


@pytest.mark.slow
def test_a_child_opens_the_cube_again(run: Path, cube: xr.Dataset) -> None:
    values = in_child(lambda: open_cube(run).pooled.values)
    np.testing.assert_array_equal(values, cube.pooled.values)


@pytest.mark.slow
def test_a_child_of_a_child_reads(cube: xr.Dataset) -> None:
    values = in_child(lambda: (cube.pooled.sum().values, in_child(lambda: cube["last"].values))[1])
    np.testing.assert_array_equal(values, cube["last"].values)


@pytest.mark.slow
def test_a_child_reads_while_threads_of_its_parent_do(run: Path, cube: xr.Dataset) -> None:
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            open_cube(run).residual.load()

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            values = in_child(lambda: cube.residual.sel(layer=2).values)
            np.testing.assert_array_equal(values, cube.residual.sel(layer=2).values)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
