"""A training run that is killed, and continued, ends with the bits of one that was not."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from actkit.cli_cubes import Terminated, terminable
from actkit.errors import ChangedError, CorruptError
from actkit.features import training_state
from actkit.features.layer_trainer import LayerTrainer
from actkit.features.training import train_saes
from actkit.features.training_log import training_log
from actkit.features.training_progress import TrainingProgress
from actkit.testing import flip_bit, write_cube

STEPS = 6
pytestmark = pytest.mark.filterwarnings("ignore:.*tokens for.*features:UserWarning")


class Killed(BaseException):
    """Ends a run as a signal would: nothing is saved."""


class KillAt:
    """Listener that kills the run after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, event: TrainingProgress) -> None:
        if event.state == "running" and event.step == self.step:
            raise Killed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(
        tmp_path_factory.mktemp("cube") / "run", n_samples=120, n_tokens=8, hidden=96, window=16
    )


def train(run: Path, out: Path, **options: Any) -> None:
    sizes = {"layers": "0 2", "width": 48, "k": 4, "batch": 40, "steps": STEPS, "checkpoint_seconds": 0}
    train_saes(run, out=out, **{"listeners": [], **sizes, **options})


def digests(out: Path) -> dict[str, str]:
    names = ("residual_0", "residual_2")
    return {
        name: hashlib.sha256((out / name / "sae_weights.safetensors").read_bytes()).hexdigest()
        for name in names
    }


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "saes"
    train(run, out)
    return out


@pytest.mark.parametrize("step", range(STEPS))
def test_a_run_killed_at_any_step_ends_with_the_same_bits(
    run: Path, whole: Path, tmp_path: Path, step: int
) -> None:
    with pytest.raises(Killed):
        train(run, tmp_path / "saes", listeners=[KillAt(step)])
    train(run, tmp_path / "saes")
    assert digests(tmp_path / "saes") == digests(whole)
    log, expected = training_log(tmp_path / "saes"), training_log(whole)
    assert log.drop_vars("seconds").equals(expected.drop_vars("seconds"))


def test_a_run_that_reads_windows_again_ends_with_the_same_bits(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actkit.features.training_input._LEAST_MEMORY", 1)
    options = {"memory": 60_000}  # a fifth of the tokens
    train(run, tmp_path / "whole", **options)
    for name, step in (("a", 4),):
        with pytest.raises(Killed):
            train(run, tmp_path / name, listeners=[KillAt(step)], **options)
        train(run, tmp_path / name, **options)
        assert digests(tmp_path / name) == digests(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.nightly), 4])
def test_a_process_that_is_killed_continues(run: Path, whole: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "saes"
    code = f"""
import os, signal
from actkit.features.training import train_saes
def kill(event):
    if event.state == "running" and event.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
train_saes({str(run)!r}, out={str(out)!r}, layers="0 2", width=48, k=4, batch=40, steps={STEPS},
           checkpoint_seconds=0, listeners=[kill])
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    train(run, out)
    assert digests(out) == digests(whole)


def test_a_state_that_was_not_written_to_its_end_is_not_used(
    run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = []

    def save(tensors: Any) -> bytes:
        saved.append(1)
        if len(saved) == 8:  # the second layer of the fourth state
            raise Killed
        return original(tensors)

    original = training_state.save
    monkeypatch.setattr(training_state, "save", save)
    with pytest.raises(Killed):
        train(run, tmp_path / "saes")
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "saes" / "state").iterdir()) == ["3", "4"]
    train(run, tmp_path / "saes")
    assert digests(tmp_path / "saes") == digests(whole)
    assert not (tmp_path / "saes" / "state").exists()


def test_an_interrupted_run_finishes_its_step_and_saves_its_state(
    run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: LayerTrainer, batch: torch.Tensor, step: int) -> Any:
        if step == 4 and self.layer == 0:  # the other layer has not made the step
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, step)

    original = LayerTrainer.step
    monkeypatch.setattr(LayerTrainer, "step", interrupted)
    with terminable(), pytest.raises(Terminated):
        train(run, tmp_path / "saes", checkpoint_seconds=1000)
    monkeypatch.undo()
    assert json.loads((tmp_path / "saes" / "status.json").read_text())["state"] == "interrupted"
    steps: list[int] = []
    train(run, tmp_path / "saes", listeners=[lambda event: steps.append(event.step)])
    assert steps[0] == 5
    assert digests(tmp_path / "saes") == digests(whole)


def test_a_damaged_state_is_an_error(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "saes"
    with pytest.raises(Killed):
        train(run, out, listeners=[KillAt(4)])
    flip_bit(next((out / "state").glob("*/2.safetensors")), 9000)
    with pytest.raises(CorruptError, match="is damaged"):
        train(run, out)
    train(run, out, resume=False)


def test_a_state_that_is_a_pipe_or_larger_than_its_weights_is_not_read(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "saes"
    with pytest.raises(Killed):
        train(run, out, listeners=[KillAt(4)])
    path = next((out / "state").glob("*/2.safetensors"))
    os.truncate(path, 2**40)  # sparse
    with pytest.raises(CorruptError, match="is larger than"):
        train(run, out)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CorruptError, match="is not a regular file"):
        train(run, out)


BAD_SETTINGS: dict[str, Any] = {
    "component": "../victim",
    "layers": ["/../../victim"],
    "width": 48.5,
    "is_held": "yes",
    "architecture": "relu",
    "lr": None,
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_that_were_tampered_with_are_an_error_and_remove_nothing_outside(
    run: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "saes"
    train(run, out, layers="0", steps=1)
    (tmp_path / "victim_0").mkdir()
    stored = json.loads((out / "training.json").read_text())
    stored["settings"][name] = BAD_SETTINGS[name]
    (out / "training.json").write_text(json.dumps(stored))
    with pytest.raises(CorruptError, match=f"cannot be read: {name}"):
        train(run, out, layers="0", steps=1)
    train(run, out, layers="0", steps=1, resume=False)
    assert (tmp_path / "victim_0").exists()


def test_a_finished_run_is_not_repeated(run: Path, whole: Path) -> None:
    before, events = digests(whole), list[TrainingProgress]()
    train(run, whole, listeners=[events.append])
    assert (digests(whole), events) == (before, [])


def test_each_setting_that_differs_is_named(run: Path, whole: Path) -> None:
    with pytest.raises(ChangedError) as error:
        train(run, whole, k=5, layers="0 1", lr=0.25)
    assert [fault.where for fault in error.value.faults] == ["layers", "k", "lr"]
    assert "k: was 4, and is now 5" in str(error.value)


def test_another_seed_replaces_a_run_if_asked(run: Path, tmp_path: Path) -> None:
    train(run, tmp_path / "saes", layers="1")
    train(run, tmp_path / "saes", resume=False, seed=1)
    assert sorted(path.name for path in (tmp_path / "saes").glob("residual_*")) == [
        "residual_0",
        "residual_2",
    ]
