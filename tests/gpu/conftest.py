"""The device of the tests of `make gpu-check`, and what they extract.

Without a CUDA device they are skipped. `ACTKIT_GPU_DEVICE=cpu pytest tests/gpu` rehearses on the CPU those
that do not call CUDA themselves.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr

import actkit

DEVICE = os.environ.get("ACTKIT_GPU_DEVICE", "cuda")
NO_DEVICE = "there is no CUDA device"

Extract = Callable[..., xr.Dataset]


@pytest.fixture(scope="session")
def device() -> str:
    """The device, or the CPU in a rehearsal."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    return DEVICE


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """The device, for tests that call CUDA."""
    if not torch.cuda.is_available():
        pytest.skip(NO_DEVICE)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def extract(tiny_model: Path, prompts: Path, tmp_path: Path) -> Extract:
    """Extract from the tiny model, into a run folder named by the first argument."""

    def run(name: str, **options: Any) -> xr.Dataset:
        defaults = {"model": str(tiny_model), "data": str(prompts), "window_samples": 4, "listeners": []}
        return actkit.extract(**{**defaults, "out": str(tmp_path / name), **options})

    return run
