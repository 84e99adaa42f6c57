"""One undisturbed extraction, and processes that do the same one."""

import multiprocessing
import shutil
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from actkit import extract
from actkit.extraction.monitoring.progress import Progress
from actkit.store.layout import CUBE
from actkit.testing import contents
from tests.runs.extractions import WINDOWS, Options, flags, write_prompts


@pytest.fixture(scope="session")
def options(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Sixty prompts of one to four sentences, in windows of four."""
    folder = tmp_path_factory.mktemp("asked")
    data = write_prompts(folder / "prompts.csv", 4 * WINDOWS)
    model = shutil.copytree(tiny_model, folder / "model")
    return {"model": str(model), "data": str(data), "window_samples": 4, "device": "cpu"}


@pytest.fixture(scope="session")
def server() -> Any:
    """Forks processes from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["actkit.cli", "tests.runs.extractions", "transformers.models.llama.modeling_llama"]
    )
    return context


@pytest.fixture(scope="session")
def start(options: Options, server: Any) -> Callable[..., BaseProcess]:
    """Start the extraction in a process of its own."""

    def start(run: Path, *listeners: Callable[[Progress], None]) -> BaseProcess:
        process: BaseProcess = server.Process(
            target=extract, kwargs={**options, "out": str(run), "listeners": list(listeners)}
        )
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def finished(start: Callable[..., BaseProcess], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an undisturbed run; not to be changed."""
    run = tmp_path_factory.mktemp("finished")
    start(run).join()
    assert flags(run) == WINDOWS
    return run


@pytest.fixture(scope="session")
def undisturbed(finished: Path) -> dict[str, bytes]:
    """Every file of its cube."""
    return contents(finished / CUBE)


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run folder."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(scope="module")
def half(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first part of two is done; not to be changed."""
    run = tmp_path_factory.mktemp("half")
    extract(**options, out=str(run), part=(1, 2), listeners=[])
    return run


@pytest.fixture
def begun(half: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(half, tmp_path / "begun"))
