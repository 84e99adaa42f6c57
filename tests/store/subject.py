"""What the faults of the store are tried on: a small cube at every state of its making."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actkit.schema import VARIABLES
from actkit.store.layout import CUBE
from actkit.store.writer import CubeWriter
from actkit.testing import Synthetic, contents, synthetic

# three windows, the last of them not full
SIZES: dict[str, dict[str, Any]] = {
    "small": {"n_layers": 2, "n_tokens": 5, "hidden": 4},
    "wide": {"n_layers": 2, "n_tokens": 24, "hidden": 64},
    "everything": {"n_layers": 3, "n_tokens": 40, "hidden": 8, "everything": True},
}


@dataclass
class Subject:
    """A cube, and what it should be; ``what`` says how large it is."""

    what: str
    numbers: Synthetic = field(repr=False)
    whole: dict[str, bytes] = field(repr=False)
    states: list[Path] = field(repr=False)  # with no window, with the first, and so on to all of them

    @property
    def windows(self) -> range:
        return range(self.numbers.plan.n_windows)

    def copy(self, windows: int, to: Path) -> Path:
        """Return a run folder that holds so many windows."""
        shutil.rmtree(to, ignore_errors=True)
        return Path(shutil.copytree(self.states[windows], to))

    def of_window(self, window: int) -> dict[str, bytes]:
        """Return every file of a window, but those that say of it that it is committed."""
        axes = {name: VARIABLES[name].sample_axis for name in self.numbers.values}
        keys = {name: ["0"] * len(VARIABLES[name].dims) for name in axes}
        for name, axis in axes.items():
            keys[name][axis] = str(window)
        paths = [f"{CUBE}/{name}/c.{'.'.join(key)}" for name, key in keys.items()]
        return {path: self.whole[path] for path in paths}

    def write(self, run: Path, window: int) -> None:
        CubeWriter(run / CUBE, self.numbers.plan).write(window, self.numbers.part(window))

    def check_safe(self, run: Path, windows: int) -> None:
        """Nothing of what was written before is changed; what is committed now is whole."""
        left = contents(run)
        for name, content in contents(self.states[windows]).items():
            assert left.get(name) == content, f"{name} is not what it was"
        if f"{CUBE}/committed/c.{windows}" in left:
            for name, content in contents(self.states[windows + 1]).items():
                assert left.get(name) == content, f"{name} is not whole"

    def check_rerun(self, run: Path) -> list[int]:
        """Rerun; the cube is that of an undisturbed run. Return the windows that were computed."""
        computed = resume(run, self.numbers)
        left = contents(run)
        assert sorted(left) == sorted(self.whole)
        assert [name for name, content in left.items() if self.whole[name] != content] == []
        return computed


def subject(size: str, folder: Path) -> Subject:
    """Make one, in an empty folder."""
    numbers = synthetic(n_samples=10, window=4, **SIZES[size])
    run = folder / "run"
    run.mkdir()
    writer = numbers.create(run)
    states = []
    for window in range(numbers.plan.n_windows):
        states.append(Path(shutil.copytree(run, folder / str(window))))
        writer.write(window, numbers.part(window))
    return Subject(f"{len(numbers.values)} variables", numbers, contents(run), [*states, run])


def resume(run: Path, numbers: Synthetic) -> list[int]:
    """Do what a rerun does, and return the windows that it computed."""
    cube = run / CUBE
    writer = CubeWriter(cube, numbers.plan) if cube.exists() else numbers.create(run)
    writer.restore(numbers.coords, numbers.labels, [numbers.rows])
    left = writer.recover()
    for window in left:
        writer.write(window, numbers.part(window))
    return left
