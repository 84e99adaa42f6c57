"""Batches that do not fit into memory are halved, with the same results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import actkit
from actkit.errors import OutOfMemoryError
from actkit.extraction.capture.batch_capture import Capture
from actkit.extraction.monitoring.progress import Progress

REFUSAL = "CUDA out of memory. Tried to allocate 20.00 MiB."
Script = Callable[..., list[int]]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Make batches above a number of tokens run out of memory after some layers were kept."""

    def refuse_above(most: int, error: Exception | None = None, *, times: int = 1000) -> list[int]:
        tried: list[int] = []
        run, keep = Capture.run, Capture._keep
        refused = 0

        def counted(self: Capture, prompts: Any, rows: np.ndarray, buffer: Any) -> None:
            tried.append(len(prompts) * max(len(prompt.ids) for prompt in prompts))
            run(self, prompts, rows, buffer)

        def fails(self: Capture, *args: Any) -> None:
            nonlocal refused
            keep(self, *args)
            if args[3] == "residual" and args[4] == 1 and tried[-1] > most and refused < times:
                refused += 1
                raise error or torch.OutOfMemoryError(REFUSAL)

        monkeypatch.setattr(Capture, "run", counted)
        monkeypatch.setattr(Capture, "_keep", fails)
        return tried

    return refuse_above


def extract(tiny_model: Path, prompts: Path, out: Path, **options: Any) -> xr.Dataset:
    defaults = {"model": str(tiny_model), "data": str(prompts), "out": str(out), "listeners": []}
    return actkit.extract(**{**defaults, **options})


@pytest.fixture(scope="module")
def whole(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return extract(tiny_model, prompts, tmp_path_factory.mktemp("whole") / "run").load()


@pytest.mark.slow
@pytest.mark.parametrize("most", [300, 100, 41])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    tiny_model: Path, prompts: Path, tmp_path: Path, whole: xr.Dataset, script: Script, most: int
) -> None:
    longest = int(whole.prompt_tokens.max())
    assert longest < 41
    tried = script(most)
    cube = extract(tiny_model, prompts, tmp_path / "halved").load()
    xr.testing.assert_allclose(cube.drop_attrs(), whole.drop_attrs(), rtol=1e-5, atol=1e-6)
    assert tried[0] == 6 * longest
    # what did not fit is not tried again
    failed = [tokens for tokens in tried if tokens > most]
    assert failed == sorted(set(failed), reverse=True)


@pytest.mark.slow
def test_the_limit_is_remembered_and_reported(
    tiny_model: Path, prompts: Path, tmp_path: Path, script: Script, caplog: pytest.LogCaptureFixture
) -> None:
    tried = script(40)
    events: list[Progress] = []
    options = {"batch_size": 3, "window_samples": 3, "listeners": [events.append]}
    extract(tiny_model, prompts, tmp_path / "halved", **options)
    assert events[-1].batch_tokens == max(tokens for tokens in tried if tokens <= 40)
    (failed,) = (tokens for tokens in tried if tokens > 40)
    message = f"a batch of {failed} tokens did not fit into memory; from now on {failed // 2} at most"
    assert message in caplog.text


@pytest.mark.slow
def test_generated_text_stays_the_same(
    tiny_model: Path, prompts: Path, tmp_path: Path, script: Script
) -> None:
    options = {"generate": {"max_new_tokens": 4}}
    wanted = extract(tiny_model, prompts, tmp_path / "whole", **options).load()
    script(100)
    cube = extract(tiny_model, prompts, tmp_path / "halved", **options).load()
    assert (cube.generated == wanted.generated).all()
    xr.testing.assert_allclose(cube.drop_attrs(), wanted.drop_attrs(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_prompt_that_does_not_fit_alone_ends_the_run_and_a_rerun_completes_it(
    tiny_model: Path,
    prompts: Path,
    tmp_path: Path,
    whole: xr.Dataset,
    script: Script,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    longest = int(whole.prompt_tokens.max())
    sample = int(whole.prompt_tokens.argmax("sample"))
    with monkeypatch.context():
        script(longest - 1)
        message = (
            rf"sample {sample}: a prompt of {longest} tokens alone does not fit into memory; "
            "set max_tokens.*out of memory"
        )
        with pytest.raises(OutOfMemoryError, match=message):
            extract(tiny_model, prompts, run, window_samples=2)
        with pytest.raises(OutOfMemoryError, match=message):  # in a trial
            actkit.plan(model=str(tiny_model), data=str(prompts), out=str(tmp_path / "other"))
        assert actkit.verify(run).ok
    monkeypatch.undo()
    cube = extract(tiny_model, prompts, run, window_samples=2).load()
    xr.testing.assert_allclose(
        cube.drop_attrs().drop_vars("batch"), whole.drop_attrs().drop_vars("batch"), rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")]
)
def test_lack_of_host_memory_halves_batches_too(
    tiny_model: Path, prompts: Path, tmp_path: Path, whole: xr.Dataset, script: Script, error: Exception
) -> None:
    script(100, error)
    cube = extract(tiny_model, prompts, tmp_path / "halved").load()
    xr.testing.assert_allclose(cube.drop_attrs(), whole.drop_attrs(), rtol=1e-5, atol=1e-6)


def test_other_errors_are_not_mistaken_for_lack_of_memory(
    tiny_model: Path, prompts: Path, tmp_path: Path, script: Script
) -> None:
    tried = script(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        extract(tiny_model, prompts, tmp_path / "run")
    assert len(tried) == 1
