"""Plans of extractions, computed in a subprocess because the server never imports torch."""

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
    """Lines of a plan, or its faults."""

    rows: tuple[tuple[str, str], ...]
    heading: str
    faults: tuple[Fault, ...]


class Planner:
    """Cache of plans, computed one at a time and shared by all sessions."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._known: OrderedDict[tuple[str, bool], Planned] = OrderedDict()
        self._lock = Lock()

    def plan(self, config: Config, *, trial: bool) -> Planned:
        """Return the plan of a run; blocks until it is computed.

        Parameters
        ----------
        config
            Options of the run.
        trial
            Whether to load the model and run a few batches to estimate the run time.
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
                done = subprocess.run(  # noqa: S603 - no argument comes from a browser
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
            answer = json.loads(done.stdout.splitlines()[-1])
        except (IndexError, ValueError):
            return Planned((), (done.stderr.strip().splitlines() or ["planning failed"])[-1], ())
        return Planned(
            tuple((name, value) for name, value in answer["rows"]),
            answer["heading"],
            tuple(Fault(**fault) for fault in answer["faults"]),
        )
