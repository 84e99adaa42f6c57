"""Folders made once per session, by whichever of xdist's workers needs them first."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def shared_folder(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder of the session, which no test may change.

    Parameters
    ----------
    factory
        Factory of this worker.
    name
        Name of the folder.
    make
        Called with a path to fill, unless a worker has made the folder already; the others wait meanwhile.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the session's own folder contains one for each worker
        base = base.parent
    folder = base / "shared" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_name(f"{name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder
