"""The events of a run, told to Weights & Biases through a process that cannot hold the run up."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..config import Config, Tracking
from ..errors import Fault
from ..planning import Shape
from .logs import logger
from .progress import Listener, Progress

INTERVAL = 1.0
PATIENCE = 30.0
# -P: the modules beside the script must not hide others of their names
_COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("tracker.py"))]


def check_tracking(tracking: Tracking | None) -> list[Fault]:
    """Find what keeps a run from being tracked, without asking the network.

    Parameters
    ----------
    tracking
        The option ``wandb``.

    Returns
    -------
    list of Fault
        The package is missing, or nobody is logged in.
    """
    if tracking is None:
        return []
    if importlib.util.find_spec("wandb") is None:
        return [Fault("wandb", "the package is not installed", "pip install wandb, or leave the option out")]
    asked = json.dumps({"mode": tracking.mode}).encode()
    try:
        answer = subprocess.run(  # noqa: S603 - our own script
            _COMMAND, input=asked, timeout=PATIENCE, check=False, **_apart()
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []  # a busy machine says nothing of the settings
    fault = _answer(answer).get("fault")
    return [Fault("wandb", fault.rstrip("."), "or choose mode: offline")] if fault else []


@contextmanager
def tracked(config: Config, layers: Sequence[int], shape: Shape) -> Iterator[list[Listener]]:
    """Have a run tracked, where its config asks for it.

    Parameters
    ----------
    config
        Its options; they are shown beside the figures.
    layers
        The blocks on the layer axis.
    shape
        That of the cube.

    Yields
    ------
    list of Listener
        Who is to be told of every event, the last one included; empty where the run is not tracked.
    """
    tracker = None
    if config.wandb is not None:
        run = Path(config.out).absolute().name
        asked = config.wandb.model_dump()
        named = {name: asked[name] or run for name in ("name", "group")}
        options = config.model_dump(mode="json", exclude={"wandb"})
        lengths = [shape.sample, shape.token, shape.hidden]
        try:
            tracker = Tracker(
                {**asked, **named, "config": options}, {f"layer_{layer}_shape": lengths for layer in layers}
            )
        except OSError as error:
            _give_up(str(error))
    try:
        yield [] if tracker is None else [tracker]
    finally:
        if tracker is not None:
            tracker.close()


def figures(event: Progress) -> dict[str, float]:
    """Return what is told of an event, by the names that Weights & Biases shows.

    Examples
    --------
    >>> event = Progress("running", samples=3, total_samples=4, labels={"gender": {"female": 2, "male": 1}})
    >>> told = figures(event)
    >>> told["progress"], told["gender_female_count"]
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
    """A listener that passes the newest event on, once a second, and the last one.

    Parameters
    ----------
    init
        What ``wandb.init`` is called with.
    summary
        What is said once.

    Raises
    ------
    OSError
        Where its process cannot be started.
    """

    def __init__(self, init: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        self._newest: Progress | None = None
        self._ended = threading.Event()
        self._late = False
        self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, **_apart())  # noqa: S603
        # a pipe that nobody empties would block its writer
        self._thread = threading.Thread(
            target=self._pass_on, args=[{"init": init, "summary": summary}], name="actkit-track", daemon=True
        )
        self._thread.start()

    def __call__(self, event: Progress) -> None:  # noqa: D102
        self._newest = event

    def close(self) -> None:
        """Pass the last event on, and end the process, which gets half a minute for that."""
        self._ended.set()
        try:
            self._thread.join(PATIENCE)
        finally:
            if self._thread.is_alive():
                self._late = True
                self._process.kill()
                self._thread.join(PATIENCE)

    def _pass_on(self, opening: Mapping[str, Any]) -> None:
        stdin, answers = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert answers is not None
        answer: dict[str, str] = {}
        with suppress(OSError):  # the process has ended, and said why
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
            what = "was not done %.0f s after the run, and was ended; `wandb sync` may send what is missing"
            logger.warning(f"Weights & Biases: {what}", PATIENCE)
        elif code:
            _give_up(answer.get("fault", f"its process ended with {code}"))

    def _write_events(self, stdin: IO[bytes]) -> None:
        told = None
        ended = False
        while not ended:
            ended = self._ended.wait(INTERVAL)
            event = self._newest
            if event is not None and event is not told:
                # nothing is counted until the cube is there
                shown = figures(event) if event.samples or event.languages else {}
                _write(stdin, {"state": event.state, "figures": shown})
                told = event


def _write(stdin: IO[bytes], line: Mapping[str, Any]) -> None:
    stdin.write(json.dumps(line).encode() + b"\n")
    stdin.flush()


def _answer(line: bytes) -> dict[str, str]:
    """Read an answer; empty where none was given, or not whole."""
    with suppress(ValueError):
        return dict(json.loads(line))
    return {}


def _give_up(why: str) -> None:
    logger.warning("Weights & Biases: %s; the run goes on without it", why.rstrip("."))


def _apart() -> dict[str, Any]:
    """Return how a process is started that nothing which ends this one reaches, and that says nothing."""
    # a service of the user's own notebook must not be shared with it
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    quiet = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    return {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.DEVNULL,
        "start_new_session": True,
        "env": {**environment, **quiet},
    }
