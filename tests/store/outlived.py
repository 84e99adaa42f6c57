"""A process that writes a cube, a window whenever it is let; give it the run folder."""

import sys
from pathlib import Path

from actkit.errors import StorageError
from actkit.store.layout import CUBE
from actkit.store.run_folder import locked
from actkit.store.writer import CubeWriter
from actkit.testing import synthetic

MINE = {"n_samples": 20, "window": 4, "seed": 1}

if __name__ == "__main__":
    run, numbers = Path(sys.argv[1]), synthetic(**MINE)  # type: ignore[arg-type]
    try:
        with locked(run):
            numbers.create(run)
            writer = CubeWriter(run / CUBE, numbers.plan)
            for window in range(numbers.plan.n_windows):
                print(f"window {window}", flush=True)
                sys.stdin.readline()
                writer.write(window, numbers.part(window))
            print("done", flush=True)
    except StorageError as error:
        print(f"StorageError: {error}", flush=True)
