"""Progress events of a training run, its progress bar, and its status file."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tqdm.auto import tqdm

from ..errors import StorageError
from ..store.folders import Folder
from ..store.run_folder import write_status


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training run.

    Parameters
    ----------
    state
        ``running``, ``done``, ``failed`` or ``interrupted``.
    step, total_steps
        Steps made, including earlier sessions, and steps in total.
    tokens
        Training tokens seen, including earlier sessions.
    seconds
        Time that this took.
    tokens_per_second, eta_seconds
        Rate of this session, and remaining time at that rate; None while unknown.
    host_bytes, device_bytes
        Memory of this process, and of the accelerator (0 on the CPU).
    loss, fvu, l0, n_dead
        Last measures, as means over layers, except `n_dead`, a sum; NaN before the first.
    layers
        Last measures of each layer.
    """

    state: str
    step: int = 0
    total_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    eta_seconds: float | None = None
    host_bytes: int = 0
    device_bytes: int = 0
    loss: float = float("nan")
    fvu: float = float("nan")
    l0: float = float("nan")
    n_dead: int = 0
    layers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


TrainingListener = Callable[[TrainingProgress], None]


class TrainingStatus:
    """Listener that writes ``status.json`` into the folder, at most once per second."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._last, self._state = folder, 0.0, ""

    def __call__(self, event: TrainingProgress) -> None:  # noqa: D102
        now = time.monotonic()
        if event.state == self._state and now - self._last < 1:
            return
        content = {name: None if value != value else value for name, value in asdict(event).items()}
        content["device_bytes"] = {"allocated": event.device_bytes} if event.device_bytes else {}
        with suppress(StorageError):  # only failed writes of the state end a run
            write_status(self._folder, content)
        self._last, self._state = now, event.state


class TrainingBar:
    """Progress bar in a terminal or notebook, with the measures of all layers."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, event: TrainingProgress) -> None:  # noqa: D102
        if event.state != "running":
            if self._bar is not None:
                self._bar.close()
            self._bar = None
            return
        if self._bar is None:
            self._bar = tqdm(
                total=event.total_steps, initial=event.step, unit=" steps", desc="train", mininterval=0.5
            )
        measures = {"tok/s": f"{event.tokens_per_second:,.0f}"}
        if event.layers:
            measures |= {
                "loss": f"{event.loss:.3g}",
                "FVU": f"{event.fvu:.3f}",
                "L0": f"{event.l0:.1f}",
                "dead": f"{event.n_dead:,}",
            }
        self._bar.set_postfix(measures, refresh=False)
        self._bar.update(event.step - self._bar.n)
