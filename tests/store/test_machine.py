"""Whatever happens to a cube, in any order: it tells the truth, or names what is damaged."""

import errno
import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actkit import open_cube, verify
from actkit.errors import CorruptError, CubeError, IncompleteError, StorageError
from actkit.schema import VARIABLES
from actkit.store.layout import CUBE
from actkit.store.metadata import METADATA
from actkit.store.receipts import receipt_name
from actkit.store.writer import CubeWriter
from actkit.testing import contents, flip_bit
from tests.disk import Killed, watched
from tests.store.subject import Subject, resume, subject

CORRUPTED = "is truncated or corrupted"
TAKEN: Counter[str] = Counter()


@cache
def tried() -> Subject:
    return subject("small", Path(tempfile.mkdtemp(prefix="machine-")))


DAMAGES = st.sampled_from(["flip", "cut", "empty", "delete"])
SEEDS = st.integers(0, 2**32 - 1)  # which file of those that there are, and where in it
STEPS = st.integers(1, 90)  # of the disk: a window takes about 70
ENDS = st.sampled_from([Killed(), OSError(errno.EIO, "Input/output error")])


class Machine(RuleBasedStateMachine):
    """A cube of three windows, and what is known of it: ``flags`` and ``damage``."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = tried().numbers
        self.windows = range(self.numbers.plan.n_windows)
        self.receipts = {receipt_name(window) for window in (None, *self.windows)}
        self.truth = {name.removeprefix(f"{CUBE}/"): content for name, content in tried().whole.items()}
        self.run = Path(tempfile.mkdtemp(prefix="machine-"))
        self.cube = self.run / CUBE
        self.stack = ExitStack()
        self.disk = self.stack.enter_context(watched())
        # what is known: the windows whose flags are in place, and what is wrong with which file
        self.committed: set[int] = set()
        self.damage: dict[str, str] = {}

    @initialize(windows=st.sampled_from([3, 0, 1, 2]))
    def begin(self, windows: int) -> None:
        """Some are born incomplete."""
        tried().copy(windows, self.run)
        self.committed.update(range(windows))

    # what the model says

    def window_of(self, name: str) -> int | None:
        """Return the window that a file belongs to; None for coordinates and metadata."""
        array, _, file = name.rpartition("/")
        variable = VARIABLES.get(array)
        if file == METADATA or variable is None or not (variable.by_window or array == "committed"):
            return None
        if name == receipt_name(None):
            return None
        return int(file.split(".")[1 + variable.sample_axis])

    def kind_of(self, name: str) -> str:
        """Tell what a file is; empty for what is left of a window that is not there."""
        window = self.window_of(name)
        if window is None:
            return "metadata" if name.endswith(METADATA) else "coordinate"
        if window not in self.committed and self.flags(window) not in self.damage:
            return ""
        if name == self.flags(window):
            return "flags"
        return "receipt" if name in self.receipts else "window"

    def flags(self, window: int) -> str:
        return f"committed/c.{window}"

    def unsealed(self) -> bool:
        """Tell whether metadata are damaged: then nothing is read at all."""
        return any(name.endswith(METADATA) for name in self.damage)

    def sealed(self) -> bool:
        return not self.unsealed()

    def faults(self) -> dict[str, str]:
        """Return what is to be named: damage to what is committed, to flags, and to coordinates."""
        return {
            name: what
            for name, what in self.damage.items()
            if (window := self.window_of(name)) is None
            or name == self.flags(window)
            or window in self.committed
        }

    def rows(self) -> list[int]:
        return [row for window in sorted(self.committed) for row in self.numbers.plan.samples_of(window)]

    def look(self, name: str) -> None:
        """Note how a file differs from what it should be."""
        path = self.cube / name
        self.damage.pop(name, None)
        if not path.exists():
            self.damage[name] = "is missing"
        elif (content := path.read_bytes()) != self.truth[name]:
            self.damage[name] = CORRUPTED if content else "is empty"
        window = self.window_of(name)
        if window is not None and name == self.flags(window):
            self.committed.discard(window)
            if name not in self.damage:
                self.committed.add(window)
            elif self.damage[name] == "is missing":  # which is no damage, but a window that is not there
                del self.damage[name]

    def size(self, name: str) -> int:
        path = self.cube / name
        return path.stat().st_size if path.exists() else -1

    def forget(self, window: int) -> None:
        """Note that nothing is known of a window's files any more, and none of them counts."""
        self.committed.discard(window)
        for name in [name for name in self.damage if self.window_of(name) == window]:
            del self.damage[name]

    def attempt(self, act: Callable[[], object], at: int | None, error: BaseException) -> None:
        """Do something that writes windows, and may end at a step; see from the steps which are there."""
        self.disk.steps.clear()
        if at is not None:
            self.disk.fail(at, error)
        with suppress(Killed, StorageError):
            act()
        self.disk.mend()
        for kind, path in self.disk.steps:
            if path.parent.name == "committed" and path.name.removeprefix("c.").isdigit():
                window = int(path.name.removeprefix("c."))
                if kind == "unlink":
                    self.forget(window)
                elif kind == "rename":  # all files of the window are in place, new ones
                    self.forget(window)
                    self.committed.add(window)

    # what can happen

    @precondition(sealed)
    @rule(window=st.integers(0, 2), at=st.none() | STEPS, error=ENDS)
    def write(self, window: int, at: int | None, error: BaseException) -> None:
        TAKEN["write" if at is None else "write, and end at a step"] += 1
        writer = CubeWriter(self.cube, self.numbers.plan)
        self.attempt(lambda: writer.write(window, self.numbers.part(window)), at, error)
        if at is None:
            assert window in self.committed

    @rule(how=DAMAGES, seed=SEEDS)
    def damage_a_window(self, how: str, seed: int) -> None:
        self.do_damage("window", how, seed)

    @rule(what=st.sampled_from(["flags", "receipt", "coordinate", "metadata"]), how=DAMAGES, seed=SEEDS)
    def damage_something_else(self, what: str, how: str, seed: int) -> None:
        self.do_damage(what, how, seed)

    def do_damage(self, kind: str, how: str, seed: int) -> None:
        there = [name for name in self.truth if (self.cube / name).exists() and self.kind_of(name) == kind]
        if not there:
            return
        chance = random.Random(seed)
        name = chance.choice(there)
        path = self.cube / name
        size = path.stat().st_size
        if how == "delete":
            path.unlink()
        elif how == "empty":
            path.write_bytes(b"")
        elif how == "cut" and size > 1:
            path.write_bytes(path.read_bytes()[: chance.randrange(1, size)])
        elif how == "flip" and size:
            flip_bit(path, chance.randrange(8 * size))
        self.look(name)
        TAKEN[f"{how} ({kind})"] += 1

    @precondition(unsealed)
    @rule()
    def bring_back_metadata(self) -> None:
        TAKEN["metadata from a backup"] += 1
        for name in [name for name in self.damage if name.endswith(METADATA)]:
            (self.cube / name).write_bytes(self.truth[name])
            self.look(name)

    @precondition(sealed)
    @rule(at=st.none() | st.integers(1, 250), error=ENDS)
    def rerun(self, at: int | None, error: BaseException) -> None:
        TAKEN["rerun" if at is None else "rerun, and end at a step"] += 1
        # a rerun reads receipts, and compares the sizes of the other files with them
        lost = {
            self.window_of(name)
            for name in self.damage
            if name in self.receipts or self.size(name) != len(self.truth[name])
        }
        expected = [window for window in self.windows if window not in self.committed - lost]
        computed: list[int] = []
        coordinates = [name for name in self.damage if self.window_of(name) is None]
        self.attempt(lambda: computed.extend(resume(self.run, self.numbers)), at, error)
        for name in coordinates:
            self.look(name)
        if at is None:
            assert computed == expected
            assert self.committed == set(self.windows)
            # files of the right size whose content is not what was written are for `verify` to find
            assert not self.receipts & self.damage.keys()
            assert set(self.damage.values()) <= {CORRUPTED}
            assert all(self.window_of(name) is not None for name in self.damage)

    @precondition(lambda self: self.damage and self.sealed())
    @rule()
    def follow_the_advice(self) -> None:
        TAKEN["verify, delete what it names, rerun"] += 1
        for fault in verify(self.run).faults:
            (self.cube / fault.where).unlink(missing_ok=True)
            self.look(fault.where)
        self.rerun(None, Killed())
        assert self.damage == {}
        there = contents(self.cube)
        assert [name for name in there.keys() | self.truth if there.get(name) != self.truth.get(name)] == []

    @rule()
    def verify(self) -> None:
        TAKEN["verify"] += 1
        if self.unsealed():
            with pytest.raises(CubeError):
                verify(self.run)
            return
        verification = verify(self.run)
        assert {fault.where: fault.what.partition(":")[0] for fault in verification.faults} == self.faults()
        assert verification.committed == len(self.rows())

    @rule(partial=st.booleans())
    def open(self, partial: bool) -> None:
        TAKEN["open, what is there" if partial else "open, whole"] += 1
        flags = [self.flags(window) for window in self.windows if self.flags(window) in self.damage]
        # receipts are for `verify` and reruns
        faults = {name: what for name, what in self.faults().items() if name not in self.receipts}
        if self.unsealed():
            with pytest.raises(CubeError):
                open_cube(self.run, partial=partial)
        elif not flags and not partial and len(self.committed) < len(self.windows):
            with pytest.raises(IncompleteError):
                open_cube(self.run)
        elif faults:
            with pytest.raises(CorruptError) as caught:
                open_cube(self.run, partial=partial).load(scheduler="synchronous")
            named = {fault.where: fault.what.partition(":")[0] for fault in caught.value.faults}
            assert named.items() <= faults.items()
            assert named
        else:
            self.check_numbers(open_cube(self.run, partial=partial).load(scheduler="synchronous"))

    def check_numbers(self, cube: xr.Dataset) -> None:
        numbers, rows = self.numbers, self.rows()
        assert cube.sizes["sample"] == len(rows)
        for name, values in {**numbers.values, **numbers.coords, **numbers.rows}.items():
            variable = VARIABLES.get(name, VARIABLES["text"])
            expected = values
            if "sample" in variable.dims:
                expected = values.take(rows, axis=variable.sample_axis)
            np.testing.assert_array_equal(cube[name].values, expected, err_msg=name)

    @invariant()
    def what_is_committed_lies_there_untouched(self) -> None:
        for name, content in self.truth.items():
            window = self.window_of(name)
            if name not in self.damage and (window is None or window in self.committed):
                assert (self.cube / name).read_bytes() == content, name

    def teardown(self) -> None:
        try:
            self.bring_back_metadata()
            self.verify()
            self.open(partial=True)
            self.follow_the_advice()
            self.open(partial=False)
        finally:
            self.stack.close()
            shutil.rmtree(self.run)


NIGHTLY = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(7200)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("examples", "steps"),
    [pytest.param(12, 16, marks=pytest.mark.timeout(900)), pytest.param(300, 30, marks=NIGHTLY)],
    ids=["few", "many"],
)
def test_a_cube_tells_the_truth_or_names_the_damage(examples: int, steps: int) -> None:
    TAKEN.clear()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=examples < 100,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
    counts = ", ".join(f"{count} × {what}" for what, count in TAKEN.most_common())
    what = f"whatever happens to a cube, {examples} times up to {steps} things in any order ({counts})"
    print(f"\nFAULT | {what} | {TAKEN.total()} trials | 0 failures")
