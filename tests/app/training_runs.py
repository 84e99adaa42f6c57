"""Folders like those of `actkit saes train`, written without torch."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from actkit.features.training_log import TrainingLog
from actkit.features.training_progress import TrainingProgress, TrainingStatus
from actkit.features.training_settings import SETTINGS_FILE, TrainingSettings
from actkit.store.folders import Folder
from actkit.store.run_folder import locked

STEPS = 1000


def settings(layers: Sequence[int] = (2, 5)) -> TrainingSettings:
    """Return the settings of a short training."""
    return TrainingSettings(
        layers=tuple(layers),
        component="residual",
        hidden=160,
        width=1280,
        k=16,
        architecture="batchtopk",
        tokens="content",
        where="{}",
        holdout_cluster="image_id",
        holdout_share=0.1,
        steps=STEPS,
        batch=512,
        lr=1e-3,
        seed=0,
        dead_after=10**5,
        n_tokens=40_000,
        buffer_bytes=10**9,
        is_held=True,
        device="cpu",
        model="demo/person",
        cube_sha256="",
    )


class Trainer:
    """Writes what a training writes into its folder, as far as others read it."""

    def __init__(self, folder: Folder, layers: Sequence[int]) -> None:
        self.folder, self.layers = folder, layers
        self.log = TrainingLog(folder, 0)

    def measure(self, step: int) -> None:
        """Append measures that fall with the steps, and report them."""
        left = 1 - step / (2 * STEPS)
        self.measures = {
            layer: {"loss": 90 * left, "train_fvu": left, "fvu": left, "l0": 16.0, "n_dead": layer}
            for layer in self.layers
        }
        self.log.append(step, self.measures, lr=1e-3, tokens=512 * step, seconds=step / 10)
        self.report("running", step)

    def report(self, state: str, step: int) -> None:
        """Write the status, at once."""
        measured = self.measures[self.layers[0]] if step else {}
        shown = {name: measured[name] for name in ("loss", "fvu", "l0") if measured}
        event = TrainingProgress(state, step=step, total_steps=STEPS, tokens_per_second=9e4, **shown)
        TrainingStatus(self.folder)(event)


@contextmanager
def training(path: Path, layers: Sequence[int] = (2, 5)) -> Iterator[Trainer]:
    """Hold the lock of a folder, as a process that trains there, and yield what writes its files."""
    path.mkdir(parents=True)
    with locked(path) as folder:
        content = json.dumps({"settings": settings(layers).dump()})
        folder.replace(SETTINGS_FILE, content.encode())
        yield Trainer(folder, layers)


def stopped(path: Path, state: str = "running", step: int = 300, **fields: Any) -> Path:
    """Write a folder whose process has ended without further notice; `fields` change its status."""
    with training(path) as trainer:
        trainer.measure(step)
        trainer.report(state, step)
    with closing(Folder(path)) as folder:
        content = json.loads((path / "status.json").read_text())
        folder.replace("status.json", json.dumps({**content, "pid": 2**22 + 1, **fields}).encode())
    return path
