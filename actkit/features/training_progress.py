"""Progress events of a training run, its progress bar, and its status file."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..config import Tracking
from ..errors import StorageError
from ..extraction.monitoring.run_log import logger
from ..extraction.monitoring.wandb_sink import Tracker
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
        content = {name: _for_json(value) for name, value in asdict(event).items()}
        content["device_bytes"] = {"allocated": event.device_bytes} if event.device_bytes else {}
        with suppress(StorageError):  # only failed writes of the state end a run
            write_status(self._folder, content)
        self._last, self._state = now, event.state


def _for_json(value: Any) -> Any:
    """Return a value with None in place of NaN and Inf, which JSON lacks."""
    if isinstance(value, Mapping):
        return {name: _for_json(item) for name, item in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


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


def training_metrics(event: TrainingProgress) -> dict[str, float]:
    """Return the metrics of an event, by the names that Weights & Biases shows.

    Examples
    --------
    >>> event = TrainingProgress("running", step=5, total_steps=10, layers={3: {"fvu": 0.25}})
    >>> shown = training_metrics(event)
    >>> shown["progress"], shown["layer_3/fvu"]
    (0.5, 0.25)
    """
    means = {"loss": event.loss, "fvu": event.fvu, "l0": event.l0, "n_dead": event.n_dead}
    return {
        "step": event.step,
        "progress": event.step / max(1, event.total_steps),
        "tokens_per_sec": event.tokens_per_second,
        "gpu_memory_allocated_gb": event.device_bytes / 1e9,
        **(means if event.layers else {}),
        **{
            f"layer_{layer}/{name}": value
            for layer, measures in event.layers.items()
            for name, value in measures.items()
        },
    }


@contextmanager
def tracked_training(
    tracking: Tracking | None, out: Path, settings: Mapping[str, Any]
) -> Iterator[list[TrainingListener]]:
    """Track a training run in Weights & Biases, if asked for.

    Parameters
    ----------
    tracking
        The option ``wandb``.
    out
        Folder of the autoencoders, whose name is that of the run by default.
    settings
        Settings that are shown with the metrics.

    Yields
    ------
    list of callable
        Listeners that must be called with every event; empty without tracking.
    """
    tracker = None
    if tracking is not None:
        options = tracking.model_dump()
        named = {name: options[name] or out.absolute().name for name in ("name", "group")}
        try:
            tracker = Tracker({**options, **named, "config": dict(settings)}, {}, training_metrics)
        except OSError as error:
            logger.warning("Weights & Biases: %s; the run continues without it", error)
    try:
        yield [] if tracker is None else [tracker]
    finally:
        if tracker is not None:
            tracker.close()
