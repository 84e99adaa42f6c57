"""A process that writes cubes, one window of each whenever it is let; give it the run folders."""

import sys
from collections.abc import Iterator
from pathlib import Path

from actkit.errors import StorageError
from actkit.store.layout import CUBE
from actkit.store.run_folder import locked
from actkit.store.writer import CubeWriter
from actkit.testing import synthetic

MINE = {"n_samples": 20, "window": 4, "seed": 1}


def write(run: Path) -> Iterator[str]:
    """Write a cube, and yield before each window, and at the end how it ended."""
    numbers = synthetic(**MINE)  # type: ignore[arg-type]
    try:
        with locked(run):
            numbers.create(run)
            writer = CubeWriter(run / CUBE, numbers.plan)
            for window in range(numbers.plan.n_windows):
                yield f"window {window}"
                writer.write(window, numbers.part(window))
            yield "done"
    except StorageError as error:
        yield f"StorageError: {error}"


if __name__ == "__main__":
    cubes = {run: write(Path(run)) for run in sys.argv[1:]}
    while cubes:
        for run, cube in list(cubes.items()):
            event = next(cube, None)
            if event is None:
                del cubes[run]
            else:
                print(f"{run} {event}", flush=True)
        sys.stdin.readline()
