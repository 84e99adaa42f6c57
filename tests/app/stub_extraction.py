"""Process that stands in for `actkit extract`: it locks its folder and runs until SIGTERM, without torch."""

import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from actkit.store.run_folder import locked, write_status


def command(run: Path, queue: Path) -> list[str]:
    """Return a command like that of :func:`app.processes.command`."""
    return [sys.executable, __file__, str(run), str(queue)]


def _end(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str]) -> None:
    """Hold the lock of a run folder until the process is asked to end."""
    signal.signal(signal.SIGTERM, _end)
    with locked(Path(arguments[0])) as folder:
        try:
            while True:
                write_status(folder, {"state": "running"})
                time.sleep(0.1)
        except KeyboardInterrupt:
            write_status(folder, {"state": "interrupted"})


if __name__ == "__main__":
    main(sys.argv[1:])
