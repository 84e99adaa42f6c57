"""Batch sizes, which a resumed run keeps."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import actkit
from actkit.errors import ChangedError
from actkit.extraction.preflight import run_size, suggestions
from actkit.extraction.preflight.preparation import prepare
from actkit.store.layout import CUBE
from actkit.testing import contents

GB = 10**9


@pytest.fixture
def asked(tiny_model: Path, prompts: Path, tmp_path: Path) -> dict[str, Any]:
    """Six prompts in three windows."""
    return {
        "model": str(tiny_model),
        "data": str(prompts),
        "out": str(tmp_path / "run"),
        "window_samples": 2,
    }


@pytest.mark.slow
def test_a_dedicated_device_has_larger_batches(
    asked: dict[str, Any], mtgeneval: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentences = {**asked, "data": str(mtgeneval), "window_samples": 512, "limit": 1024}
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # so that no passes are concurrent
    small = prepare(None, sentences)
    for module in (run_size, suggestions):
        monkeypatch.setattr(module, "device_bytes", lambda _: 80 * GB)
    large = prepare(None, sentences)
    assert (small.size.batch_tokens, large.size.batch_tokens) == (1024, 16384)
    assert (small.attrs["batch_tokens"], large.attrs["batch_tokens"]) == (1024, 16384)
    assert 0.9 * 16384 < large.plan.batch_positions.max() <= 16384
    # the weights are no longer in host memory
    assert small.estimate.device is None
    assert small.estimate.host - large.estimate.host == small.size.weights
    assert large.estimate.device is not None
    assert large.estimate.device > large.size.weights
    assert "batch_tokens" not in prepare(None, {**sentences, "batch_size": 4}).attrs


@pytest.mark.slow
def test_a_resumed_run_keeps_its_batches(
    asked: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_size, "AUTO_TOKENS", 20)
    begun = actkit.extract(**asked, listeners=[])
    assert begun.attrs["batch_tokens"] == 20
    undisturbed = contents(tmp_path / "run" / CUBE)
    # one window is uncommitted, and another version of actkit would choose other batches
    (tmp_path / "run" / CUBE / "committed" / "c.1").unlink()
    monkeypatch.setattr(run_size, "AUTO_TOKENS", 2048)
    other = prepare(None, {**asked, "out": str(tmp_path / "other")})
    assert other.plan.n_batches < int(begun.batch.max()) + 1
    actkit.extract(**asked, listeners=[])
    assert contents(tmp_path / "run" / CUBE) == undisturbed


@pytest.mark.slow
def test_a_changed_batch_size_is_refused(asked: dict[str, Any], tmp_path: Path) -> None:
    actkit.extract(**asked, listeners=[])
    with pytest.raises(ChangedError) as caught:
        actkit.extract(**asked, batch_size=2, listeners=[])
    assert [str(fault) for fault in caught.value.faults] == ["batch_size: was 'auto', is now 2"]
    shutil.rmtree(tmp_path / "run" / CUBE)
    assert "batch_tokens" not in actkit.extract(**asked, batch_size=2, listeners=[]).attrs
