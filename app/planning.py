"""What an extraction would take: asked of a process of its own, since the server never imports torch."""

import json
import os
import subprocess
import sys
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from actkit.config import Config
from actkit.errors import Fault

from .settings import Settings

_KEPT = 64


@dataclass(frozen=True)
class Planned:
    """What a plan says, or what is wrong."""

    rows: tuple[tuple[str, str], ...]
    heading: str
    faults: tuple[Fault, ...]


class Planner:
    """Plans, one at a time; what was planned before is known. One for all sessions."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._known: OrderedDict[tuple[str, bool], Planned] = OrderedDict()
        self._lock = Lock()

    def plan(self, config: Config, *, trial: bool) -> Planned:
        """Return what a run would take; blocks until it is known.

        Parameters
        ----------
        config
            What is asked.
        trial
            Whether to load the model and run a few batches, to know the time too.
        """
        asked = config.to_yaml()
        with self._lock:
            if (asked, trial) not in self._known:
                self._known[asked, trial] = self._ask(asked, trial)
                while len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            return self._known[asked, trial]

    def _ask(self, asked: str, trial: bool) -> Planned:
        with tempfile.TemporaryDirectory(prefix="actkit-plan-") as folder:
            path = Path(folder, "config.yaml")
            path.write_text(asked, encoding="utf-8")
            command = [sys.executable, "-m", "actkit.cli", "plan", str(path), "--json"]
            command += ["--out", str(self.settings.workspace / "new-run")]
            command += [] if trial else ["--no-trial"]
            try:
                done = subprocess.run(  # noqa: S603 - nothing of it comes from a browser
                    command,
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=self.settings.plan_seconds,
                    env={**os.environ, "TQDM_DISABLE": "1"},
                )
            except subprocess.TimeoutExpired:
                return Planned((), f"planning took more than {self.settings.plan_seconds} s", ())
        try:
            told = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return Planned((), (done.stderr.strip().splitlines() or ["planning failed"])[-1], ())
        return Planned(
            tuple((name, value) for name, value in told["rows"]),
            told["heading"],
            tuple(Fault(**fault) for fault in told["faults"]),
        )
