"""Listener that sends progress to Weights & Biases through a process that cannot delay the run."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ...batch_plan import Shape
from ...config import Config, Tracking
from ...errors import Fault
from .progress import Listener, Progress
from .run_log import logger

INTERVAL = 1.0
PATIENCE = 30.0
# -P: modules in the folder of the script must not shadow others of the same name
_COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("wandb_process.py"))]


def check_tracking(tracking: Tracking | None) -> list[Fault]:
    """Find faults that prevent tracking, without network access.

    Parameters
    ----------
    tracking
        The option ``wandb``.

    Returns
    -------
    list of Fault
        A missing package or login.
    """
    if tracking is None:
        return []
    if importlib.util.find_spec("wandb") is None:
        return [Fault("wandb", "the package is not installed", "pip install wandb, or omit the option")]
    request = json.dumps({"mode": tracking.mode}).encode()
    try:
        answer = subprocess.run(  # noqa: S603 - our own script
            _COMMAND, input=request, timeout=PATIENCE, check=False, **_process_options()
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []  # on a busy machine, the settings remain unchecked
    fault = _answer(answer).get("fault")
    return [Fault("wandb", fault.rstrip("."), "or set mode: offline")] if fault else []


@contextmanager
def tracked(config: Config, layers: Sequence[int], shape: Shape) -> Iterator[list[Listener]]:
    """Track a run if its config asks for it.

    Parameters
    ----------
    config
        Options of the run, which are shown with the metrics.
    layers
        Blocks on the layer axis.
    shape
        Shape of the cube.

    Yields
    ------
    list of Listener
        Listeners that must be called with every event, including the last; empty without tracking.
    """
    tracker = None
    if config.wandb is not None:
        run = Path(config.out).absolute().name
        settings = config.wandb.model_dump()
        named = {name: settings[name] or run for name in ("name", "group")}
        options = config.model_dump(mode="json", exclude={"wandb"})
        lengths = [shape.sample, shape.token, shape.hidden]
        try:
            tracker = Tracker(
                {**settings, **named, "config": options},
                {f"layer_{layer}_shape": lengths for layer in layers},
            )
        except OSError as error:
            _give_up(str(error))
    try:
        yield [] if tracker is None else [tracker]
    finally:
        if tracker is not None:
            tracker.close()


def metrics(event: Progress) -> dict[str, float]:
    """Return the metrics of an event, by the names that Weights & Biases shows.

    Examples
    --------
    >>> event = Progress("running", samples=3, total_samples=4, labels={"gender": {"female": 2, "male": 1}})
    >>> shown = metrics(event)
    >>> shown["progress"], shown["gender_female_count"]
    (0.75, 2)
    """
    return {
        "samples": event.samples,
        "progress": event.samples / max(1, event.total_samples),
        "samples_per_sec": event.samples_per_second,
        "gpu_memory_allocated_gb": event.device_bytes.get("allocated", 0) / 1e9,
        **{f"{language}/samples_processed": count for language, count in event.languages.items()},
        **{
            f"{label}_{value}_count": count
            for label, counts in event.labels.items()
            for value, count in counts.items()
        },
    }


class Tracker:
    """Listener that forwards the latest event once per second, and the last event.

    Parameters
    ----------
    init
        Arguments of ``wandb.init``.
    summary
        Entries of the summary of the run.
    metrics_of
        Returns the metrics of an event, which has a ``state``; by default those of an extraction.

    Raises
    ------
    OSError
        If the process cannot be started.
    """

    def __init__(
        self,
        init: Mapping[str, Any],
        summary: Mapping[str, Any],
        metrics_of: Callable[[Any], Mapping[str, float]] | None = None,
    ) -> None:
        self._metrics_of = metrics_of or _extraction_metrics
        self._newest: Any = None
        self._ended = threading.Event()
        self._late = False
        self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, **_process_options())  # noqa: S603
        # a full pipe blocks its writer, hence a separate thread
        self._thread = threading.Thread(
            target=self._forward, args=[{"init": init, "summary": summary}], name="actkit-track", daemon=True
        )
        self._thread.start()

    def __call__(self, event: Any) -> None:  # noqa: D102
        self._newest = event

    def close(self) -> None:
        """Forward the last event, and wait up to half a minute for the process to end."""
        self._ended.set()
        try:
            self._thread.join(PATIENCE)
        finally:
            if self._thread.is_alive():
                self._late = True
                self._process.kill()
                self._thread.join(PATIENCE)

    def _forward(self, opening: Mapping[str, Any]) -> None:
        stdin, answers = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert answers is not None
        answer: dict[str, str] = {}
        with suppress(OSError):  # the process has ended, and reported the cause
            _write(stdin, opening)
            answer = _answer(answers.readline())
            if "at" in answer:
                logger.info("Weights & Biases: %s", answer["at"])
                self._write_events(stdin)
        with suppress(OSError):
            stdin.close()
        code = self._process.wait()
        with answers:
            answer = _answer(answers.read()) or answer
        if self._late:
            message = (
                "had not finished %.0f s after the run, and was ended; `wandb sync` may send missing data"
            )
            logger.warning(f"Weights & Biases: {message}", PATIENCE)
        elif code:
            _give_up(answer.get("fault", f"its process ended with {code}"))

    def _write_events(self, stdin: IO[bytes]) -> None:
        sent = None
        ended = False
        while not ended:
            ended = self._ended.wait(INTERVAL)
            event = self._newest
            if event is not None and event is not sent:
                _write(stdin, {"state": event.state, "metrics": self._metrics_of(event)})
                sent = event


def _extraction_metrics(event: Progress) -> Mapping[str, float]:
    # samples are counted only once the cube is created
    return metrics(event) if event.samples or event.languages else {}


def _write(stdin: IO[bytes], line: Mapping[str, Any]) -> None:
    stdin.write(json.dumps(line).encode() + b"\n")
    stdin.flush()


def _answer(line: bytes) -> dict[str, str]:
    """Parse an answer; return an empty dict if it is missing or incomplete."""
    with suppress(ValueError):
        return dict(json.loads(line))
    return {}


def _give_up(why: str) -> None:
    logger.warning("Weights & Biases: %s; the run continues without it", why.rstrip("."))


def _process_options() -> dict[str, Any]:
    """Return options of a silent process that does not receive signals sent to this one."""
    # the service of a notebook of the user must not be shared
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    return {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
        "env": {**environment, **quiet},
    }
